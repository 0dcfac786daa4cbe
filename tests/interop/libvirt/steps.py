"""What a test of libvirt is made of: calls of virsh with their verdicts, the guest and its consoles.

Never knows what is tested: that is in `session.py` and `hotplug.py`.
"""

import contextlib
import json
import os
import pty
import re
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree

DOMAIN = "guest"
# A boot in a machine made of software that has other work, too.
BOOT_TIME = 400
CALL_TIME = 60
BLOCK = 4096


class Trouble(Exception):
    """What went wrong, in a line."""


def until(what, condition, seconds=CALL_TIME):
    """Waits until `condition` returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Trouble(f"{what}: not within {seconds} s")
        time.sleep(0.1)
    return found


def verdict(good, what, started):
    """One line of the report."""
    print(f"{'ok' if good else 'FAILED':6} {what} ({time.monotonic() - started:.1f} s)", flush=True)


def virsh(*words, expect=None):
    """One call of virsh, which must succeed and, if told, say something."""
    started = time.monotonic()
    call = subprocess.run(
        ["virsh", "--quiet", *words],
        capture_output=True,
        text=True,
        timeout=BOOT_TIME,
        check=False,
    )
    good = call.returncode == 0 and (expect is None or re.search(expect, call.stdout))
    verdict(good, "virsh " + " ".join(words), started)
    if not good:
        wanted = f", wanted {expect}" if expect else ""
        raise Trouble(f"{call.stdout}{call.stderr}exit status {call.returncode}{wanted}")
    return call.stdout


def state(expect):
    """Waits until the domain is in that state."""
    started = time.monotonic()
    last = []

    def is_there():
        call = ["virsh", "--quiet", "domstate", "--reason", DOMAIN]
        last[:] = subprocess.run(call, capture_output=True, text=True, check=False).stdout.split("\n")
        return last[0] == expect

    try:
        until("domstate", is_there)
    except Trouble:
        verdict(False, f"virsh domstate --reason {DOMAIN}: {last[0]}, wanted {expect}", started)
        raise
    verdict(True, f"virsh domstate --reason {DOMAIN}: {expect}", started)


class Guest:
    """The program in the guest (tests/guest), over the channel that libvirt made."""

    def __init__(self):
        tree = ElementTree.fromstring(virsh("dumpxml", DOMAIN))
        path = tree.find("devices/channel/source").get("path")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(BOOT_TIME)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r")

    def ready(self, after):
        """Waits for the guest to be up after `after`."""
        started = time.monotonic()
        while (line := self.lines.readline()) and json.loads(line).get("event") != "ready":
            pass
        verdict(line, f"the guest is up after {after}", started)
        if not line:
            raise Trouble("the channel ended")

    def call(self, name, /, **arguments):
        """Asks the guest something."""
        self.socket.sendall(json.dumps({"id": name, "call": name, **arguments}).encode() + b"\n")
        reply = json.loads(self.lines.readline())
        if reply.get("id") != name or "error" in reply:
            raise Trouble(f"in the guest: {name}: {reply}")
        return reply["return"]

    def answers(self):
        """The guest runs."""
        started = time.monotonic()
        verdict(self.call("ping") == "pong", "the guest answers", started)


class Terminal:
    """`virsh console`, which wants a terminal."""

    def __init__(self, device):
        self.text = ""
        self.command = ["virsh", "console", DOMAIN, "--devname", device, "--force"]
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            self.command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.ours = ours
        threading.Thread(target=self._read, daemon=True).start()
        until("virsh console", lambda: "Connected to domain" in self.text)

    def _read(self):
        with contextlib.suppress(OSError):
            while piece := os.read(self.ours, BLOCK):
                self.text += piece.decode(errors="replace")

    def says(self, expect):
        """Waits until the guest says that, and leaves by the key for it, ^]."""
        started = time.monotonic()
        try:
            until("the console", lambda: expect in self.text)
            os.write(self.ours, b"\x1d")
            self.process.wait(CALL_TIME)
        finally:
            self.process.kill()
            verdict(expect in self.text, f"{' '.join(self.command)}: {expect!r}", started)
