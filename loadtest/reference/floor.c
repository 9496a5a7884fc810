/* The floor: the least CPU a fan-out server can spend on one core. One epoll loop, chunks shared by reference,
 * one writev per dirty client per flush. It keeps no books, checks nothing and drops clients that fall behind.
 *
 *   floor PORT FEED_PORT FLUSH_INTERVAL_US
 *
 * Clients: a WebSocket handshake on PORT with GET /?streams=1,2,3 (ids below STREAMS_MAX). Feed: one TCP connection on
 * FEED_PORT with records of u32 length, u32 stream (both little-endian), then `length` bytes, a chunk of the wire format.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum { STREAMS_MAX = 4096, PER_CLIENT_MAX = 1000, FD_MAX = 65536, REQUEST_MAX = 8192, FEED_MAX = 1 << 20 };

typedef struct { char *bytes; size_t length, capacity; } Buffer;          /* what a stream gathered since the last flush */
typedef struct {
  int fd, open, stream_count, request_length;
  uint16_t streams[PER_CLIENT_MAX];
  char *request;                                                          /* until the handshake is done */
  char *rest; size_t rest_length, rest_at;                                /* what a full socket did not take */
} Client;

static Buffer pending[STREAMS_MAX];
static Client *clients[FD_MAX];
static int client_fds[FD_MAX], client_count;
static int poller;

static void die(const char *what) { perror(what); exit(1); }

/* SHA-1 (RFC 3174) and base64, for Sec-WebSocket-Accept (RFC 6455 section 4.2.2). */
static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }
static void sha1(const uint8_t *data, size_t length, uint8_t out[20]) {
  uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
  uint8_t block[128] = {0};
  size_t total = length + 9 <= 64 ? 64 : 128;
  memcpy(block, data, length);
  block[length] = 0x80;
  for (int i = 0; i < 8; i++) block[total - 1 - i] = (uint8_t)((uint64_t)length * 8 >> (8 * i));
  for (size_t at = 0; at < total; at += 64) {
    uint32_t w[80];
    for (int i = 0; i < 16; i++)
      w[i] = (uint32_t)block[at + 4 * i] << 24 | block[at + 4 * i + 1] << 16 | block[at + 4 * i + 2] << 8 | block[at + 4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 80; i++) {
      uint32_t f, k;
      if (i < 20) f = (b & c) | (~b & d), k = 0x5A827999;
      else if (i < 40) f = b ^ c ^ d, k = 0x6ED9EBA1;
      else if (i < 60) f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
      else f = b ^ c ^ d, k = 0xCA62C1D6;
      uint32_t t = rotate(a, 5) + f + e + k + w[i];
      e = d, d = c, c = rotate(b, 30), b = a, a = t;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
  }
  for (int i = 0; i < 20; i++) out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}
static void base64(const uint8_t *in, int length, char *out) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int i = 0; i < length; i += 3) {
    uint32_t v = in[i] << 16 | (i + 1 < length ? in[i + 1] << 8 : 0) | (i + 2 < length ? in[i + 2] : 0);
    *out++ = digits[v >> 18 & 63];
    *out++ = digits[v >> 12 & 63];
    *out++ = i + 1 < length ? digits[v >> 6 & 63] : '=';
    *out++ = i + 2 < length ? digits[v & 63] : '=';
  }
  *out = 0;
}

static int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("listen");
  return fd;
}
static void watch(int fd, uint32_t events) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void drop(Client *client) {
  clients[client->fd] = NULL;
  for (int i = 0; i < client_count; i++)
    if (client_fds[i] == client->fd) { client_fds[i] = client_fds[--client_count]; break; }
  close(client->fd);
  free(client->request);
  free(client->rest);
  free(client);
}

static void want_write(Client *client, int on) {
  struct epoll_event event = {.events = EPOLLIN | (on ? EPOLLOUT : 0), .data.fd = client->fd};
  epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event);
}

static int handshake(Client *client) {
  char *key = strcasestr(client->request, "sec-websocket-key:"), *streams = strstr(client->request, "streams=");
  if (!key) return 0;
  key += strlen("sec-websocket-key:");
  while (*key == ' ') key++;
  char joined[128], accept[32], reply[256];
  uint8_t hash[20];
  int length = snprintf(joined, sizeof joined, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
  sha1((uint8_t *)joined, length, hash);
  base64(hash, 20, accept);
  length = snprintf(reply, sizeof reply, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
  for (char *at = streams ? streams + strlen("streams=") : NULL; at && client->stream_count < PER_CLIENT_MAX;) {
    long id = strtol(at, &at, 10);
    if (id <= 0 || id >= STREAMS_MAX) break;
    client->streams[client->stream_count++] = (uint16_t)id;
    if (*at != ',') break;
    at++;
  }
  free(client->request);
  client->request = NULL;
  client->open = 1;
  return write(client->fd, reply, length) == length;
}

static void on_readable(Client *client) {
  char junk[4096];
  if (client->open) {                                                     /* client frames carry nothing we need */
    ssize_t got = read(client->fd, junk, sizeof junk);
    if (got == 0 || (got < 0 && errno != EAGAIN)) drop(client);
    return;
  }
  ssize_t got = read(client->fd, client->request + client->request_length, REQUEST_MAX - 1 - client->request_length);
  if (got <= 0) { if (got == 0 || errno != EAGAIN) drop(client); return; }
  client->request[client->request_length += got] = 0;
  if (strstr(client->request, "\r\n\r\n") ? !handshake(client) : client->request_length >= REQUEST_MAX - 1) drop(client);
}

static void on_writable(Client *client) {
  ssize_t sent = write(client->fd, client->rest + client->rest_at, client->rest_length - client->rest_at);
  if (sent < 0) { if (errno != EAGAIN) drop(client); return; }
  if ((client->rest_at += sent) == client->rest_length) {
    free(client->rest);
    client->rest = NULL;
    want_write(client, 0);
  }
}

static void send_frame(Client *client, struct iovec *iov, int count, size_t length) {
  uint8_t header[10] = {0x82};
  size_t header_length = length < 126 ? 2 : length < 65536 ? 4 : 10;
  header[1] = length < 126 ? length : length < 65536 ? 126 : 127;
  for (size_t i = 2; i < header_length; i++) header[i] = (uint8_t)((uint64_t)length >> (8 * (header_length - 1 - i)));
  iov[0] = (struct iovec){header, header_length};
  size_t total = header_length + length;
  ssize_t sent = writev(client->fd, iov, count + 1);
  if (sent < 0) { if (errno != EAGAIN) { drop(client); return; } sent = 0; }
  if ((size_t)sent == total) return;
  client->rest = malloc(total - sent);
  client->rest_length = client->rest_at = 0;
  for (int i = 0; i <= count; i++) {
    size_t skip = (size_t)sent < iov[i].iov_len ? (size_t)sent : iov[i].iov_len;
    memcpy(client->rest + client->rest_length, (char *)iov[i].iov_base + skip, iov[i].iov_len - skip);
    client->rest_length += iov[i].iov_len - skip;
    sent -= skip;
  }
  want_write(client, 1);
}

static void flush_all(void) {
  for (int i = client_count - 1; i >= 0; i--) {
    Client *client = clients[client_fds[i]];
    struct iovec iov[PER_CLIENT_MAX + 1];
    size_t length = 0;
    int count = 0;
    for (int s = 0; s < client->stream_count; s++) {
      Buffer *buffer = &pending[client->streams[s]];
      if (buffer->length) iov[++count] = (struct iovec){buffer->bytes, buffer->length}, length += buffer->length;
    }
    if (!count) continue;
    if (client->rest) drop(client);                                       /* behind by a whole flush */
    else send_frame(client, iov, count, length);
  }
  for (int s = 0; s < STREAMS_MAX; s++) pending[s].length = 0;
}

static char feed[FEED_MAX];
static size_t feed_length;
static int dirty;
static int on_feed(int fd) {
  ssize_t got = read(fd, feed + feed_length, FEED_MAX - feed_length);
  if (got <= 0) return got < 0 && errno == EAGAIN;
  feed_length += got;
  size_t at = 0;
  while (feed_length - at >= 8) {
    uint32_t length, stream;
    memcpy(&length, feed + at, 4);
    memcpy(&stream, feed + at + 4, 4);
    if (length > FEED_MAX - 8 || stream >= STREAMS_MAX) return 0;
    if (feed_length - at - 8 < length) break;
    Buffer *buffer = &pending[stream];
    if (buffer->length + length > buffer->capacity)
      buffer->bytes = realloc(buffer->bytes, buffer->capacity = (buffer->length + length) * 2);
    memcpy(buffer->bytes + buffer->length, feed + at + 8, length);
    buffer->length += length;
    at += 8 + length;
    dirty = 1;
  }
  memmove(feed, feed + at, feed_length -= at);
  return 1;
}

static void accept_all(int listener, int feed_fd, int *feed_connection) {
  for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(fd, EPOLLIN);
    if (listener == feed_fd) { *feed_connection = fd; continue; }
    if (fd >= FD_MAX) { close(fd); continue; }
    Client *client = clients[fd] = calloc(1, sizeof *client);
    client->fd = fd;
    client->request = calloc(1, REQUEST_MAX);
    client_fds[client_count++] = fd;
  }
}

int main(int argc, char **argv) {
  if (argc != 4) { fprintf(stderr, "usage: floor PORT FEED_PORT FLUSH_INTERVAL_US\n"); return 2; }
  signal(SIGPIPE, SIG_IGN);
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  poller = epoll_create1(0);
  int listener = listen_on(atoi(argv[1])), feed_listener = listen_on(atoi(argv[2])), feed_connection = -1;
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  long interval_us = atol(argv[3]);
  struct timespec every = {interval_us / 1000000, interval_us % 1000000 * 1000};
  struct itimerspec schedule = {every, every};
  timerfd_settime(timer, 0, &schedule, NULL);
  watch(listener, EPOLLIN);
  watch(feed_listener, EPOLLIN);
  watch(timer, EPOLLIN);
  puts("ready");
  fflush(stdout);
  for (;;) {
    struct epoll_event events[256];
    int count = epoll_wait(poller, events, 256, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      if (fd == listener || fd == feed_listener) accept_all(fd, feed_listener, &feed_connection);
      else if (fd == timer) {
        uint64_t fired;
        if (read(timer, &fired, 8) == 8 && dirty) flush_all(), dirty = 0;
      } else if (fd == feed_connection) {
        if (!on_feed(fd)) { close(fd); feed_connection = -1; }
      } else {
        if (clients[fd] && events[i].events & EPOLLOUT) on_writable(clients[fd]);
        if (clients[fd] && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(clients[fd]);
      }
    }
  }
}
