// Runs the page's modules on what a test gives as JSON on stdin, and prints what they made of it.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { directory, instrument, transcripts, books, codes } = JSON.parse(readFileSync(0, "utf8"));
const { Client, FrameError, reconnectDelay } = await import(pathToFileURL(`${directory}/client.js`));
const { Book, decimalsOf, toText, units } = await import(pathToFileURL(`${directory}/book.js`));

function replay(steps) {
  const client = new Client(() => {});
  const book = client.subscribe(instrument, "book", 0, 0);
  return steps.map(([kind, data]) => {
    let error = false;
    let commands = [];
    try {
      if (kind === "connected") client.connected();
      else if (kind === "closed") client.closed();
      else if (kind === "frame") client.receive(data[0], 0);
      else commands = client.commands().map((text) => JSON.parse(text));
    } catch (thrown) {
      if (!(thrown instanceof FrameError)) throw thrown;
      error = true;
    }
    const { state, position, broken, digestsPassed, digestsFailed, conflated } = book;
    return { error, commands, state, position, digest: book.book.digest(), counts: [broken, digestsPassed, digestsFailed, conflated] };
  });
}

function read(update) {
  const book = new Book();
  book.apply({ ...update, flags: ["snapshot"] });
  const { bids, asks } = book.top(1000);
  const levels = [...bids, ...asks].map(({ price, ticks }) => [toText(units(price), decimalsOf(price)), `${ticks}`]);
  return { digest: book.digest(), levels };
}

console.log(JSON.stringify({
  transcripts: transcripts.map(replay),
  books: books.map(read),
  delays: codes.map((code) => reconnectDelay(code, 3, 1000, () => 0.5)),
}));
