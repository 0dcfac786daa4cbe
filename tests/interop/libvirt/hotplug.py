"""Stage 4: what is attached to a running domain, used by the guest, and detached again.

Each device goes the same way: virsh attaches it, the guest finds and uses it, virsh detaches it, and
then neither the guest nor libvirt has it. They are there together, each in a root port of its own.
"""

import contextlib
import pathlib
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree

from steps import BLOCK, CALL_TIME, DOMAIN, Trouble, until, verdict, virsh

IMAGES = pathlib.Path("/var/lib/libvirt/images")
# What the guest's agent answers with when all bytes have come (tests/guest).
DONE = b"."
TRANSFER = 1 << 20
LINE = "a line of the medium\n"
TAP, BRIDGE, PASST = (f"52:54:00:00:04:0{number}" for number in (1, 2, 3))
# What `virsh domiflist` shows: interface, type, source, model, address.
CARDS = (
    rf"(?s)tap4 +ethernet +- +virtio +{TAP}"
    rf".*vnet[0-9]+ +bridge +outside +virtio +{BRIDGE}"
    rf".*user +- +virtio +{PASST}"
)


def domain():
    """The live domain's XML."""
    xml = subprocess.run(["virsh", "dumpxml", DOMAIN], capture_output=True, text=True, check=True)
    return ElementTree.fromstring(xml.stdout)


def names(tree, path):
    """The names of all devices that `path` finds."""
    return [alias.get("name") for alias in tree.findall(f"{path}/alias")]


class Attached:
    """A device of the domain: where its XML is, and how to wait until the guest is without it."""

    def __init__(self, path, is_gone):
        self.path = path
        self.is_gone = is_gone


def checked(good, what, started):
    """What the guest must see."""
    verdict(good, what, started)
    if not good:
        raise Trouble(what)


def device(name, xml):
    """A file for `virsh attach-device` and `detach-device`."""
    path = pathlib.Path("/run") / f"{name}.xml"
    path.write_text(xml)
    return str(path)


def disk(guest, name, kind):
    """A disk, as an image of that format."""
    image, serial = IMAGES / f"more.{kind}", f"more-{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, image, "8M"], check=True)
    virsh(
        *("attach-disk", DOMAIN, str(image), name, "--live", "--serial", serial),
        *("--targetbus", "virtio", "--driver", "qemu", "--subdriver", kind),
    )
    started = time.monotonic()
    found = guest.call("disk-wait", serial=serial, seconds=CALL_TIME)
    guest.call("disk-write", disk=found, seed=3, offset=0, length=BLOCK * 16)
    guest.call("disk-verify", disk=found, seed=3, offset=0, length=BLOCK * 16)
    verdict(True, f"the guest writes to its new disk {found}, {kind}", started)
    virsh("domblkstat", DOMAIN, name, expect=f"{name} wr_bytes [1-9]")
    return Attached(
        f"devices/disk/serial[.='{serial}']/..",
        lambda: guest.call("disk-wait-gone", serial=serial, seconds=CALL_TIME),
    )


class Listener:
    """A place on this side that a guest sends to, and all of what it sends."""

    def __init__(self):
        self.socket = socket.create_server(("0.0.0.0", 0))
        self.socket.settimeout(CALL_TIME)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        with contextlib.suppress(OSError):
            stream, _ = self.socket.accept()
            left = TRANSFER
            while left and (piece := stream.recv(min(left, 1 << 16))):
                left -= len(piece)
            stream.sendall(DONE)

    def sent_from(self, guest, address, by):
        """The guest sends, to what it knows as `address`."""
        started = time.monotonic()
        to = f"tcp:{address}:{self.port}"
        guest.call("send", to=to, length=TRANSFER, seed=5, streams=1)
        self.socket.close()
        verdict(True, f"the guest sends {TRANSFER} bytes by {by}", started)


def ip(*words):
    """A change of the interfaces on this side."""
    subprocess.run(["ip", *words], check=True)


def card(guest, mac):
    """The guest's name of the card with that address."""
    return guest.call("card-wait", mac=mac, seconds=CALL_TIME)


def link(guest, name, mac):
    """Its cable is pulled, and put back."""
    for word, up in [("down", 0), ("up", 1)]:
        virsh("domif-setlink", DOMAIN, mac, word)
        started = time.monotonic()
        guest.call("card-wait-carrier", card=name, up=up, seconds=CALL_TIME)
        verdict(True, f"the guest sees its link {word}", started)
        virsh("domif-getlink", DOMAIN, mac, expect=f"{mac} {word}")


def attached_card(guest, mac):
    """The card with that address."""
    return Attached(
        f"devices/interface/mac[@address='{mac}']/..",
        lambda: guest.call("card-wait-gone", mac=mac, seconds=CALL_TIME),
    )


def tap(guest):
    """A tap interface that libvirt makes, with several queues and, if it is there, vhost-net."""
    mac = TAP
    xml = device(
        "tap",
        f"""<interface type='ethernet'>
  <mac address='{mac}'/>
  <target dev='tap4'/>
  <model type='virtio'/>
  <driver queues='2'/>
</interface>""",
    )
    virsh("attach-device", DOMAIN, xml, "--live")
    ip("address", "add", "198.51.100.1/24", "dev", "tap4")
    ip("link", "set", "tap4", "up")
    name = card(guest, mac)
    guest.call("card-address", card=name, address="198.51.100.2", prefix=24)
    Listener().sent_from(guest, "198.51.100.1", "a tap")
    virsh("domifstat", DOMAIN, "tap4", expect="tap4 rx_bytes [1-9]")
    link(guest, name, mac)
    return attached_card(guest, mac)


def bridge(guest):
    """A bridge of this machine, to which libvirt adds a tap."""
    mac = BRIDGE
    virsh(
        *("attach-interface", DOMAIN, "bridge", "outside", "--live"),
        *("--model", "virtio", "--mac", mac),
    )
    name = card(guest, mac)
    guest.call("card-address", card=name, address="203.0.113.2", prefix=24)
    Listener().sent_from(guest, "203.0.113.1", "a bridge")
    return attached_card(guest, mac)


def passt(guest):
    """User networking, by a process that libvirt starts."""
    mac = PASST
    xml = device(
        "passt",
        f"""<interface type='user'>
  <backend type='passt'/>
  <mac address='{mac}'/>
  <model type='virtio'/>
</interface>""",
    )
    virsh("attach-device", DOMAIN, xml, "--live")
    lease = guest.call("card-dhcp", card=card(guest, mac), mac=mac)
    Listener().sent_from(guest, lease["router"], "passt")
    return attached_card(guest, mac)


def rng(guest):
    """A second source of random numbers."""
    xml = device("rng", "<rng model='virtio'><backend model='builtin'/></rng>")

    def sources(count):
        path = "/sys/class/misc/hw_random/rng_available"
        until(
            f"{count} sources of random numbers",
            lambda: guest.call("read-file", path=path).count("virtio_rng") == count,
        )

    virsh("attach-device", DOMAIN, xml, "--live")
    started = time.monotonic()
    sources(2)
    verdict(True, "the guest has a second source of random numbers", started)
    return Attached("devices/rng/backend[@model='builtin']/..", lambda: sources(1))


def channel(guest):
    """A port of virtio-serial, with a socket that libvirt listens on and hands over."""
    name = "org.sesame.more"
    xml = device(
        "channel", f"<channel type='unix'><target type='virtio' name='{name}'/></channel>"
    )
    virsh("attach-device", DOMAIN, xml, "--live")
    source = domain().find(f"devices/channel/target[@name='{name}']/../source")
    with socket.socket(socket.AF_UNIX) as ours:
        ours.settimeout(CALL_TIME)
        ours.connect(source.get("path"))
        started = time.monotonic()
        guest.call("port-write", name=name, text="hello")
        checked(ours.recv(BLOCK) == b"hello", f"the guest writes to {name}", started)
    return Attached(f"devices/channel/target[@name='{name}']/..", lambda: None)


def processors(guest):
    """A second vCPU comes and goes."""
    virsh("setvcpus", DOMAIN, "2", "--live")
    started = time.monotonic()
    checked(guest.call("cpu-online", cpu=1) == 2, "the guest has two processors", started)
    virsh("vcpucount", DOMAIN, "--live", "--active", expect="^2$")
    virsh("vcpuinfo", DOMAIN, expect=r"(?s)VCPU: +1\n.*State: +running")
    virsh("setvcpus", DOMAIN, "1", "--live")
    started = time.monotonic()
    checked(guest.call("cpu-gone", cpu=1) == 1, "the guest has one processor", started)
    virsh("vcpucount", DOMAIN, "--live", "--active", expect="^1$")


def medium(guest):
    """A medium goes into the CD drive, another one takes its place, and it is taken out."""
    for number, how in [(1, "--insert"), (2, "--update")]:
        path = IMAGES / f"medium-{number}.iso"
        text = f"{number} {LINE}"
        path.write_text(text * (4 * BLOCK // len(text)) + " " * (4 * BLOCK % len(text)))
        virsh("change-media", DOMAIN, "sda", str(path), how, "--live")
        started = time.monotonic()

        def is_there(text=text):
            with contextlib.suppress(Trouble):
                return guest.call("read-file", path="/dev/sr0").startswith(text)
            return False

        until("the medium", is_there)
        verdict(True, f"the guest reads medium {number}", started)
    virsh("change-media", DOMAIN, "sda", "--eject", "--live")
    virsh("domblklist", DOMAIN, expect=r"sda +-")


def outside():
    """A bridge of this side: for guests, and with a default route and its address for passt."""
    ip("link", "add", "outside", "type", "bridge")
    ip("address", "add", "192.0.2.2/24", "dev", "outside")
    ip("address", "add", "203.0.113.1/24", "dev", "outside")
    ip("link", "set", "outside", "up")
    ip("route", "add", "default", "via", "192.0.2.1", "dev", "outside")


def leave(attached):
    """All are detached, and gone for the guest and for libvirt. The first is a disk, vdb."""
    tree = domain()
    # By name virsh does not wait for the guest, by target it does: a guest takes five seconds, in
    # which somebody could press the slot's button again.
    for one in attached[1:]:
        virsh("detach-device-alias", DOMAIN, *names(tree, one.path), "--live")
    virsh("detach-disk", DOMAIN, "vdb", "--live")
    started = time.monotonic()
    for one in attached:
        one.is_gone()
    verdict(True, "the guest is without all that", started)

    def xml_is_without():
        tree = domain()
        return all(tree.find(one.path) is None for one in attached)

    until("the end of all that", xml_is_without)
    verdict(True, "the domain's XML is without all that", started)


def all_of_it(guest):
    """All of stage 4; afterwards the domain is as it was."""
    before = names(domain(), "devices/*")
    outside()
    attached = [
        disk(guest, "vdb", "raw"),
        disk(guest, "vdc", "qcow2"),
        tap(guest),
        bridge(guest),
        passt(guest),
        rng(guest),
        channel(guest),
    ]
    virsh("domblklist", DOMAIN, expect=r"(?s)vdb +/.*vdc +/")
    virsh("domiflist", DOMAIN, expect=CARDS)
    leave(attached)
    processors(guest)
    medium(guest)
    checked(names(domain(), "devices/*") == before, "the domain is as it was", time.monotonic())
