"""What goes over the wire, without a server."""

import json
import os
import socket
import threading
import unittest

from sesame_qmp import (
    Client,
    CommandError,
    ConnectionClosed,
    DeviceNotFound,
    ProtocolError,
    UnknownEvent,
    events,
    types,
)
from sesame_qmp._protocol import Greeting, Reply, Session
from sesame_qmp._wire import decode

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "t"}}}
GREETING["QMP"]["capabilities"] = ["oob"]


def told(*messages, pretty=None):
    """What a session makes of these messages, byte by byte."""
    session = Session()
    out = []
    for message in messages:
        for byte in json.dumps(message, indent=pretty).encode() + b"\r\n":
            out += session.receive(bytes([byte]))
    return out


class Values(unittest.TestCase):
    def test_an_absent_member_is_none_and_none_is_absent(self):
        node = types.BlockdevOptionsFile(filename="fd:disk", node_name="disk")
        wire = {"driver": "file", "filename": "fd:disk", "node-name": "disk"}
        self.assertEqual(node.to_wire(), wire)
        back = decode(types.BlockdevOptions, wire)
        self.assertEqual(back, node)
        self.assertIsNone(back.read_only)

    def test_a_union_is_read_by_its_tag_and_goes_through_an_alternate(self):
        wire = {"driver": "raw", "file": {"driver": "null-co", "size": 512}, "offset": 1}
        node = decode(types.BlockdevOptions, wire)
        self.assertEqual(
            node, types.BlockdevOptionsRaw(file=types.BlockdevOptionsNullCo(size=512), offset=1)
        )
        self.assertEqual(node.to_wire(), wire)
        by_name = decode(types.BlockdevOptions, {"driver": "raw", "file": "other"})
        self.assertEqual(by_name.file, "other")

    def test_wire_names_with_underscores_are_kept(self):
        device = types.DeviceOptionsVirtioBlkPci(drive="disk", iommu_platform=False)
        self.assertIn("iommu_platform", device.to_wire())

    def test_what_a_newer_server_says_is_passed_over_or_handed_on(self):
        wire = {"running": True, "status": "dreaming", "depth": 3}
        self.assertEqual(types.StatusInfo.from_wire(wire), types.StatusInfo(True, "dreaming"))
        unknown = {"driver": "tape", "reels": 2}
        self.assertEqual(decode(types.BlockdevOptions, unknown), unknown)

    def test_a_member_that_must_be_there_is_missed(self):
        with self.assertRaisesRegex(ProtocolError, "wants a member 'status'"):
            types.StatusInfo.from_wire({"running": True})


class Framing(unittest.TestCase):
    def test_messages_in_one_line_and_in_several_are_the_same(self):
        time = {"seconds": 5, "microseconds": 500000}
        data = {"guest": True, "reason": "guest-shutdown"}
        said = [GREETING, {"event": "SHUTDOWN", "data": data, "timestamp": time}, {"return": {}}]
        plain = told(*said)
        self.assertEqual(plain, told(*said, pretty=4))
        self.assertIsInstance(plain[0], Greeting)
        self.assertEqual(plain[1], events.Shutdown(guest=True, reason="guest-shutdown"))
        self.assertEqual(plain[1].timestamp, 5.5)
        self.assertEqual(plain[2], Reply(None, {}))

    def test_an_unknown_event_has_its_name(self):
        self.assertEqual(told({"event": "NEW", "data": {"a": 1}}), [UnknownEvent("NEW", {"a": 1})])

    def test_an_error_class_is_a_type_and_an_unknown_one_the_base(self):
        session = Session()
        request_id, _ = session.request("device_del", {"id": "x"}, False)
        for name, kind in [("DeviceNotFound", DeviceNotFound), ("Newer", CommandError)]:
            error = {"id": request_id, "error": {"class": name, "desc": "no"}}
            (reply,) = session.receive(json.dumps(error).encode() + b"\n")
            self.assertIs(type(reply.error), kind)
            self.assertEqual(reply.error.error_class, name)

    def test_what_is_not_qmp_is_told(self):
        for said in [b"hello\n", b"[1]\n", b'{"error": 1}\n', b'{"QMP": {}}\n']:
            with self.assertRaises(ProtocolError):
                Session().receive(said)


class Sockets(unittest.TestCase):
    def serve(self, *answers):
        """A server that takes a request and an fd or none, and gives the next answer."""
        ours, theirs = socket.socketpair()
        self.seen = []

        def run():
            theirs.sendall(json.dumps(GREETING).encode() + b"\r\n")
            for answer in ({"return": {}}, *answers):
                data, fds, _, _ = socket.recv_fds(theirs, 1 << 16, 8)
                request = json.loads(data)
                self.seen.append((request, fds))
                reply = dict(answer, id=request["id"])
                theirs.sendall(json.dumps(reply).encode() + b"\r\n")
            theirs.close()

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        return Client(ours, timeout=10)

    def test_an_fd_goes_along_with_its_command_and_stays_open(self):
        read, write = os.pipe()
        with self.serve({"return": {"fdset-id": 3, "fd": 9}}) as client:
            added = client.add_fd(fd=write, opaque="pipe")
        self.assertEqual(added, types.AddfdInfo(fdset_id=3, fd=9))
        request, (passed,) = self.seen[1]
        self.assertEqual(request["arguments"], {"opaque": "pipe"})
        os.write(write, b"a")
        os.write(passed, b"b")
        self.assertEqual(os.read(read, 8), b"ab")
        for fd in (read, write, passed):
            os.close(fd)

    def test_a_server_that_leaves_is_a_connection_error(self):
        with self.serve() as client:
            with self.assertRaises(ConnectionClosed) as raised:
                client.query_status()
            self.assertIsInstance(raised.exception, ConnectionError)
            self.assertEqual(list(client.events()), [])


if __name__ == "__main__":
    unittest.main()
