// A typed QMP client for Sesame.
//
//   generated/     every command, type and event, from the schema
//       │
//   caller.ts      what their methods need
//       │
//   client.ts      the socket, the framing, and who waits for what

export { Client, EventStream, type EventName, type QmpEvent, type Timestamp } from "./client.js";
export * from "./errors.js";
export type { EventData } from "./generated/events.js";
export type * from "./generated/types.js";
