// The socket, the framing, and who waits for what.

import { type Socket, createConnection } from "node:net";
import { StringDecoder } from "node:string_decoder";
import { ConnectionClosed, ProtocolError, type QmpError, TimedOut, refusal } from "./errors.js";
import { Commands } from "./generated/commands.js";
import type { EventData } from "./generated/events.js";
import type { VersionInfo } from "./generated/types.js";

/** The events that the schema knows. */
export type EventName = keyof EventData;

/** An event of one of these names. */
export type QmpEvent<N extends EventName = EventName> = {
  [K in N]: { event: K; data: EventData[K]; timestamp: Timestamp };
}[N];

/** When something happened, by the server's clock. */
export interface Timestamp {
  seconds: number;
  microseconds: number;
}

interface Waiting {
  command: string;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** The events of some names, from when it was made on. Ends with the connection. */
export class EventStream<N extends EventName> implements AsyncIterableIterator<QmpEvent<N>> {
  #events: QmpEvent<N>[] = [];
  #takers: (() => void)[] = [];
  #ended = false;

  constructor(
    private readonly names: readonly N[],
    private readonly leave: (stream: EventStream<N>) => void,
  ) {}

  /** The next event; fails if none comes in so many milliseconds, or at all. */
  async get(timeout?: number): Promise<QmpEvent<N>> {
    const deadline = timeout === undefined ? Infinity : Date.now() + timeout;
    for (;;) {
      const event = this.#events.shift();
      if (event) return event;
      if (this.#ended) throw new ConnectionClosed("the session has ended");
      await this.#news(deadline - Date.now());
    }
  }

  async next(): Promise<IteratorResult<QmpEvent<N>, undefined>> {
    try {
      return { done: false, value: await this.get() };
    } catch (error) {
      if (error instanceof ConnectionClosed) return { done: true, value: undefined };
      throw error;
    }
  }

  /** Ends the stream; events that nobody took are gone. */
  async return(): Promise<IteratorResult<QmpEvent<N>, undefined>> {
    this.leave(this);
    this.end();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** @internal */
  offer(event: QmpEvent): void {
    if (this.names.length > 0 && !(this.names as readonly EventName[]).includes(event.event)) return;
    this.#events.push(event as QmpEvent<N>);
    this.#takers.shift()?.();
  }

  /** @internal */
  end(): void {
    this.#ended = true;
    for (const taker of this.#takers.splice(0)) taker();
  }

  #news(timeout: number): Promise<void> {
    if (timeout <= 0) return Promise.reject(new TimedOut("no event in time"));
    return new Promise((resolve, reject) => {
      const expire = () => {
        this.#takers.splice(this.#takers.indexOf(taker), 1);
        reject(new TimedOut("no event in time"));
      };
      const timer = Number.isFinite(timeout) ? setTimeout(expire, timeout) : undefined;
      const taker = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#takers.push(taker);
    });
  }
}

/** A QMP session. Every command of the schema is a method; they may run side by side. */
export class Client extends Commands {
  #socket: Socket;
  #decoder = new StringDecoder("utf8");
  #text = "";
  #lastId = 0;
  #waiting = new Map<number, Waiting>();
  #streams = new Set<EventStream<EventName>>();
  #greeted: (offered: string[]) => void = () => {};
  #why: QmpError | undefined;
  #version: VersionInfo | undefined;

  private constructor(socket: Socket) {
    super();
    this.#socket = socket;
    socket.on("data", (bytes: Buffer) => this.#receive(bytes));
    socket.on("error", (error) => this.#end(new ConnectionClosed(error.message, { cause: error })));
    socket.on("close", () => this.#end(new ConnectionClosed("the server ended the session")));
  }

  /** Connects to a monitor's unix socket and negotiates. */
  static async connect(path: string): Promise<Client> {
    const client = new Client(createConnection(path));
    const offered = await new Promise<string[]>((resolve, reject) => {
      client.#greeted = resolve;
      client.#waiting.set(0, { command: "connect", resolve: () => {}, reject });
    });
    client.#waiting.delete(0);
    await client.execute("qmp_capabilities", { enable: offered });
    return client;
  }

  /** What the server called itself in its greeting. */
  get version(): VersionInfo | undefined {
    return this.#version;
  }

  /**
   * Runs any command by name, and returns its JSON. With `oob` it overtakes the commands before
   * it, where the schema allows that.
   */
  override execute(command: string, args?: object, options: { oob?: boolean } = {}): Promise<unknown> {
    if (this.#why) return Promise.reject(new ConnectionClosed(this.#why.message));
    const id = ++this.#lastId;
    const request = { [options.oob ? "exec-oob" : "execute"]: command, arguments: args, id };
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { command, resolve, reject });
      this.#socket.write(`${JSON.stringify(request)}\n`);
    });
  }

  /** A stream of the events of these names, or of all, from now on. */
  events<N extends EventName = EventName>(...names: N[]): EventStream<N> {
    const stream = new EventStream<N>(names, (one) => this.#streams.delete(one as never));
    if (this.#why) stream.end();
    this.#streams.add(stream as never);
    return stream;
  }

  /** Ends the session. What it handed over stays with the server. */
  close(): void {
    this.#end(new ConnectionClosed("the client ended the session"));
    this.#socket.destroy();
  }

  #receive(bytes: Buffer): void {
    this.#text += this.#decoder.write(bytes);
    try {
      for (let message = this.#next(); message; message = this.#next()) this.#take(message);
    } catch (error) {
      this.#end(new ProtocolError("the server said what is not QMP", { cause: error }));
      this.#socket.destroy();
    }
  }

  /**
   * The first whole message. It is one line; with `pretty=on` several, from one that is `{` to one
   * that is `}`, both without indentation.
   */
  #next(): Record<string, unknown> | undefined {
    const pretty = /^\{\r?\n/.test(this.#text);
    const end = pretty ? this.#text.search(/\n\}\r?\n/) + 1 : 0;
    if (pretty && end === 0) return undefined;
    const line = this.#text.indexOf("\n", end);
    if (line < 0) return undefined;
    const message = this.#text.slice(0, line);
    this.#text = this.#text.slice(line + 1);
    return JSON.parse(message) as Record<string, unknown>;
  }

  #take(message: Record<string, unknown>): void {
    if (typeof message["event"] === "string") {
      for (const stream of this.#streams) stream.offer(message as never);
      return;
    }
    if (message["QMP"]) {
      const greeting = message["QMP"] as { version: VersionInfo; capabilities: string[] };
      this.#version = greeting.version;
      this.#greeted(greeting.capabilities);
      return;
    }
    const id = message["id"] as number;
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    const error = message["error"] as { class: string; desc: string } | undefined;
    if (error) waiting?.reject(refusal(waiting.command, error.class, error.desc));
    else waiting?.resolve(message["return"]);
  }

  #end(why: QmpError): void {
    if (this.#why) return;
    this.#why = why;
    for (const waiting of this.#waiting.values()) waiting.reject(why);
    this.#waiting.clear();
    for (const stream of this.#streams) stream.end();
  }
}
