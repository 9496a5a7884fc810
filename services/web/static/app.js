// The page: one instrument's ladder and trades, and how far they can be trusted.

import { Access } from "./access.js";
import { decimalsOf, toText, units } from "./book.js";
import { Client } from "./client.js";
import { Connection } from "./connection.js";

const ROWS = 15;
const STREAM_DEPTH = 50; // the digest covers 25 levels
const TRADES = 40;
const PAINT_MS = 100;
const WINDOW_MS = 5_000;
const SPARK_MS = 60_000;
const SPARK_EVERY_MS = 250;
const DAY_MS = 86_400_000;
const $ = (id) => document.getElementById(id);

const access = new Access();
const client = new Client(happened);
let book = null;
let trades = null;
let tape = [];
let arrivals = [];
let latencies = [];
let mids = []; // [time, mid price as a number: only to be drawn]
let updatedAt = 0;
let refusal = "";
let roundTripMs = null;
let dirty = true;

// ---- from the stream

function happened(kind, subscription, message) {
  dirty = true;
  if (kind === "book" && subscription === book) {
    updatedAt = performance.now();
    arrivals.push(updatedAt);
    if (!message.flags.includes("snapshot")) latencies.push([updatedAt, nowMs() - Number(message.ts_published_ns) / 1e6]);
  } else if (kind === "trades" && subscription === trades) {
    const fresh = message.trades.map((trade) => ({ ...trade }));
    tape = [...fresh.reverse(), ...(message.flags.includes("snapshot") ? [] : tape)].slice(0, TRADES);
  } else if (kind === "error") {
    refusal = message.message;
  } else if (kind === "notice" && message.code === "auth_expiring") {
    renew(Math.round(message.retry_after_ms / 1000));
  } else if (kind === "pong") {
    roundTripMs = message.roundTripMs;
  }
}

/** The token ends: an API key brings the next one, a person is asked for it. */
async function renew(seconds) {
  const before = access.secret;
  const token = await access.token(true).catch(() => "");
  if (token && token !== before) {
    client.auth(token);
    connection.flush();
  } else access.asked = `The token expires in ${seconds} s. Paste another one, or an API key.`;
}

/** Finer than Date.now(): fractions of a millisecond matter here. */
const nowMs = () => performance.timeOrigin + performance.now();

function choose(instrument) {
  if (book?.instrument === instrument) return;
  for (const old of [book, trades]) if (old) client.unsubscribe(old);
  [tape, arrivals, latencies, mids, updatedAt, refusal] = [[], [], [], [], 0, ""];
  book = client.subscribe(instrument, "book", STREAM_DEPTH, 0);
  trades = client.subscribe(instrument, "trades");
  connection.flush();
  $("instrument").value = instrument;
  document.title = `${instrument} · depthcast`;
  dirty = true;
}

// ---- instruments

let known = [];

async function loadInstruments() {
  try {
    const answer = await access.get("/v1/instruments");
    if (answer.status === 401 && !access.asked) {
      access.ask(access.secret ? "The token is wrong, or has expired." : "This server asks who you are.");
    }
    if (answer.ok) known = (await answer.json()).instruments;
  } catch {
    return; // the connection line says that the server is away
  }
  const list = $("instruments");
  if (list.childElementCount !== known.length) {
    list.replaceChildren(...known.map(({ instrument }) => Object.assign(document.createElement("option"), { value: instrument })));
    $("count").textContent = `${known.length} instruments`;
  }
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (!book && known.length) choose(wanted || (known.find((item) => item.instrument.includes("BTCUSDT")) ?? known[0]).instrument);
}

// ---- to the screen

function rows(parent, className, count, cells) {
  return Array.from({ length: count }, () => {
    const row = document.createElement("div");
    row.className = className;
    const parts = cells.map((name) => Object.assign(document.createElement("span"), { className: name }));
    row.append(...parts);
    parent.append(row);
    return { row, ...Object.fromEntries(cells.map((name, i) => [name, parts[i]])), shown: "" };
  });
}

const LEVEL = ["bar", "price", "size", "total"];
const askRows = rows($("asks"), "level ask", ROWS, LEVEL).reverse();
const bidRows = rows($("bids"), "level bid", ROWS, LEVEL);
const tapeRows = rows($("tape"), "trade", TRADES, ["price", "size", "time"]);

function paintSide(target, levels, deepest) {
  let total = 0n;
  target.forEach((view, i) => {
    const level = levels[i];
    total += level?.lots ?? 0n;
    const share = level ? Number((level.lots * 1000n) / deepest.size) / 1000 : 0;
    const depth = level ? Number((total * 1000n) / deepest.total) / 1000 : 0;
    const shown = level ? `${level.price} ${level.size} ${share} ${depth}` : "";
    if (shown === view.shown) return;
    if (level && view.price.textContent === level.price && view.size.textContent !== level.size) flash(view.row);
    view.shown = shown;
    view.price.textContent = level?.price ?? "";
    view.size.textContent = level?.size ?? "";
    view.total.textContent = level ? toText(total, decimalsOf(level.size)) : "";
    view.row.style.setProperty("--share", share);
    view.row.style.setProperty("--depth", depth);
  });
}

/** Two equal animations take turns: a new name restarts it without a forced layout. */
function flash(row) {
  const even = row.classList.contains("even");
  row.classList.toggle("odd", even);
  row.classList.toggle("even", !even);
}

function paintBook() {
  const { bids, asks } = book.book.top(ROWS);
  const sum = (levels) => levels.reduce((total, level) => total + level.lots, 0n);
  const largest = [...bids, ...asks].reduce((most, { lots }) => (lots > most ? lots : most), 1n);
  const total = [sum(bids), sum(asks), 1n].reduce((most, lots) => (lots > most ? lots : most));
  paintSide(askRows, asks, { size: largest, total });
  paintSide(bidRows, bids, { size: largest, total });
  if (bids.length && asks.length) {
    const decimals = decimalsOf(bids[0].price);
    const spread = asks[0].ticks - bids[0].ticks;
    $("mid").textContent = toText((asks[0].ticks + bids[0].ticks) * 5n, decimals + 1);
    const points = (Number(spread) / Number(asks[0].ticks + bids[0].ticks)) * 20_000;
    $("spread").textContent = `${toText(spread, decimals)}  (${points.toFixed(points < 1 ? 3 : 1)} bp)`;
    $("spread").classList.toggle("bad", spread <= 0n);
    const now = performance.now();
    if (book.state === "live" && now - (mids.at(-1)?.[0] ?? 0) > SPARK_EVERY_MS) {
      mids.push([now, Number($("mid").textContent)]);
    }
  } else {
    $("mid").textContent = "–";
    $("spread").textContent = "–";
  }
}

/** The mid price of the last minute. */
function paintSpark() {
  const start = performance.now() - SPARK_MS;
  mids = mids.filter(([at]) => at > start);
  const prices = mids.map(([, price]) => price);
  const [low, high] = [Math.min(...prices), Math.max(...prices)];
  const points = mids.map(([at, price]) => `${((at - start) / SPARK_MS) * 200},${38 - ((price - low) / (high - low || 1)) * 36}`);
  $("spark").setAttribute("points", points.join(" "));
  $("spark").setAttribute("class", prices.at(-1) >= prices[0] ? "up" : "down");
}

function paintTape() {
  tapeRows.forEach((view, i) => {
    const trade = tape[i];
    view.row.className = `trade ${trade?.side ?? ""}`;
    view.price.textContent = trade?.price ?? "";
    view.size.textContent = trade?.size ?? "";
    view.time.textContent = trade ? clockTime(trade.ts_event_ns) : "";
  });
  const last = tape[0];
  $("last").textContent = last ? last.price : "–";
  $("last").className = `value ${last?.side ?? ""}`;
}

function clockTime(nanoseconds) {
  const ms = Number(units(nanoseconds) / 1_000_000n) % DAY_MS;
  return new Date(ms).toISOString().slice(11, 23);
}

function paintFigures() {
  const now = performance.now();
  arrivals = arrivals.filter((at) => at > now - WINDOW_MS);
  latencies = latencies.filter(([at]) => at > now - WINDOW_MS);
  $("rate").textContent = `${(arrivals.length / (WINDOW_MS / 1000)).toFixed(1)} /s`;
  $("age").textContent = updatedAt ? `${((now - updatedAt) / 1000).toFixed(1)} s` : "–";
  $("age").classList.toggle("bad", updatedAt > 0 && now - updatedAt > 5_000);
  $("latency").textContent = latencyText();
  $("trip").textContent = roundTripMs === null ? "" : `round trip ${roundTripMs.toFixed(0)} ms`;
  $("digest").textContent = digestText();
  $("digest").className = `value ${book?.digestsFailed ? "bad" : book?.digestsPassed ? "good" : ""}`;
  $("health").textContent = book ? `${book.broken} broken · ${book.conflated} conflated` : "";
}

function latencyText() {
  if (!latencies.length) return "–";
  const sorted = latencies.map(([, ms]) => ms).sort((a, b) => a - b);
  if (sorted[0] < -1) return "server clock offset unknown";
  return `${Math.max(0, sorted[sorted.length >> 1]).toFixed(1)} ms`;
}

function digestText() {
  if (!book) return "–";
  if (book.digestsFailed) return `${book.digestsFailed} failed, ${book.digestsPassed} ok`;
  return book.digestsPassed ? `${book.digestsPassed} ok` : "none yet";
}

function paintState() {
  const [pill, text, banner] = status();
  $("state").className = `pill ${pill}`;
  $("state").textContent = text;
  $("banner").textContent = access.asked ? "" : banner;
  $("banner").hidden = !banner || access.asked !== "";
  $("asked").textContent = access.asked;
  $("access").hidden = !access.asked;
  document.body.classList.toggle("degraded", text !== "live");
}

/** [style, word, what a person should know]. */
function status() {
  if (connection.status === "locked") return ["gapped", "locked", access.asked];
  if (connection.status === "ended") return ["gapped", "closed", `${connection.why}. Reload the page when that is mended.`];
  if (connection.status === "waiting") {
    const seconds = Math.max(0, Math.ceil((connection.retryAt - Date.now()) / 1000));
    return ["stale", "offline", `${sentence(connection.why)}, reconnecting in ${seconds} s. The book below is old.`];
  }
  if (connection.status === "connecting") return ["stale", "connecting", "Connecting …"];
  if (refusal) return ["gapped", "refused", sentence(refusal)];
  if (!book) return ["waiting", "waiting", "No instrument yet: waiting for the first tick."];
  const banners = {
    live: "",
    waiting: "Waiting for the first book of this instrument.",
    gapped: `Not live: ${book.why}. Waiting for a snapshot.`,
    stale: `Not live: ${book.why}.`,
  };
  return [book.state, book.state, banners[book.state]];
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

let paintedAt = 0;

function frame(now) {
  requestAnimationFrame(frame);
  if (now - paintedAt < PAINT_MS) return;
  paintedAt = now;
  if (dirty && book) {
    paintBook();
    paintTape();
    paintSpark();
    dirty = false;
  }
  paintFigures();
  paintState();
}

const connection = new Connection(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/stream`, client, access);

$("instrument").addEventListener("change", (event) => {
  const wanted = event.target.value.trim();
  if (wanted) location.hash = encodeURIComponent(wanted);
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  access.show($("secret").value);
  $("secret").value = "";
  connection.unlock();
  loadInstruments();
});
$("instrument").addEventListener("focus", (event) => event.target.select());
addEventListener("hashchange", () => choose(decodeURIComponent(location.hash.slice(1))));
loadInstruments();
setInterval(loadInstruments, 3_000);
requestAnimationFrame(frame);
