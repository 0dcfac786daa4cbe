// What the generated methods need: something that runs a command.

import { FdsUnsupported } from "./errors.js";

export abstract class Caller {
  /** Runs any command by name, and returns its JSON. */
  abstract execute(command: string, args?: object, options?: { oob?: boolean }): Promise<unknown>;

  protected async run<T>(command: string, args?: object): Promise<T> {
    return (await this.execute(command, args)) as T;
  }

  protected handOver(command: string, _args: object): Promise<never> {
    return Promise.reject(new FdsUnsupported(command));
  }
}
