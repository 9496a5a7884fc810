// A WebSocket client on strings: it does what it reads on stdin and writes what happens to stdout, one line each, fields
// separated by tabs, payloads in base64. The first argument is the library's path; without one, node's own WebSocket.
import { createInterface } from "node:readline";

const library = process.argv[2];
const Socket = library ? (await import(library)).WebSocket : WebSocket;
let socket;

const say = (...fields) => process.stdout.write(fields.join("\t") + "\n");
const base64 = (data) => Buffer.from(data).toString("base64");
const wishes = {
  open(url, protocol) {
    socket = new Socket(url, protocol);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => say("open", socket.protocol);
    socket.onmessage = ({ data }) => say(typeof data === "string" ? "text" : "binary", base64(data));
    socket.onclose = ({ code, reason }) => say("closed", code, base64(reason));
    socket.onerror = (event) => process.stderr.write(`error: ${event.message}\n`);
  },
  text: (data) => socket.send(Buffer.from(data, "base64").toString()),
  binary: (data) => socket.send(Buffer.from(data, "base64")),
  close: () => socket.close(1000),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [wish, ...fields] = line.split("\t");
  wishes[wish](...fields);
}
process.exit();
