"""The domain with more of what libvirt knows: UEFI firmware, a CPU by name, and what users type on.

The guest is booted by the distribution's firmware, whose variables libvirt keeps.
"""

import pathlib
import time

from steps import DOMAIN, Guest, Trouble, state, verdict, virsh

CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
TEMPLATE = "/usr/share/OVMF/OVMF_VARS_4M.fd"
VARIABLES = pathlib.Path("/var/lib/libvirt/qemu/nvram/guest_VARS.fd")
MODEL = "Nehalem"
# What the lab's processor lacks of that model.
LACKING = "vme"
USERS = ("Sesame Virtio Keyboard", "Sesame Virtio Tablet")


def described(plain):
    """That domain, and what this part adds to it."""
    firmware = (
        f"<loader readonly='yes' type='pflash'>{CODE}</loader>"
        f"<nvram template='{TEMPLATE}'>{VARIABLES}</nvram>\n    <kernel>"
    )
    cpu = (
        f"<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{MODEL}</model>"
        f"<feature policy='disable' name='{LACKING}'/></cpu>\n  <devices>"
    )
    devices = (
        "<input type='keyboard' bus='virtio'/><input type='tablet' bus='virtio'/>\n  </devices>"
    )
    for old, new in [
        (">256<", ">512<"),
        ("<kernel>", firmware),
        ("<devices>", cpu),
        ("</devices>", devices),
    ]:
        plain = plain.replace(old, new, 1)
    return plain


def seen(guest):
    """What the guest has of it."""
    started = time.monotonic()
    model = guest.call("read-file", path="/proc/cpuinfo")
    inputs = guest.call("read-file", path="/proc/bus/input/devices")
    for good, what in [
        (f" {LACKING} " not in model and " sse4_2 " in model, f"the guest's CPU is a {MODEL}"),
        (all(name in inputs for name in USERS), "the guest has a keyboard and a tablet"),
    ]:
        verdict(good, what, started)
        if not good:
            raise Trouble(f"{what}: {model}{inputs}")


def all_of_it(plain):
    """A life of the domain."""
    domain = pathlib.Path("/run/firmware.xml")
    domain.write_text(described(plain))
    virsh("define", str(domain))
    virsh("start", DOMAIN)
    guest = Guest()
    guest.ready("start by firmware")
    seen(guest)
    started = time.monotonic()
    verdict(VARIABLES.stat().st_size > 0, f"firmware's variables are in {VARIABLES}", started)
    virsh("send-key", DOMAIN, "KEY_A")
    virsh("shutdown", DOMAIN)
    state("shut off (shutdown)")
    virsh("undefine", DOMAIN, "--nvram")
    if VARIABLES.exists():
        raise Trouble(f"{VARIABLES} stays")
