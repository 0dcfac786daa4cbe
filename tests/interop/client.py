"""A session by QEMU's own Python client (package qemu.qmp) on the socket named as argument.

Run by tests/tests/interop.rs. Prints one line per thing seen, and ends with "done".
"""

import asyncio
import contextlib
import os
import sys
import tempfile

from qemu.qmp import ExecuteError, QMPClient


async def refused(client, command, arguments=None):
    """The class and text of an error reply."""
    try:
        await client.execute(command, arguments)
    except ExecuteError as error:
        return error.error_class, str(error)
    raise AssertionError(f"{command} was not refused")


async def main(path):
    client = QMPClient("interop")
    await client.connect(path)
    version = await client.execute("query-version")
    print("version", version["qemu"]["major"])

    status = await client.execute("query-status")
    assert status["running"] in (True, False), status
    commands = {entry["name"] for entry in await client.execute("query-commands")}
    assert {"query-status", "add-fd", "quit"} <= commands, commands
    schema = await client.execute("query-qmp-schema")
    assert any(entry["name"] == "add-fd" for entry in schema)

    kind, text = await refused(client, "no-such-command")
    assert kind == "CommandNotFound", kind
    print("refused:", text)

    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        client.send_fd_scm(file.fileno())
        added = await client.execute("add-fd", {"opaque": "from python"})
    sets = await client.execute("query-fdsets")
    assert added["fdset-id"] in [entry["fdset-id"] for entry in sets], sets
    name = f"/dev/fdset/{added['fdset-id']}"
    await client.execute(
        "blockdev-add", {"driver": "file", "node-name": "disk", "filename": name}
    )
    nodes = await client.execute("query-named-block-nodes")
    assert [node["node-name"] for node in nodes] == ["disk"], nodes
    await client.execute("blockdev-del", {"node-name": "disk"})
    print("a disk went through as an fd")

    # Twenty at once: replies find their requests by id.
    replies = await asyncio.gather(*(client.execute("query-name") for _ in range(20)))
    assert all(reply == replies[0] for reply in replies)

    with client.listener("SHUTDOWN") as shutdown:
        await client.execute("quit")
        event = await asyncio.wait_for(shutdown.get(), 10)
    assert event["data"]["reason"] == "host-qmp-quit", event
    # The server is gone; the client calls that an end of file, when it sees it first.
    with contextlib.suppress(EOFError):
        await client.disconnect()
    print("done")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    asyncio.run(main(sys.argv[1]))
