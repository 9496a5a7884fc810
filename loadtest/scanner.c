/* Walks one WebSocket frame of depthcast.v1.proto: counts the updates, and how late each was. */
#include <stddef.h>
#include <stdint.h>

enum { BITS = 7, TS_EVENT = 0x31, TS_RECEIVED_AFTER = 0x38 };
static const uint64_t VALUE_MAX = ((uint64_t)1 << 40) - 1;

/* Reads a varint at *at; 0 when it does not end before `end`. */
static int varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
  uint64_t result = 0;
  for (int shift = 0; *at < end && shift < 64; shift += 7) {
    uint8_t byte = *(*at)++;
    result |= (uint64_t)(byte & 0x7F) << shift;
    if (byte < 0x80) { *value = result; return 1; }
  }
  return 0;
}

/* ts_received_ns of an update, 0 without one; -1 when it is not protobuf. */
static int64_t due_ns(const uint8_t *at, const uint8_t *end) {
  uint64_t tag, length, event = 0;
  while (at < end) {
    if (!varint(&at, end, &tag)) return -1;
    if (tag == TS_EVENT) {
      if (end - at < 8) return -1;
      for (int i = 7; i >= 0; i--) event = event << 8 | at[i];
      at += 8;
      continue;
    }
    if (tag == TS_RECEIVED_AFTER) {
      if (!varint(&at, end, &length)) return -1;
      return (int64_t)(event + (length >> 1 ^ -(length & 1)));
    }
    switch (tag & 7) {
      case 0: if (!varint(&at, end, &length)) return -1; continue;
      case 1: length = 8; break;
      case 2: if (!varint(&at, end, &length)) return -1; break;
      case 5: length = 4; break;
      default: return -1;
    }
    if ((uint64_t)(end - at) < length) return -1;
    at += length;
  }
  return (int64_t)event;
}

static void record(uint64_t *counts, int64_t buckets, int64_t late_ns) {
  uint64_t value = late_ns > 0 ? (uint64_t)late_ns : 0;
  if (value > counts[buckets]) counts[buckets] = value;
  if (value > VALUE_MAX) value = VALUE_MAX;
  int length = value ? 64 - __builtin_clzll(value) : 0, shift = length > BITS + 1 ? length - BITS - 1 : 0;
  counts[((uint64_t)shift << BITS) + (value >> shift)]++;
}

/* Updates of these kinds (a bit for each of book, trades, bbo) in the frame; -1 when it is no sequence of chunks.
 * `counts` may be NULL: then nothing is measured. */
int64_t scan(const uint8_t *frame, int64_t size, int64_t now_ns, uint64_t *counts, int64_t buckets, int64_t kinds) {
  const uint8_t *at = frame, *end = frame + size;
  int64_t updates = 0;
  while (at < end) {
    uint64_t length, inner;
    at++; /* the tag of Frame.chunks */
    if (!varint(&at, end, &length) || length == 0 || (uint64_t)(end - at) < length) return -1;
    const uint8_t *body = at;
    at += length;
    int kind = *body == 0x0A ? 1 : *body == 0x12 ? 2 : *body == 0x1A ? 4 : 0;
    body++;
    if (!(kind & kinds)) continue;
    updates++;
    if (!counts) continue;
    int64_t due = varint(&body, at, &inner) ? due_ns(body, at) : -1;
    if (due < 0) return -1;
    record(counts, buckets, now_ns - due);
  }
  return updates;
}
