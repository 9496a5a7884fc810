// The order book in the browser. Prices and sizes stay decimal text or BigInt: a JavaScript number is exact to 2^53 only.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

/** CRC-32 (ISO-HDLC, as zlib) of ASCII text, unsigned. */
export function crc32(text) {
  let crc = 0xffffffff;
  for (let i = 0; i < text.length; i += 1) crc = CRC_TABLE[(crc ^ text.charCodeAt(i)) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Decimal text of fixed decimals as a count of its last digit: "61.50" is 6150n. */
export const units = (text) => BigInt(text.replace(".", ""));

/** The text of such a count: toText(6150n, 2) is "61.50". */
export function toText(value, decimals) {
  const sign = value < 0n ? "-" : "";
  const digits = (value < 0n ? -value : value).toString().padStart(decimals + 1, "0");
  return decimals ? `${sign}${digits.slice(0, -decimals)}.${digits.slice(-decimals)}` : sign + digits;
}

export const decimalsOf = (text) => (text.includes(".") ? text.length - text.indexOf(".") - 1 : 0);

const ascending = (a, b) => (a.ticks < b.ticks ? -1 : a.ticks > b.ticks ? 1 : 0);

/** What a snapshot and its deltas add up to. A level is {price, size, ticks, lots}. */
export class Book {
  constructor() {
    this.bids = new Map();
    this.asks = new Map();
  }

  /** Apply a snapshot (replaces) or a delta (absolute sizes, zero removes). The caller has checked the chain. */
  apply(update) {
    if (update.flags.includes("snapshot")) {
      this.bids.clear();
      this.asks.clear();
    }
    for (const [side, levels] of [[this.bids, update.bids], [this.asks, update.asks]]) {
      for (const [price, size] of levels) {
        const lots = units(size);
        if (lots === 0n) side.delete(price);
        else side.set(price, { price, size, ticks: units(price), lots });
      }
    }
  }

  /** The best levels of each side, best first. */
  top(depth) {
    const bids = [...this.bids.values()].sort((a, b) => ascending(b, a)).slice(0, depth);
    const asks = [...this.asks.values()].sort(ascending).slice(0, depth);
    return { bids, asks };
  }

  /** CRC-32 of the top 25 levels, `bidTicks:bidLots:askTicks:askLots:...`, interleaved while both sides last. */
  digest() {
    const { bids, asks } = this.top(25);
    const parts = [];
    for (let i = 0; i < Math.max(bids.length, asks.length); i += 1) {
      for (const level of [bids[i], asks[i]]) if (level) parts.push(`${level.ticks}:${level.lots}`);
    }
    return crc32(parts.join(":"));
  }
}
