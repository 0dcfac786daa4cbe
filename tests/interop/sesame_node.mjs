// Sessions by Sesame's own TypeScript client, built: sesame_node.mjs PACKAGE plain|guest DISK SOCKET.
//
// Run by tests/tests/clients.rs and clients_guest.rs. Node passes no fds: DISK
// was handed in with -add-fd. Prints one line per thing seen; the last is "done".

import assert from "node:assert/strict";

const [, , packagePath, how, filename, path] = process.argv;
const { Client, CommandNotFound, ConnectionClosed, DeviceNotFound, FdsUnsupported, GenericError, TimedOut } =
  await import(`${packagePath}/dist/index.js`);

async function refused(kind, promise) {
  const error = await promise.then(
    () => assert.fail("nothing was refused"),
    (error) => error,
  );
  assert.equal(error.constructor, kind, error);
  console.log(`${error.name}: ${error.desc ?? error.message}`);
}

async function plain(qmp) {
  assert.deepEqual(await qmp.queryVersion(), qmp.version);
  // Twenty at once: replies find their requests by id.
  const replies = await Promise.all(Array.from({ length: 20 }, () => qmp.queryStatus()));
  assert.equal(typeof replies[19].running, "boolean");
  const schema = await qmp.queryQmpSchema();
  assert(schema.some((one) => one["meta-type"] === "command" && one.name === "add-fd"));

  await refused(CommandNotFound, qmp.execute("no-such-command"));
  await refused(DeviceNotFound, qmp.deviceDel({ id: "d9" }));
  await refused(GenericError, qmp.closefd({ fdname: "nobody" }));
  await refused(FdsUnsupported, qmp.getfd({ fdname: "disk" }));
  await refused(TimedOut, qmp.events("STOP").get(10));

  await qmp.blockdevAdd({ driver: "raw", "node-name": "disk", file: { driver: "file", filename } });
  const nodes = await qmp.queryNamedBlockNodes();
  assert(nodes.some((node) => node["node-name"] === "disk"), nodes);
  await qmp.blockdevDel({ "node-name": "disk" });

  const everything = qmp.events();
  const shutdown = qmp.events("SHUTDOWN");
  await qmp.quit();
  assert.equal((await shutdown.get(30_000)).data.reason, "host-qmp-quit");
  const seen = [];
  for await (const event of everything) seen.push(event.event);
  assert.equal(seen.at(-1), "SHUTDOWN");
  await refused(ConnectionClosed, qmp.queryStatus());
}

async function guest(qmp) {
  await qmp.blockdevAdd({ driver: "file", "node-name": "data", filename });
  await qmp.deviceAdd({ driver: "virtio-blk-pci", drive: "data", serial: "data", bus: "port0" });
  const running = qmp.events("RESUME");
  const ending = qmp.events("POWERDOWN", "SHUTDOWN");
  await qmp.cont();
  await running.get(60_000);
  console.log("running");
  assert.equal((await ending.get(600_000)).event, "POWERDOWN");
  const { data } = await ending.get(600_000);
  assert.deepEqual(data, { guest: true, reason: "guest-shutdown" });
}

const qmp = await Client.connect(path);
await { plain, guest }[how](qmp);
console.log("done");
