"""What can go wrong."""

from __future__ import annotations

from typing import Dict, Type


class QmpError(Exception):
    """Anything that goes wrong between client and server."""


class ProtocolError(QmpError):
    """The server said what is not QMP."""


class ConnectionClosed(QmpError, ConnectionError):
    """The connection ended, or was never there."""


class CommandError(QmpError):
    """The server refused a command, or failed at it.

    The subclasses are the error classes of QMP. A class that this package does not know is this
    one.
    """

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"{command}: {desc}")
        self.command = command
        """The command."""
        self.error_class = error_class
        """The kind of failure, as the server names it."""
        self.desc = desc
        """What failed and why, for people."""


class GenericError(CommandError):
    """A failure without a class of its own."""


class CommandNotFound(CommandError):
    """The command is unknown, or not allowed in this state of the session."""


class DeviceNotActive(CommandError):
    """The device exists but is not active."""


class DeviceNotFound(CommandError):
    """No device, node or object has that name."""


class KvmMissingCap(CommandError):
    """The host's KVM lacks something that the command needs."""


_CLASSES: Dict[str, Type[CommandError]] = {
    "GenericError": GenericError,
    "CommandNotFound": CommandNotFound,
    "DeviceNotActive": DeviceNotActive,
    "DeviceNotFound": DeviceNotFound,
    "KVMMissingCap": KvmMissingCap,
}


def refusal(command: str, error_class: str, desc: str) -> CommandError:
    """The exception for an error reply."""
    return _CLASSES.get(error_class, CommandError)(command, error_class, desc)
