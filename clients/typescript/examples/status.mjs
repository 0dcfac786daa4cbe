// Prints what a machine does, and then what happens to it: node status.mjs QMP-SOCKET
import { Client } from "sesame-qmp";

const qmp = await Client.connect(process.argv[2]);
const stream = qmp.events();
console.log(qmp.version.package, "is", (await qmp.queryStatus()).status);
for await (const event of stream) console.log(event.event, event.data);
