"""The domain with what other programs serve, and with memory that grows: a TPM by swtpm and files by
virtiofsd, both started by libvirt, sockets by the kernel, a disk with limits, and a SCSI disk that says
who it is.
"""

import contextlib
import pathlib
import subprocess
import time

from hotplug import checked
from steps import CALL_TIME, DOMAIN, Guest, Trouble, state, until, virsh

SHARED = pathlib.Path("/var/lib/libvirt/shared")
SCSI = "/var/lib/libvirt/images/scsi.raw"
WWN = "5000c50015ea71aa"
LINE = "a line from this side"
MIB = 1 << 20
# Where QEMU's package has virtiofsd, and where a package of its own has it.
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")


def described(plain):
    """That domain, and what this part adds to it."""
    program = next(path for path in VIRTIOFSD if pathlib.Path(path).exists())
    memory = (
        "</memory>\n  <maxMemory slots='2' unit='MiB'>1024</maxMemory>"
        "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    )
    cpu = (
        "<cpu mode='host-passthrough'><cache mode='passthrough'/>"
        "<numa><cell id='0' cpus='0-1' memory='256' unit='MiB'/></numa></cpu>\n  <devices>"
    )
    devices = f"""<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <filesystem type='mount'>
      <driver type='virtiofs'/>
      <binary path='{program}'><sandbox mode='chroot'/></binary>
      <source dir='{SHARED}'/>
      <target dir='share'/>
    </filesystem>
    <vsock model='virtio'><cid auto='yes'/></vsock>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' error_policy='stop' rerror_policy='report'/>
      <source file='{SCSI}'/>
      <target dev='sdb' bus='scsi' rotation_rate='1'/>
      <wwn>{WWN}</wwn>
    </disk>
    <memory model='virtio-mem'>
      <target>
        <size unit='MiB'>256</size><node>0</node><block unit='MiB'>2</block>
        <requested unit='MiB'>0</requested>
      </target>
    </memory>
  </devices>"""
    for old, new in [
        ("</memory>", memory),
        ("<acpi/>", "<acpi/><pmu state='off'/>"),
        ("<devices>", cpu),
        ("<serial>root<", "<iotune><total_iops_sec>1000</total_iops_sec></iotune><serial>root<"),
        ("</devices>", devices),
    ]:
        plain = plain.replace(old, new, 1)
    return plain


def attribute(guest, name):
    """What the guest says of its first SCSI disk, if it is there."""
    with contextlib.suppress(Trouble):
        return guest.call("read-file", path=f"/sys/block/sda/{name}").strip()
    return None


def used(guest):
    """The guest uses each."""
    started = time.monotonic()
    version = guest.call("read-file", path="/sys/class/tpm/tpm0/tpm_version_major").strip()
    checked(version == "2", f"the guest has a TPM of version {version}", started)
    started = time.monotonic()
    guest.call("mount-share", tag="share", path="/share", seconds=CALL_TIME)
    seen = guest.call("read-file", path="/share/from-here")
    guest.call("write-file", path="/share/from-there", text=LINE)
    written = (SHARED / "from-there").read_text()
    guest.call("unmount", path="/share")
    checked((seen, written) == (LINE, LINE), "the guest reads and writes shared files", started)
    started = time.monotonic()
    guest.call("modules")
    name = until("the SCSI disk", lambda: attribute(guest, "device/wwid"))
    rotates = attribute(guest, "queue/rotational")
    good = (name, rotates) == (f"naa.{WWN}", "0")
    checked(good, f"the guest's SCSI disk is {name}, rotational {rotates}", started)
    started = time.monotonic()
    guest.call("vsock-wait", seconds=CALL_TIME)
    checked(True, "the guest has sockets of virtio", started)


def grown(guest):
    """Its memory grows and shrinks by virtio-mem."""
    before = guest.call("memory")["total"]
    for size, least in [(128, before + 128 * MIB), (0, before)]:
        virsh("update-memory-device", DOMAIN, "--live", "--requested-size", f"{size}MiB")
        started = time.monotonic()
        guest.call("memory-wait", least=least, most=least)
        checked(True, f"the guest has {size} MiB more than at first", started)


def all_of_it(plain):
    """A life of the domain."""
    SHARED.mkdir(parents=True)
    (SHARED / "from-here").write_text(LINE)
    subprocess.run(["truncate", "--size", "8M", SCSI], check=True)
    domain = pathlib.Path("/run/served.xml")
    domain.write_text(described(plain))
    virsh("define", str(domain))
    virsh("start", DOMAIN)
    guest = Guest()
    guest.ready("start with served devices")
    used(guest)
    grown(guest)
    virsh("blkdeviotune", DOMAIN, "vda", expect="total_iops_sec +: 1000")
    virsh("blkdeviotune", DOMAIN, "vda", "--total-bytes-sec", "8388608", "--live")
    virsh("blkdeviotune", DOMAIN, "vda", expect="total_bytes_sec: 8388608")
    virsh("shutdown", DOMAIN)
    state("shut off (shutdown)")
    virsh("undefine", DOMAIN, "--tpm")
