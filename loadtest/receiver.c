/* The receiving end of many WebSocket connections of depthcast.v1.proto: reads sockets, walks frames, counts the updates
 * and how late each was. Python gets what it must: control frames, ends, and the frames of clients that are kept. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BITS = 7, VALUE_BITS = 40, BUCKETS = (VALUE_BITS - BITS + 1) << BITS }; /* as loadtest/histogram.py has them */
enum { TS_EVENT = 0x31, TS_RECEIVED_AFTER = 0x38 };
enum { OP_BINARY = 2, ENDED = -1, BROKEN = -2 };
enum { READ_MAX = 1 << 17, FRAME_MAX = 1 << 26, EVENTS = 256, ROUNDS = 4 };     /* of a pump: about 3 ms at most */

typedef struct {
  uint64_t updates, frames, bytes;
  uint64_t limit;                                                              /* reads no further than so many bytes */
  uint64_t *latencies;                                                         /* a histogram, or NULL */
  uint8_t *rest;                                                               /* of a frame that has not come whole */
  uint64_t rest_length, rest_capacity;
  int32_t fd, watched, kept, unused;
} Client;

typedef struct {
  Client *clients;
  uint64_t updates;
  int64_t last_ns;
  uint64_t *now_latencies;                                                     /* of all measured clients, or NULL */
  uint64_t *tier_latencies;
  int64_t tier_kinds;                                                          /* go to tier_latencies instead */
  void (*hand)(int64_t index, int64_t what, const void *payload, int64_t size);
  int32_t poller;
} Receiver;

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

static int skip_varint(const uint8_t **at, const uint8_t *end) {
  for (int i = 0; *at < end && i < 10; i++)
    if (*(*at)++ < 0x80) return 1;
  return 0;
}

/* ts_received_ns of an update, 0 without one; -1 when it is not protobuf. */
static int64_t due_ns(const uint8_t *at, const uint8_t *end) {
  uint64_t tag, length, event = 0;
  while (at < end) {
    if (*at < 0x80) tag = *at++;
    else if (!varint(&at, end, &tag)) return -1;
    if (tag == TS_EVENT) {
      if (end - at < 8) return -1;
      memcpy(&event, at, 8);
      event = le64toh(event);
      at += 8;
      continue;
    }
    if (tag == TS_RECEIVED_AFTER) {
      if (!varint(&at, end, &length)) return -1;
      return (int64_t)(event + (length >> 1 ^ -(length & 1)));
    }
    if (event && tag > TS_RECEIVED_AFTER) return (int64_t)event;                 /* servers write fields in their order */
    switch (tag & 7) {
      case 0: if (!skip_varint(&at, end)) return -1; continue;
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

static void record(uint64_t *counts, int64_t late_ns) {
  uint64_t value = late_ns > 0 ? (uint64_t)late_ns : 0;
  if (value > counts[BUCKETS]) counts[BUCKETS] = value;
  if (value >> VALUE_BITS) value = ((uint64_t)1 << VALUE_BITS) - 1;
  int length = value ? 64 - __builtin_clzll(value) : 0, shift = length > BITS + 1 ? length - BITS - 1 : 0;
  counts[((uint64_t)shift << BITS) + (value >> shift)]++;
}

/* Updates in a frame; -1 when it is no sequence of chunks. */
static int64_t scan(Receiver *receiver, Client *client, const uint8_t *at, const uint8_t *end, int64_t now_ns) {
  int64_t updates = 0;
  while (at < end) {
    uint64_t length;
    at++;                                                                      /* the tag of Frame.chunks */
    if (!varint(&at, end, &length) || length == 0 || (uint64_t)(end - at) < length) return -1;
    const uint8_t *body = at;
    at += length;
    int kind = *body == 0x0A ? 1 : *body == 0x12 ? 2 : *body == 0x1A ? 4 : 0;  /* book, trades, bbo */
    body++;
    if (!kind) continue;
    updates++;
    uint64_t *latencies = kind & receiver->tier_kinds ? receiver->tier_latencies : client->latencies;
    if (!latencies) continue;
    int64_t due = skip_varint(&body, at) ? due_ns(body, at) : -1;
    if (due < 0) return -1;
    record(latencies, now_ns - due);
    if (receiver->now_latencies && latencies == client->latencies) record(receiver->now_latencies, now_ns - due);
  }
  return updates;
}

/* Bytes of whole frames at the beginning of `data`; -1 when the server broke the protocol. */
static int64_t walk(Receiver *receiver, int64_t index, const uint8_t *data, uint64_t size, int64_t now_ns) {
  Client *client = &receiver->clients[index];
  uint64_t at = 0;
  while (size - at >= 2) {
    uint64_t length = data[at + 1], start = at + 2;
    if ((data[at] & 0xF0) != 0x80 || length & 0x80) return -1;                 /* fragmented, reserved or masked */
    if (length >= 126) {
      uint64_t width = length == 126 ? 2 : 8;
      if (size - start < width) break;
      length = 0;
      for (uint64_t i = 0; i < width; i++) length = length << 8 | data[start++];
      if (length > FRAME_MAX) return -1;
    }
    if (size - start < length) break;
    int opcode = data[at] & 0x0F;
    at = start + length;
    if (opcode == OP_BINARY) {
      client->frames++;
      int64_t updates = scan(receiver, client, data + start, data + at, now_ns);
      if (updates < 0) return -1;
      if (updates) receiver->last_ns = now_ns;
      client->updates += updates;
      receiver->updates += updates;
      if (!client->kept) continue;
    }
    receiver->hand(index, opcode, data + start, length);
  }
  return at;
}

static void take(Receiver *receiver, int64_t index, const uint8_t *data, uint64_t size) {
  Client *client = &receiver->clients[index];
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  client->bytes += size;
  if (client->rest_length) {
    if (client->rest_length + size > client->rest_capacity) {
      client->rest_capacity = 2 * (client->rest_length + size);
      client->rest = realloc(client->rest, client->rest_capacity);
      if (!client->rest) abort();
    }
    memcpy(client->rest + client->rest_length, data, size);
    data = client->rest;
    size += client->rest_length;
  }
  int64_t whole = walk(receiver, index, data, size, now.tv_sec * 1000000000LL + now.tv_nsec);
  if (whole < 0) { receiver->hand(index, BROKEN, NULL, 0); whole = size; }
  client->rest_length = size - whole;
  if (!client->rest_length) {
    free(client->rest);
    client->rest = NULL;
    client->rest_capacity = 0;
  } else if (data == client->rest) {
    memmove(client->rest, data + whole, client->rest_length);
  } else {
    client->rest_capacity = client->rest_length;
    client->rest = malloc(client->rest_capacity);
    if (!client->rest) abort();
    memcpy(client->rest, data + whole, client->rest_length);
  }
}

static void watch(Receiver *receiver, int64_t index, int on) {
  Client *client = &receiver->clients[index];
  if (client->fd < 0 || client->watched == on) return;
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = index};
  epoll_ctl(receiver->poller, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, client->fd, &event);
  client->watched = on;
}

static void read_some(Receiver *receiver, int64_t index) {
  static uint8_t buffer[READ_MAX];
  Client *client = &receiver->clients[index];
  uint64_t room = client->bytes < client->limit ? client->limit - client->bytes : 0;
  ssize_t got = room ? recv(client->fd, buffer, room < READ_MAX ? room : READ_MAX, MSG_DONTWAIT) : 0;
  if (got > 0) take(receiver, index, buffer, got);
  if (client->bytes >= client->limit) { watch(receiver, index, 0); return; }
  if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;
  watch(receiver, index, 0);
  client->fd = -1;
  receiver->hand(index, ENDED, NULL, 0);
}

/* ---- what Python calls */

int start(Receiver *receiver) { return receiver->poller = epoll_create1(EPOLL_CLOEXEC); }

/* Data that came another way: with the end of the handshake, or over TLS. */
void feed(Receiver *receiver, int64_t index, const uint8_t *data, int64_t size) { take(receiver, index, data, size); }

/* Reads from this socket until it is told of another (-1: none). */
void attach(Receiver *receiver, int64_t index, int32_t fd) {
  watch(receiver, index, 0);
  receiver->clients[index].fd = fd;
  watch(receiver, index, receiver->clients[index].bytes < receiver->clients[index].limit);
}

void set_limit(Receiver *receiver, int64_t index, uint64_t limit) {
  receiver->clients[index].limit = limit;
  watch(receiver, index, receiver->clients[index].bytes < limit);
}

/* Forgets what came of a frame. */
void forget(Receiver *receiver, int64_t index) {
  Client *client = &receiver->clients[index];
  free(client->rest);
  client->rest = NULL;
  client->rest_length = client->rest_capacity = 0;
}

/* Reads what has come, each socket in its turn, but not for so long that Python starves. */
void pump(Receiver *receiver) {
  struct epoll_event events[EVENTS];
  for (int round = 0; round < ROUNDS; round++) {
    int count = epoll_wait(receiver->poller, events, EVENTS, 0);
    for (int i = 0; i < count; i++) read_some(receiver, events[i].data.u64);
    if (count <= 0) return;
  }
}

void stop(Receiver *receiver, int64_t clients) {
  close(receiver->poller);
  for (int64_t i = 0; i < clients; i++) forget(receiver, i);
}
