// The protocol without a socket: lines in, state and events out, commands out. The rules are those of the Python client
// (services/client/subscription.py): a book that is called live is the server's book, or a digest says so.

import { Book } from "./book.js";

export const REPAIRS_MAX = 5;
const TERMINAL = { 1000: "the server ended the connection", 1008: "the server's policy forbids this", 4400: "too many bad commands",
  4401: "the token is missing or wrong", 4403: "the token does not allow this", 4429: "too many connections of this client" };

export class FrameError extends Error {}

/** Milliseconds until the next attempt, or null when coming back would not help. Full jitter; a hint is waited for in full. */
export function reconnectDelay(code, failures, hintMs, random) {
  if (code in TERMINAL || (code >= 4400 && code < 4500)) return null;
  const bound = Math.min(30_000, 250 * 2 ** Math.min(failures, 16));
  return Math.round(hintMs + random() * Math.max(bound, hintMs / 2));
}

export const lastWord = (code) => TERMINAL[code] ?? `the server closed with ${code}`;

export class Subscription {
  constructor(instrument, channel, depth = 0, intervalMs = 0) {
    Object.assign(this, { instrument, channel, depth, intervalMs });
    this.stream = 0;
    this.state = "waiting"; // live, gapped, stale
    this.why = "";
    this.position = null; // {epoch, seq} up to which the chain is proven
    this.book = new Book();
    this.damaged = false;
    this.repairs = 0;
    this.broken = 0;
    this.conflated = 0;
    this.digestsPassed = 0;
    this.digestsFailed = 0;
  }

  become(state, why = "") {
    this.state = state;
    this.why = why;
  }

  started(reply) {
    this.stream = reply.stream;
    this.damaged = false;
    if (reply.state !== "synced") this.become(reply.state, "so says the server");
    else if (reply.resumed) this.become("stale", "resuming");
    if (!reply.resumed && this.channel === "book") this.position = null;
  }

  disconnected() {
    this.stream = 0;
    this.repairs = 0;
    if (this.state === "live") this.become("stale", "connection lost");
  }

  /** Apply an update. Returns whether it was new and fit. */
  receive(update) {
    const have = this.position;
    const snapshot = update.flags.includes("snapshot");
    if (have && !snapshot && update.epoch === have.epoch && update.seq <= have.seq) return false;
    const continues = have && update.epoch === have.epoch && update.prev_seq === have.seq;
    if (this.channel === "book") {
      if (!snapshot && !continues) {
        this.broken += 1;
        this.damage(`update ${update.seq} does not continue the book`);
        return false;
      }
      this.book.apply(update);
    } else if (have && !continues && !snapshot && !(update.epoch !== have.epoch && update.prev_seq === 0)) {
      this.broken += 1;
    }
    this.position = { epoch: update.epoch, seq: update.seq };
    if (update.flags.includes("conflated")) this.conflated += 1;
    if (update.flags.includes("gapped")) this.become("gapped", "the book lost continuity");
    else if (update.flags.includes("stale")) this.become("stale", "the source is silent or late");
    else if (snapshot || this.channel !== "book" || this.state !== "gapped") this.become("live");
    return true;
  }

  digest(message) {
    if (!this.position || message.epoch !== this.position.epoch || message.seq !== this.position.seq) return;
    if (this.book.digest() === message.crc32) {
      this.digestsPassed += 1;
      this.repairs = 0;
    } else {
      this.digestsFailed += 1;
      this.book = new Book();
      this.damage(`digest of ${message.seq} differs`);
    }
  }

  notice(message) {
    if (message.code === "skipped" && this.channel === "trades") this.position = { epoch: message.epoch, seq: message.to_seq };
    else if (message.code === "gap") this.become("gapped", message.reason.replaceAll("_", " "));
    else if (message.code === "stale" && this.state === "live") this.become("stale", "the source is silent or late");
    else if (message.code === "recovered" && this.state === "stale" && this.position) this.become("live");
  }

  damage(why) {
    this.position = null;
    this.damaged = true;
    this.repairs += 1;
    this.become("gapped", why);
    if (this.repairs > REPAIRS_MAX) throw new FrameError(`${this.instrument}: ${why}, again and again`);
  }
}

/** All subscriptions over one connection after the other. Calls `on(kind, subscription, message)` for what happens. */
export class Client {
  constructor(on) {
    this.on = on;
    this.subscriptions = [];
    this.outgoing = [];
    this.up = false;
    this.lastId = 0;
    this.retryAfterMs = 0;
    this.heartbeatMs = 15_000;
    this.forget();
  }

  forget() {
    this.streams = new Map();
    this.asked = new Map();
    this.pings = new Map();
    this.outgoing.length = 0;
  }

  subscribe(instrument, channel, depth, intervalMs) {
    const subscription = new Subscription(instrument, channel, depth, intervalMs);
    this.subscriptions.push(subscription);
    if (this.up) this.ask(subscription);
    return subscription;
  }

  unsubscribe(subscription) {
    this.subscriptions = this.subscriptions.filter((other) => other !== subscription);
    this.leave(subscription);
  }

  /** Commands to send now, as text. */
  commands() {
    return this.outgoing.splice(0).map((command) => JSON.stringify(command));
  }

  connected() {
    this.up = true;
    this.retryAfterMs = 0;
    for (const subscription of this.subscriptions) this.ask(subscription);
  }

  closed() {
    this.up = false;
    this.forget();
    for (const subscription of this.subscriptions) subscription.disconnected();
  }

  /** Show another token: the old one ends soon. */
  auth(token) {
    this.send({ type: "auth", token });
  }

  /** Browsers hide the server's pings, so the page asks for a sign of life itself. */
  ping(nowMs) {
    this.pings.set(this.send({ type: "ping" }), nowMs);
  }

  receive(frame, nowMs) {
    for (const line of frame.split("\n")) {
      if (line) this.message(parse(line), nowMs);
    }
  }

  message(message, nowMs) {
    const subscription = this.streams.get(message.stream);
    switch (message.type) {
      case "book":
      case "trades":
        if (subscription?.receive(message)) this.on(message.type, subscription, message);
        break;
      case "digest":
        subscription?.digest(message);
        break;
      case "notice":
        if (message.code === "shutdown") this.retryAfterMs = message.retry_after_ms;
        subscription?.notice(message);
        this.on("notice", subscription, message);
        break;
      case "welcome":
        this.heartbeatMs = message.heartbeat_interval_ms;
        this.on("welcome", undefined, message);
        break;
      case "subscribed":
        this.started(message);
        break;
      case "pong":
        this.on("pong", undefined, { roundTripMs: nowMs - this.pings.get(message.id) });
        this.pings.delete(message.id);
        break;
      case "error":
        this.on("error", this.asked.get(message.id), message);
        this.asked.delete(message.id);
        break;
    }
    if (subscription?.damaged) {
      this.leave(subscription);
      this.ask(subscription);
    }
  }

  started(reply) {
    const subscription = this.asked.get(reply.id);
    this.asked.delete(reply.id);
    if (!subscription) return;
    if (!this.subscriptions.includes(subscription)) {
      subscription.stream = reply.stream;
      this.leave(subscription);
      return;
    }
    this.streams.set(reply.stream, subscription);
    subscription.started(reply);
  }

  ask(subscription) {
    const command = { type: "subscribe", instrument: subscription.instrument, channel: subscription.channel };
    if (subscription.channel === "book") Object.assign(command, { depth: subscription.depth, interval_ms: subscription.intervalMs });
    if (subscription.position) command.resume = subscription.position;
    this.asked.set(this.send(command), subscription);
  }

  leave(subscription) {
    const { stream } = subscription;
    subscription.stream = 0;
    subscription.damaged = false;
    if (stream) {
      this.streams.delete(stream);
      this.send({ type: "unsubscribe", stream });
    }
  }

  send(command) {
    this.lastId += 1;
    this.outgoing.push({ ...command, id: this.lastId });
    return this.lastId;
  }
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new FrameError("a line that is not JSON");
  }
}
