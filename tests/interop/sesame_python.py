"""Sessions by Sesame's own Python client: sesame_python.py plain|asyncio|guest SOCKET.

Run by tests/tests/clients.rs and clients_guest.rs. Prints one line per thing seen; the last is
"done".
"""

import asyncio
import sys
import tempfile

from sesame_qmp import (
    AsyncClient,
    Client,
    CommandNotFound,
    ConnectionClosed,
    DeviceNotFound,
    GenericError,
    __version__,
    events,
    types,
)


def disk():
    """A file to be a disk."""
    file = tempfile.TemporaryFile()
    file.truncate(1 << 20)
    return file


def refused(kind, function, *arguments, **named):
    """Calls what must be refused with this class of error."""
    try:
        function(*arguments, **named)
    except kind as error:
        assert type(error) is kind, error
        return error.desc
    raise AssertionError("nothing was refused")


def plain(path):
    with Client.connect(path, timeout=30) as qmp:
        assert qmp.version == qmp.query_version(), qmp.version
        assert qmp.version.package == f"sesame-{__version__}", qmp.version
        assert isinstance(qmp.query_status(), types.StatusInfo)
        assert {"add-fd", "quit"} <= {one.name for one in qmp.query_commands()}
        schema = qmp.query_qmp_schema()
        commands = [one for one in schema if isinstance(one, types.SchemaInfoCommand)]
        assert "add-fd" in {one.name for one in commands}

        print("refused:", refused(CommandNotFound, qmp.execute, "no-such-command"))
        print("refused:", refused(DeviceNotFound, qmp.device_del, "d9"))
        print("refused:", refused(GenericError, qmp.closefd, "nobody"))

        with disk() as file:
            qmp.getfd("disk", fd=file, kind="file")
            added = qmp.add_fd(fd=file.fileno(), opaque="from python")
        (fdset,) = [one for one in qmp.query_fdsets() if one.fdset_id == added.fdset_id]
        assert fdset.fds == [types.FdsetFdInfo(fd=added.fd, opaque="from python")], fdset
        file_node = types.BlockdevOptionsFile(filename="fd:disk", node_name="file")
        qmp.blockdev_add(types.BlockdevOptionsRaw(file=file_node, node_name="disk", read_only=True))
        names = [node.node_name for node in qmp.query_named_block_nodes()]
        assert sorted(names) == ["disk", "file"], names
        qmp.blockdev_del("disk")
        print("a disk went through as an fd")

        with qmp.events() as everything, qmp.events(events.Shutdown) as shutdown:
            qmp.quit()
            assert shutdown.get(timeout=30).reason == "host-qmp-quit"
            # Ends with the connection.
            assert [type(one) for one in everything][-1] is events.Shutdown
        refused_by = type_of_error(qmp.query_status)
        assert issubclass(refused_by, ConnectionClosed), refused_by


def type_of_error(function):
    try:
        function()
    except Exception as error:
        return type(error)
    return None


async def in_asyncio(path):
    async with await AsyncClient.connect(path) as qmp:
        assert qmp.version == await qmp.query_version()
        # Twenty at once: replies find their requests by id.
        replies = await asyncio.gather(*(qmp.query_name() for _ in range(20)))
        assert all(reply == replies[0] for reply in replies)
        try:
            await qmp.device_del("d9")
            raise AssertionError("nothing was refused")
        except DeviceNotFound as error:
            print("refused:", error.desc)

        # Fds find their commands, too.
        async def hand_in(at):
            with disk() as file:
                await qmp.getfd(f"disk{at}", fd=file)
            node = types.BlockdevOptionsFile(filename=f"fd:disk{at}", node_name=f"node{at}")
            await qmp.blockdev_add(node)

        await asyncio.gather(*(hand_in(at) for at in range(8)))
        nodes = {node.node_name for node in await qmp.query_named_block_nodes()}
        assert nodes == {f"node{at}" for at in range(8)}, nodes
        print("eight disks went through as fds")

        everything = qmp.events()
        await qmp.quit()
        seen = [event async for event in everything]
        assert seen[-1] == events.Shutdown(guest=False, reason="host-qmp-quit"), seen


def guest(path):
    """Hands a disk, its standard input, to a machine that waits; lets it run, and sees it end."""
    with Client.connect(path, timeout=60) as qmp:
        qmp.getfd("disk", fd=sys.stdin)
        qmp.blockdev_add(types.BlockdevOptionsFile(filename="fd:disk", node_name="data"))
        disk_device = types.DeviceOptionsVirtioBlkPci(drive="data", serial="data", bus="port0")
        qmp.device_add(disk_device)
        running = qmp.events(events.Resume)
        ending = qmp.events(events.Powerdown, events.Shutdown)
        qmp.cont()
        running.get(timeout=60)
        assert qmp.query_status() == types.StatusInfo(running=True, status="running")
        print("running", flush=True)
        assert isinstance(ending.get(timeout=600), events.Powerdown)
        shutdown = ending.get(timeout=600)
        assert shutdown == events.Shutdown(guest=True, reason="guest-shutdown"), shutdown


if __name__ == "__main__":
    how, path = sys.argv[1:3]
    if how == "asyncio":
        asyncio.run(in_asyncio(path))
    else:
        {"plain": plain, "guest": guest}[how](path)
    print("done")
