// The socket under the client: connects, reconnects with full jitter, and notices silence.

import { AccessError } from "./access.js";
import { FrameError, lastWord, reconnectDelay } from "./client.js";

const SUBPROTOCOL = "depthcast.v1.json";
const STEADY_MS = 10_000;
const GREETING_MS = 10_000;
const UNAUTHORIZED = 4401;

export class Connection {
  /** `status` is one of locked, connecting, open, waiting (until `retryAt`) and ended, with `why`. */
  constructor(url, client, access) {
    this.url = url;
    this.client = client;
    this.access = access;
    this.socket = null;
    this.failures = 0;
    this.heardAt = 0;
    this.timer = setInterval(() => this.check(), 500);
    this.open();
  }

  open() {
    this.status = "connecting";
    this.openedAt = this.heardAt = Date.now();
    const attempt = {};
    this.socket = attempt;
    this.access.query().then(
      (query) => attempt === this.socket && this.connect(query),
      (error) => (error instanceof AccessError ? this.lock(attempt, error.message) : this.lost(attempt, 1006, error.message)),
    );
  }

  /** Without a token that the server takes there is nothing to try. */
  lock(socket, why) {
    if (socket !== this.socket) return;
    this.socket = null;
    this.status = "locked";
    this.client.closed();
    this.access.ask(`${why.charAt(0).toUpperCase()}${why.slice(1)}.`);
  }

  /** A person gave another token. */
  unlock() {
    const { socket } = this;
    if (socket?.close) socket.close();
    if (this.status === "open") this.client.closed();
    this.failures = 0;
    this.open();
  }

  connect(query) {
    const socket = new WebSocket(this.url + query, SUBPROTOCOL);
    this.socket = socket;
    socket.onopen = () => {
      if (socket !== this.socket) return;
      this.status = "open";
      this.client.connected();
      this.flush();
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.heardAt = Date.now();
      try {
        this.client.receive(event.data, this.heardAt);
        this.flush();
      } catch (error) {
        if (!(error instanceof FrameError)) throw error;
        socket.close(4002, "broken frame");
        this.lost(socket, 1006, error.message);
      }
    };
    socket.onclose = (event) => this.lost(socket, event.code, event.reason);
  }

  flush() {
    if (this.status === "open") for (const command of this.client.commands()) this.socket.send(command);
  }

  lost(socket, code, reason) {
    if (socket !== this.socket) return;
    if (code === UNAUTHORIZED) {
      this.lock(socket, reason || lastWord(code));
      return;
    }
    this.socket = null;
    if (this.status === "open" && Date.now() - this.openedAt > STEADY_MS) this.failures = 0;
    const delay = reconnectDelay(code, this.failures, this.client.retryAfterMs, Math.random);
    this.failures += 1;
    this.client.closed();
    if (delay === null) {
      this.status = "ended";
      this.why = reason || lastWord(code);
      return;
    }
    this.status = "waiting";
    this.why = reason || "connection lost";
    this.retryAt = Date.now() + delay;
  }

  /** Twice a second: attempts that are due, silence, and our own pings. */
  check() {
    const now = Date.now();
    if (this.status === "waiting" && now >= this.retryAt) this.open();
    if (this.status === "connecting" && now - this.heardAt > GREETING_MS) this.abandon("no answer");
    if (this.status !== "open") return;
    const beat = Math.min(this.client.heartbeatMs, 5_000);
    if (now - this.heardAt > 2.5 * beat) this.abandon("the server is silent");
    else if (this.client.pings.size === 0 || now - Math.max(...this.client.pings.values()) > beat) {
      this.client.ping(now);
      this.flush();
    }
  }

  abandon(why) {
    const { socket } = this;
    if (socket.close) socket.close();
    this.lost(socket, 1006, why);
  }
}
