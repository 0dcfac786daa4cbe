// Reads a record of what was said with the code that quicktype made of the published JSON Schema.
//
//   node parse.mjs MADE.cjs RECORD.json
//
// The record must come out as it went in, and one with a wrong state must be refused.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [made, path] = process.argv.slice(2);
const { toSesame, sesameToJson } = createRequire(import.meta.url)(made);
const text = await readFile(path, "utf8");
const said = JSON.parse(text);
assert.deepEqual(JSON.parse(sesameToJson(toSesame(text))), said);

said.commands["query-status"].return.status = "flying";
assert.throws(() => toSesame(JSON.stringify(said)), /status/);
console.log("done");
