// What can go wrong.

/** Anything that goes wrong between client and server. */
export class QmpError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The server said what is not QMP. */
export class ProtocolError extends QmpError {}

/** The session has ended. */
export class ConnectionClosed extends QmpError {}

/** Nothing came in the time set for it. */
export class TimedOut extends QmpError {}

/** Node cannot send file descriptors over a socket. */
export class FdsUnsupported extends QmpError {
  constructor(command: string) {
    super(
      `${command} hands a file descriptor over, which Node cannot do: pass it when the server is ` +
        "started (-add-fd fd=N,set=M, then /dev/fdset/M), or use the client of another language",
    );
  }
}

/** The server refused a command, or failed at it. The session goes on. */
export class CommandError extends QmpError {
  constructor(
    /** The command. */
    readonly command: string,
    /** The kind of failure, as the server names it. */
    readonly errorClass: string,
    /** What failed and why, for people. */
    readonly desc: string,
  ) {
    super(`${command}: ${desc}`);
  }
}

/** A failure without a class of its own. */
export class GenericError extends CommandError {}
/** The command is unknown, or not allowed in this state of the session. */
export class CommandNotFound extends CommandError {}
/** The device exists but is not active. */
export class DeviceNotActive extends CommandError {}
/** No device, node or object has that name. */
export class DeviceNotFound extends CommandError {}
/** The host's KVM lacks something that the command needs. */
export class KvmMissingCap extends CommandError {}

const classes: Record<string, typeof CommandError> = {
  GenericError,
  CommandNotFound,
  DeviceNotActive,
  DeviceNotFound,
  KVMMissingCap: KvmMissingCap,
};

/** The error for an error reply. */
export function refusal(command: string, errorClass: string, desc: string): CommandError {
  return new (classes[errorClass] ?? CommandError)(command, errorClass, desc);
}
