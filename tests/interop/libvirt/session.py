"""The life of a domain under libvirt: every virsh call with its verdict, and what the guest saw.

Run by `run`, as root, where `within` has put libvirt and sesame. Ends with "done", or at the first
call that goes wrong. `hotplug.py` has the part in which devices come and go, `firmware.py` the one
with firmware, `served.py` the one with a TPM, shared files and memory that grows.
"""

import contextlib
import os
import pathlib
import pwd
import re
import signal
import subprocess
import sys
import time

import firmware
import hotplug
import served
from steps import BLOCK, DOMAIN, Guest, Terminal, Trouble, state, until, verdict, virsh

HERE = pathlib.Path(__file__).parent
MACHINE = "pc-q35-sesame1"
DISK = "/var/lib/libvirt/images/disk.raw"
SERIAL_LOG = "/var/log/libvirt/qemu/guest-serial.log"
GUEST_LOG = "/var/log/libvirt/qemu/guest.log"
DAEMON_LOG = "/var/log/libvirt/libvirtd.log"
DAEMON_SOCKET = "/run/libvirt/libvirt-sock"
DAEMON_PID = "/run/libvirtd.pid"
PID_FILE = "/run/libvirt/qemu/guest.pid"


def start_daemon():
    """Starts libvirtd, as its service would, and waits until it answers."""
    subprocess.run(["libvirtd", "--daemon"], check=True)
    until("libvirtd", lambda: os.path.exists(DAEMON_SOCKET))
    virsh("uri", expect="qemu:///system")


def restart_daemon():
    """Stops libvirtd, leaves the domain to itself, and starts it again."""
    started = time.monotonic()
    pid = int(pathlib.Path(DAEMON_PID).read_text())
    os.kill(pid, signal.SIGTERM)
    until("the end of libvirtd", lambda: not os.path.exists(DAEMON_PID))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(DAEMON_SOCKET)
    verdict(True, "libvirtd is stopped; the domain goes on", started)
    start_daemon()


def uses_devices(guest):
    """The disk, the source of random numbers and the serial console are really there."""
    started = time.monotonic()
    disk = guest.call("disk-wait", serial="root", seconds=60)
    guest.call("disk-write", disk=disk, seed=8, offset=0, length=BLOCK * 16)
    guest.call("disk-verify", disk=disk, seed=8, offset=0, length=BLOCK * 16)
    with open(DISK, "rb") as image:
        written = any(image.read(BLOCK * 16))
    verdict(written, f"the guest writes to {disk}, and it is in {DISK}", started)
    rng = guest.call("read-file", path="/sys/class/misc/hw_random/rng_current").strip()
    verdict(rng.startswith("virtio_rng"), f"the guest's source of random numbers is {rng}", started)
    guest.call("write-file", path="/dev/ttyS0", text="a line\n")
    log = pathlib.Path(SERIAL_LOG)
    until("the serial console's log", lambda: "a line" in log.read_text(errors="replace"))
    verdict(True, f"what the guest says on ttyS0 is in {SERIAL_LOG}", started)
    if not (written and rng.startswith("virtio_rng")):
        raise Trouble("a device does not work")


def is_confined():
    """The process is libvirt's user without any right, and its system calls are filtered."""
    started = time.monotonic()
    pid = pathlib.Path(PID_FILE).read_text().strip()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    user = str(pwd.getpwnam("libvirt-qemu").pw_uid)
    for key, wanted in [("Uid", user), ("CapEff", "0" * 16), ("Seccomp", "2")]:
        found = re.search(rf"^{key}:\t(\w+)", status, re.MULTILINE)[1]
        verdict(found == wanted, f"/proc/{pid}/status: {key} is {found}", started)
        if found != wanted:
            raise Trouble(f"{key} is {found}, wanted {wanted}")


def probed():
    """Stage 1: libvirt finds out what sesame can do."""
    virsh(
        "domcapabilities",
        *("--emulatorbin", "/usr/bin/sesame", "--virttype", "kvm", "--machine", "q35"),
        expect=f"(?s)<machine>{MACHINE}<.*name='host-passthrough' supported='yes'",
    )


def started():
    """Stage 2: a domain is defined and runs."""
    virsh("define", str(HERE / "domain.xml"))
    virsh("dumpxml", DOMAIN, expect=f"machine='{MACHINE}'")
    virsh("start", DOMAIN)
    state("running (booted)")
    guest = Guest()
    guest.ready("start")
    uses_devices(guest)
    is_confined()
    virsh("dominfo", DOMAIN, expect=r"State:\s+running")
    virsh("vcpuinfo", DOMAIN, expect=r"State:\s+running")
    virsh("domstats", DOMAIN, expect=r"(?s)vcpu\.0\.time=.*block\.0\.wr\.bytes=[1-9]")
    virsh("domblkstat", DOMAIN, "vda", expect="vda wr_bytes [1-9]")
    virsh("domblklist", DOMAIN, expect=f"vda +{DISK}")
    virsh("ttyconsole", DOMAIN, expect="/dev/pts/")
    return guest


def lives(guest):
    """Stage 3: its life, in which libvirtd is gone for a while."""
    virsh("suspend", DOMAIN)
    state("paused (user)")
    virsh("resume", DOMAIN)
    state("running (unpaused)")
    guest.answers()
    console = Terminal("console1")
    virsh("reset", DOMAIN)
    guest.ready("reset")
    console.says("guest-init: up")
    virsh("reboot", DOMAIN, "--mode", "acpi")
    guest.ready("reboot")
    restart_daemon()
    virsh("list", expect=f"{DOMAIN} +running")
    guest.answers()
    virsh("suspend", DOMAIN)
    state("paused (user)")
    virsh("resume", DOMAIN)
    guest.answers()
    guest.call("reboot")
    guest.ready("a reboot of its own")
    virsh("shutdown", DOMAIN)
    state("shut off (shutdown)")


def ends():
    """Once more, and by force."""
    virsh("start", DOMAIN)
    state("running (booted)")
    virsh("destroy", DOMAIN)
    state("shut off (destroyed)")
    virsh("undefine", DOMAIN)


def shows_the_hosts_cpu():
    """The CPU is the host's as libvirt describes it: a model and features of it."""
    plain = (HERE / "domain.xml").read_text()
    domain = pathlib.Path("/run/host-model.xml")
    cpu = "<cpu mode='host-model' check='partial'></cpu>"
    domain.write_text(plain.replace("  <devices>", f"  {cpu}\n  <devices>", 1))
    virsh("define", str(domain))
    virsh("start", DOMAIN)
    virsh("dumpxml", DOMAIN, expect="(?s)<cpu mode='custom'.*<model fallback='forbid'>")
    virsh("destroy", DOMAIN)
    virsh("undefine", DOMAIN)


def complaints():
    """What libvirt did not like, in its own log, of what sesame answered."""
    lines = pathlib.Path(DAEMON_LOG).read_text(errors="replace").splitlines()
    return [line for line in lines if re.search("QEMU command|JSON|reply", line, re.IGNORECASE)]


def main():
    """All of it; what libvirt and sesame wrote is shown if it goes wrong."""
    try:
        subprocess.run(["libvirtd", "--version"], check=True)
        subprocess.run(["virtlogd", "--daemon"], check=True)
        start_daemon()
        probed()
        guest = started()
        hotplug.all_of_it(guest)
        lives(guest)
        ends()
        shows_the_hosts_cpu()
        firmware.all_of_it((HERE / "domain.xml").read_text())
        served.all_of_it((HERE / "domain.xml").read_text())
        if found := complaints():
            raise Trouble("libvirt's log complains:\n" + "\n".join(found))
    except (Trouble, OSError, subprocess.SubprocessError) as error:
        for log in (DAEMON_LOG, GUEST_LOG, SERIAL_LOG):
            with contextlib.suppress(FileNotFoundError):
                text = pathlib.Path(log).read_text(errors="replace").splitlines()
                print(f"--- {log}:", *text[-40:], sep="\n")
        print(f"FAILED {error}")
        sys.exit(1)
    print("done")


main()
