// What a person shows to be let in: a token, or an API key that is exchanged for one. It stays in this tab, and in no
// address: a connection gets a ticket, which is good once.

const KEPT = "depthcast.secret";
const API_KEY = "dck_";

export class AccessError extends Error {}

export class Access {
  constructor(store = sessionStorage) {
    this.store = store;
    this.secret = store.getItem(KEPT) ?? "";
    this.bought = { token: "", until: 0 }; // for the API key
    this.asked = ""; // why a token is needed, for the person; "" when none is
  }

  /** Take what was typed; "" forgets it. */
  show(secret) {
    this.secret = secret.trim();
    this.asked = "";
    this.bought.until = 0;
    if (this.secret) this.store.setItem(KEPT, this.secret);
    else this.store.removeItem(KEPT);
  }

  /** Ask for something better than what we have. */
  ask(why) {
    this.show("");
    this.asked = `${why} Paste a token, or an API key.`;
  }

  /** A token to show now; "" when we have nothing. With `fresh`, a key brings another one. */
  async token(fresh = false) {
    if (!this.secret.startsWith(API_KEY)) return this.secret;
    if (fresh || Date.now() > this.bought.until) {
      const { access_token: token, expires_in: seconds } = await this.post("/v1/token", this.secret);
      this.bought = { token, until: Date.now() + (seconds * 1000) / 2 };
    }
    return this.bought.token;
  }

  /** What a connection's address ends with. */
  async query() {
    const token = await this.token();
    return token ? `?ticket=${encodeURIComponent((await this.post("/v1/ticket", token)).ticket)}` : "";
  }

  async get(path) {
    const token = await this.token();
    return fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  }

  async post(path, bearer) {
    const answer = await fetch(path, { method: "POST", headers: { Authorization: `Bearer ${bearer}` } });
    if (answer.ok) return answer.json();
    if (answer.status === 401 || answer.status === 403) throw new AccessError("the token is wrong, or has expired");
    throw new Error(`the server answers HTTP ${answer.status}`);
  }
}
