/* The functions of protos/shortcut.py, which says what they do, in C on CPython's stable API.
 *
 * They decide nothing: they write the bytes that protobuf would write, and read only such. Whatever is unusual, a number
 * out of range as well as bytes that no encoder of ours makes, they leave to protos/codec_proto.py, which accepts it or
 * says what is wrong. No Python code runs while a message is written, so what it holds stays as it is.
 *
 * Messages are written from their last byte to their first, so that each length is known when its turn comes. */
#include "ladder.h"
#include "ring.h"

typedef enum { OK, LEAVE /* it to the codec */, FAILED /* with an exception */ } Outcome;
#define TRY(step) do { Outcome tried = (step); if (tried != OK) return tried; } while (0)

/* Bounds of protos/wire.py. */
static const int64_t U32 = UINT32_MAX, COUNT_MAX = (1LL << 53) - 1, VALUE_MAX = 999999999999999999LL;
enum { LEVELS_MAX = 200000, TRADES_MAX = 20000, TRADE_ID_MAX = 128, EXPONENT_MIN = -18, SNAPSHOT = 1, FLAGS_KNOWN = 63, SIDES = 3 };

enum { VARINT, FIXED64, BYTES, FIXED32 = 5 }; /* wire types */
enum { ROOM = 256 /* for all but levels and trades */, LEVEL_ROOM = 18, STEP_ROOM = 9, TRADE_ROOM = 64 + TRADE_ID_MAX };

/* Attributes; a header is the first eight, and its fields have the numbers 1 to 8. */
enum {
  STREAM, EPOCH, SEQ, PREV_SEQ, FLAGS, TS_EVENT, TS_RECEIVED, TS_PUBLISHED, HEADER,
  BIDS = HEADER, ASKS, SCALE, VENUE_CHECKSUM, VENUE_DEPTH, TRADES, BID_TICKS, BID_LOTS, ASK_TICKS, ASK_LOTS,
  PRICE_EXPONENT, SIZE_EXPONENT, TICKS, LOTS, SIDE, TRADE_ID, NAMES
};
static const char *const texts[NAMES] = {
  "stream", "epoch", "seq", "prev_seq", "flags", "ts_event_ns", "ts_received_ns", "ts_published_ns",
  "bids", "asks", "scale", "venue_checksum", "venue_depth", "trades", "bid_ticks", "bid_lots", "ask_ticks", "ask_lots",
  "price_exponent", "size_exponent", "ticks", "lots", "side", "trade_id",
};
static PyObject *names[NAMES], *sides[SIDES];
static PyObject *book_type, *trades_type, *quote_type, *trade_type, *scale_type;

/* ---- writing */

typedef struct {
  uint8_t *at, *end; /* what is written lies between */
  uint8_t *steps;    /* room for the steps of one side */
  uint8_t *heap;
  uint8_t stack[8192];
} Out;

static Outcome reserve(Out *out, Py_ssize_t steps, Py_ssize_t size) {
  size_t all = (size_t)(steps + size);
  out->heap = all > sizeof out->stack ? PyMem_Malloc(all) : NULL;
  out->steps = all > sizeof out->stack ? out->heap : out->stack;
  if (!out->steps) {
    PyErr_NoMemory();
    return FAILED;
  }
  out->at = out->end = out->steps + all;
  return OK;
}

static uint64_t zigzag(int64_t value) { return (uint64_t)value << 1 ^ (uint64_t)(value >> 63); }

static uint8_t *varint(uint8_t *at, uint64_t value) {
  int size = 1;
  for (uint64_t rest = value >> 7; rest; rest >>= 7) size++;
  uint8_t *byte = at -= size;
  for (; value >= 0x80; value >>= 7) *byte++ = (uint8_t)(value | 0x80);
  *byte = (uint8_t)value;
  return at;
}

static void put_number(Out *out, int number, uint64_t value) {
  out->at = varint(out->at, value);
  *--out->at = (uint8_t)(number << 3 | VARINT);
}

static void put_unless_zero(Out *out, int number, uint64_t value) {
  if (value) put_number(out, number, value);
}

static void put_fixed(Out *out, int number, uint64_t value, int wire_type) {
  int size = wire_type == FIXED64 ? 8 : 4;
  out->at -= size;
  for (int i = 0; i < size; i++) out->at[i] = (uint8_t)(value >> (8 * i));
  *--out->at = (uint8_t)(number << 3 | wire_type);
}

/* Makes all up to `end` one field. */
static void enclose(Out *out, int number, const uint8_t *end) {
  out->at = varint(out->at, (uint64_t)(end - out->at));
  *--out->at = (uint8_t)(number << 3 | BYTES);
}

static Outcome integer(PyObject *object, int64_t low, int64_t high, int64_t *value) {
  int overflow;
  if (!object) return FAILED;
  if (!PyLong_Check(object) || PyBool_Check(object)) return LEAVE;
  *value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow || *value < low || *value > high ? LEAVE : OK;
}

static Outcome attribute(PyObject *object, int name, int64_t low, int64_t high, int64_t *value) {
  PyObject *found = PyObject_GetAttr(object, names[name]);
  Outcome outcome = integer(found, low, high, value);
  Py_XDECREF(found);
  return outcome;
}

static void write_header(Out *out, const int64_t *h) {
  if (h[TS_PUBLISHED]) put_number(out, 8, zigzag(h[TS_PUBLISHED] - h[TS_RECEIVED]));
  put_unless_zero(out, 7, zigzag(h[TS_RECEIVED] - h[TS_EVENT]));
  if (h[TS_EVENT]) put_fixed(out, 6, (uint64_t)h[TS_EVENT], FIXED64);
  put_unless_zero(out, 5, (uint64_t)h[FLAGS]);
  if (h[PREV_SEQ]) put_number(out, 4, (uint64_t)(h[SEQ] - h[PREV_SEQ]));
  put_unless_zero(out, 3, (uint64_t)h[SEQ]);
  put_unless_zero(out, 2, (uint64_t)h[EPOCH]);
  put_unless_zero(out, 1, (uint64_t)h[STREAM]);
}

static Outcome put_header(Out *out, PyObject *update) {
  static const int64_t highs[HEADER] = {U32, INT64_MAX, INT64_MAX, INT64_MAX, U32, INT64_MAX, INT64_MAX, INT64_MAX};
  int64_t h[HEADER];
  for (int i = 0; i < HEADER; i++) TRY(attribute(update, i, 0, highs[i], &h[i]));
  if (h[PREV_SEQ] > h[SEQ]) return LEAVE;
  write_header(out, h);
  return OK;
}

static Outcome put_scale(Out *out, PyObject *update, int number) {
  PyObject *scale = PyObject_GetAttr(update, names[SCALE]);
  if (!scale) return FAILED;
  Py_DECREF(scale); /* the update holds it */
  if (scale == Py_None) return OK;
  if ((PyObject *)Py_TYPE(scale) != scale_type) return LEAVE;
  int64_t price, size;
  TRY(attribute(scale, PRICE_EXPONENT, EXPONENT_MIN, 0, &price));
  TRY(attribute(scale, SIZE_EXPONENT, EXPONENT_MIN, 0, &size));
  const uint8_t *end = out->at;
  put_unless_zero(out, 2, zigzag(size));
  put_unless_zero(out, 1, zigzag(price));
  enclose(out, number, end);
  return OK;
}

static Outcome get_level(PyObject *levels, Py_ssize_t index, Level *level) {
  PyObject *pair = PyList_GetItem(levels, index);
  if (!pair) return FAILED;
  if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) return LEAVE;
  TRY(integer(PyTuple_GetItem(pair, 0), -VALUE_MAX, VALUE_MAX, &level->ticks));
  return integer(PyTuple_GetItem(pair, 1), 0, VALUE_MAX, &level->lots);
}

/* The steps as field `number`, and the lots as the one after it. */
static Outcome put_side(Out *out, PyObject *levels, int number) {
  Py_ssize_t count = PyList_Size(levels);
  if (count == 0) return OK;
  uint8_t *steps_end = out->steps + STEP_ROOM * count, *steps = steps_end;
  const uint8_t *end = out->at;
  Level level, before = {0, 0};
  TRY(get_level(levels, count - 1, &level));
  for (Py_ssize_t i = count - 1; i >= 0; i--) {
    uint64_t step = zigzag(level.ticks);
    if (i > 0) {
      TRY(get_level(levels, i - 1, &before));
      if (before.ticks >= level.ticks) return LEAVE;
      step = (uint64_t)(level.ticks - before.ticks);
    }
    if (level.lots) out->at = varint(out->at, (uint64_t)level.lots);
    steps = varint(steps, step << 1 | !level.lots);
    level = before;
  }
  if (out->at != end) enclose(out, number + 1, end);
  end = out->at;
  out->at -= steps_end - steps;
  memcpy(out->at, steps, (size_t)(steps_end - steps));
  enclose(out, number, end);
  return OK;
}

static Outcome put_sides(Out *out, PyObject *update, PyObject *bids, PyObject *asks) {
  if (!bids || !asks) return FAILED;
  if (!PyList_Check(bids) || !PyList_Check(asks)) return LEAVE;
  Py_ssize_t bid_count = PyList_Size(bids), ask_count = PyList_Size(asks);
  if (bid_count > LEVELS_MAX || ask_count > LEVELS_MAX) return LEAVE;
  Py_ssize_t deeper = bid_count > ask_count ? bid_count : ask_count;
  int64_t depth, checksum;
  TRY(reserve(out, STEP_ROOM * deeper, ROOM + LEVEL_ROOM * (bid_count + ask_count)));
  TRY(attribute(update, VENUE_DEPTH, 0, U32, &depth));
  put_unless_zero(out, 15, (uint64_t)depth);
  PyObject *found = PyObject_GetAttr(update, names[VENUE_CHECKSUM]);
  if (found != Py_None) {
    Outcome outcome = integer(found, 0, U32, &checksum);
    Py_XDECREF(found);
    TRY(outcome);
    put_fixed(out, 14, (uint64_t)checksum, FIXED32);
  } else {
    Py_DECREF(found);
  }
  TRY(put_scale(out, update, 13));
  TRY(put_side(out, asks, 11));
  return put_side(out, bids, 9);
}

static Outcome put_book(Out *out, PyObject *update) {
  PyObject *bids = PyObject_GetAttr(update, names[BIDS]);
  PyObject *asks = bids ? PyObject_GetAttr(update, names[ASKS]) : NULL;
  Outcome outcome = put_sides(out, update, bids, asks);
  Py_XDECREF(bids);
  Py_XDECREF(asks);
  return outcome;
}

static Outcome put_trade(Out *out, PyObject *trade) {
  if (!trade) return FAILED;
  if ((PyObject *)Py_TYPE(trade) != trade_type) return LEAVE;
  int64_t ticks, lots, side, ts_event_ns;
  TRY(attribute(trade, TS_EVENT, 0, INT64_MAX, &ts_event_ns));
  TRY(attribute(trade, SIDE, 0, SIDES - 1, &side));
  TRY(attribute(trade, LOTS, 0, VALUE_MAX, &lots));
  TRY(attribute(trade, TICKS, -VALUE_MAX, VALUE_MAX, &ticks));
  PyObject *id = PyObject_GetAttr(trade, names[TRADE_ID]);
  if (!id) return FAILED;
  Py_DECREF(id); /* the trade holds it */
  if (!PyUnicode_Check(id)) return LEAVE;
  Py_ssize_t size;
  const char *text = PyUnicode_AsUTF8AndSize(id, &size);
  if (!text) PyErr_Clear(); /* half of a surrogate pair */
  if (!text || size > TRADE_ID_MAX) return LEAVE;
  const uint8_t *end = out->at;
  put_unless_zero(out, 5, (uint64_t)ts_event_ns);
  if (size) {
    const uint8_t *text_end = out->at;
    out->at -= size;
    memcpy(out->at, text, (size_t)size);
    enclose(out, 4, text_end);
  }
  put_unless_zero(out, 3, (uint64_t)side);
  put_unless_zero(out, 2, (uint64_t)lots);
  put_unless_zero(out, 1, zigzag(ticks));
  enclose(out, 9, end);
  return OK;
}

static Outcome put_trades(Out *out, PyObject *update) {
  PyObject *trades = PyObject_GetAttr(update, names[TRADES]);
  if (!trades) return FAILED;
  Py_DECREF(trades); /* the update holds it */
  if (!PyList_Check(trades) || PyList_Size(trades) > TRADES_MAX) return LEAVE;
  Py_ssize_t count = PyList_Size(trades);
  TRY(reserve(out, 0, ROOM + TRADE_ROOM * count));
  TRY(put_scale(out, update, 10));
  for (Py_ssize_t i = count - 1; i >= 0; i--) TRY(put_trade(out, PyList_GetItem(trades, i)));
  return OK;
}

static Outcome put_quote(Out *out, PyObject *update) {
  int64_t bid_ticks, bid_lots, ask_ticks, ask_lots;
  TRY(attribute(update, BID_TICKS, -VALUE_MAX, VALUE_MAX, &bid_ticks));
  TRY(attribute(update, BID_LOTS, 0, VALUE_MAX, &bid_lots));
  TRY(attribute(update, ASK_TICKS, -VALUE_MAX, VALUE_MAX, &ask_ticks));
  TRY(attribute(update, ASK_LOTS, 0, VALUE_MAX, &ask_lots));
  TRY(reserve(out, 0, ROOM));
  TRY(put_scale(out, update, 13));
  put_unless_zero(out, 12, (uint64_t)ask_lots);
  put_unless_zero(out, 11, zigzag(ask_ticks));
  put_unless_zero(out, 10, (uint64_t)bid_lots);
  put_unless_zero(out, 9, zigzag(bid_ticks));
  return OK;
}

/* The message as a chunk, and that within `envelopes` frames. */
static Outcome put_chunk(Out *out, PyObject *message, int envelopes) {
  PyObject *type = (PyObject *)Py_TYPE(message);
  int number = type == book_type ? 1 : type == trades_type ? 2 : type == quote_type ? 3 : 0;
  if (!number) return LEAVE;
  TRY(number == 1 ? put_book(out, message) : number == 2 ? put_trades(out, message) : put_quote(out, message));
  TRY(put_header(out, message));
  enclose(out, number, out->end);
  while (envelopes--) enclose(out, 1, out->end);
  return OK;
}

static PyObject *pack(PyObject *message, int envelopes) {
  Out out;
  out.heap = NULL;
  Outcome outcome = put_chunk(&out, message, envelopes);
  PyObject *bytes = outcome == OK      ? PyBytes_FromStringAndSize((char *)out.at, out.end - out.at)
                    : outcome == LEAVE ? Py_NewRef(Py_None)
                                       : NULL;
  PyMem_Free(out.heap);
  return bytes;
}

static PyObject *pack_record(PyObject *module, PyObject *message) {
  (void)module;
  return pack(message, 0);
}

static PyObject *pack_frame(PyObject *module, PyObject *message) {
  (void)module;
  return pack(message, 1);
}

/* ---- reading */

typedef struct {
  const uint8_t *at, *end;
} Span;

enum { NUMBERS = 16 };

/* Fields by their number. */
typedef struct {
  uint64_t values[NUMBERS];
  Span spans[NUMBERS];
  const uint8_t *starts[NUMBERS]; /* where their tags are */
  unsigned present;
} Fields;

static Outcome take_varint(Span *in, uint64_t *value) {
  *value = 0;
  for (int shift = 0; shift < 63 && in->at < in->end; shift += 7) {
    uint8_t byte = *in->at++;
    *value |= (uint64_t)(byte & 0x7F) << shift;
    if (byte < 0x80) return OK;
  }
  return LEAVE; /* it ends too early, or has more than 63 bits, which we never write */
}

static Outcome take_fixed(Span *in, int size, uint64_t *value) {
  if (in->end - in->at < size) return LEAVE;
  *value = 0;
  for (int i = 0; i < size; i++) *value |= (uint64_t)*in->at++ << (8 * i);
  return OK;
}

static Outcome take_bytes(Span *in, Span *span) {
  uint64_t size;
  TRY(take_varint(in, &size));
  if (size > (uint64_t)(in->end - in->at)) return LEAVE;
  span->at = in->at;
  span->end = in->at += size;
  return OK;
}

/* Reads a message whose fields come once each and in order. `types` has a letter for the wire type of each number:
 * v, 8, 4, b, or r for a submessage that may come again, of which the span is all, with tags and lengths. */
static Outcome read_fields(Span in, const char *types, Fields *fields) {
  memset(fields, 0, sizeof *fields);
  int last = 0, count = (int)strlen(types);
  while (in.at < in.end) {
    const uint8_t *start = in.at;
    int tag = *in.at++, number = tag >> 3, wire_type = tag & 7;
    if (number >= count) return LEAVE;
    char type = types[number];
    if (number < last || (number == last && type != 'r')) return LEAVE;
    if (wire_type != (type == 'v' ? VARINT : type == '8' ? FIXED64 : type == '4' ? FIXED32 : BYTES)) return LEAVE;
    Span span;
    switch (type) {
      case 'v': TRY(take_varint(&in, &fields->values[number])); break;
      case '8': TRY(take_fixed(&in, 8, &fields->values[number])); break;
      case '4': TRY(take_fixed(&in, 4, &fields->values[number])); break;
      default: TRY(take_bytes(&in, &span));
        if (type == 'r') {
          fields->values[number]++;
          span.at = number == last ? fields->spans[number].at : start;
        }
        fields->spans[number] = span;
    }
    fields->starts[number] = start;
    fields->present |= 1u << number;
    last = number;
  }
  return OK;
}

static int has(const Fields *fields, int number) { return fields->present >> number & 1; }

static int64_t unzigzag(uint64_t value) { return (int64_t)(value >> 1 ^ -(value & 1)); }

/* Puts `item` at its place; takes its reference. */
static Outcome place(PyObject *args, Py_ssize_t index, PyObject *item) {
  return item && PyTuple_SetItem(args, index, item) == 0 ? OK : FAILED;
}

static Outcome place_integer(PyObject *args, Py_ssize_t index, int64_t value) {
  return place(args, index, PyLong_FromLongLong(value));
}

/* The time that a difference leads to. */
static Outcome add_time(int64_t base, uint64_t difference, int64_t *sum) {
  return __builtin_add_overflow(base, unzigzag(difference), sum) || *sum < 0 ? LEAVE : OK;
}

static Outcome read_header(const Fields *fields, int64_t *values) {
  const uint64_t *v = fields->values;
  int64_t prev_seq = 0, received_ns, published_ns = 0;
  if (v[1] > UINT32_MAX || v[2] > (uint64_t)COUNT_MAX || v[3] > (uint64_t)COUNT_MAX || v[5] > UINT32_MAX) return LEAVE;
  if (v[6] > INT64_MAX) return LEAVE;
  if (has(fields, 4)) {
    if (v[4] >= v[3]) return LEAVE;
    prev_seq = (int64_t)(v[3] - v[4]);
  }
  TRY(add_time((int64_t)v[6], v[7], &received_ns));
  if (has(fields, 8)) TRY(add_time(received_ns, v[8], &published_ns));
  const int64_t found[HEADER] = {
    (int64_t)v[1], (int64_t)v[2], (int64_t)v[3], prev_seq, (int64_t)(v[5] & FLAGS_KNOWN), (int64_t)v[6], received_ns, published_ns,
  };
  memcpy(values, found, sizeof found);
  return OK;
}

static Outcome place_header(PyObject *args, const Fields *fields) {
  int64_t values[HEADER];
  TRY(read_header(fields, values));
  for (int i = 0; i < HEADER; i++) TRY(place_integer(args, i, values[i]));
  return OK;
}

static Outcome place_scale(PyObject *args, Py_ssize_t index, const Fields *fields, int number) {
  if (!has(fields, number)) return place(args, index, Py_NewRef(Py_None));
  Fields scale;
  TRY(read_fields(fields->spans[number], " vv", &scale));
  int64_t price = unzigzag(scale.values[1]), size = unzigzag(scale.values[2]);
  if (price < EXPONENT_MIN || price > 0 || size < EXPONENT_MIN || size > 0) return LEAVE;
  return place(args, index, PyObject_CallFunction(scale_type, "LL", (long long)price, (long long)size));
}

/* How many varints end in it. */
static Py_ssize_t count_varints(Span span) {
  Py_ssize_t count = 0;
  for (; span.at < span.end; span.at++) count += *span.at < 0x80;
  return count;
}

/* What is still to be read of one side. */
typedef struct {
  Span steps, lots;
  Level last;
  int begun;
} Side;

static Side side_of(const Fields *fields, int number) {
  return (Side){fields->spans[number], fields->spans[number + 1], {0, 0}, 0};
}

/* Its next level as `last`. */
static Outcome take_level(Side *side) {
  uint64_t step, size = 0;
  TRY(take_varint(&side->steps, &step));
  if (side->begun && step < 2) return LEAVE; /* prices do not ascend */
  int64_t ticks = side->last.ticks + (side->begun ? (int64_t)(step >> 1) : unzigzag(step >> 1)); /* both below 2**62 */
  if (ticks < -VALUE_MAX || ticks > VALUE_MAX) return LEAVE;
  if (!(step & 1)) {
    TRY(take_varint(&side->lots, &size));
    if (size < 1 || size > (uint64_t)VALUE_MAX) return LEAVE;
  }
  side->last = (Level){ticks, (int64_t)size};
  side->begun = 1;
  return OK;
}

static Outcome finished(const Side *side) {
  return side->steps.at == side->steps.end && side->lots.at == side->lots.end ? OK : LEAVE;
}

static Outcome fill_levels(PyObject *levels, Py_ssize_t count, Side side) {
  for (Py_ssize_t i = 0; i < count; i++) {
    TRY(take_level(&side));
    PyObject *pair = PyTuple_New(2);
    if (!pair || PyList_SetItem(levels, i, pair) < 0) return FAILED;
    TRY(place_integer(pair, 0, side.last.ticks));
    TRY(place_integer(pair, 1, side.last.lots));
  }
  return finished(&side);
}

static Outcome place_side(PyObject *args, Py_ssize_t index, const Fields *fields, int number) {
  Py_ssize_t count = count_varints(fields->spans[number]);
  if (count > LEVELS_MAX) return LEAVE;
  PyObject *levels = PyList_New(count);
  TRY(place(args, index, levels));
  return fill_levels(levels, count, side_of(fields, number));
}

static Outcome place_book(PyObject *args, Span body) {
  Fields fields;
  TRY(read_fields(body, " vvvvv8vvbbbbb4v", &fields));
  if (fields.values[15] > UINT32_MAX) return LEAVE;
  TRY(place_header(args, &fields));
  TRY(place_side(args, 8, &fields, 9));
  TRY(place_side(args, 9, &fields, 11));
  TRY(place_scale(args, 10, &fields, 13));
  TRY(place(args, 11, has(&fields, 14) ? PyLong_FromLongLong((int64_t)fields.values[14]) : Py_NewRef(Py_None)));
  return place_integer(args, 12, (int64_t)fields.values[15]);
}

static Outcome place_trade_fields(PyObject *args, Span body) {
  Fields fields;
  TRY(read_fields(body, " vvvbv", &fields));
  const uint64_t *v = fields.values;
  int64_t ticks = unzigzag(v[1]);
  if (ticks < -VALUE_MAX || ticks > VALUE_MAX || v[2] > (uint64_t)VALUE_MAX || v[3] >= SIDES) return LEAVE;
  Span id = fields.spans[4];
  if (id.end - id.at > TRADE_ID_MAX) return LEAVE; /* in bytes; the codec counts characters */
  PyObject *text = PyUnicode_DecodeUTF8(id.at ? (const char *)id.at : "", id.end - id.at, NULL);
  if (!text && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
    PyErr_Clear();
    return LEAVE;
  }
  TRY(place(args, 3, text));
  TRY(place_integer(args, 0, ticks));
  TRY(place_integer(args, 1, (int64_t)v[2]));
  TRY(place(args, 2, Py_NewRef(sides[v[3]])));
  return place_integer(args, 4, (int64_t)v[5]);
}

/* Makes a message of what `fill` reads in `body`. */
static Outcome make(PyObject *type, Py_ssize_t size, Outcome (*fill)(PyObject *, Span), Span body, PyObject **made) {
  PyObject *args = PyTuple_New(size);
  Outcome outcome = args ? fill(args, body) : FAILED;
  if (outcome == OK && !(*made = PyObject_CallObject(type, args))) outcome = FAILED;
  Py_XDECREF(args);
  return outcome;
}

static Outcome place_trades(PyObject *args, Span body) {
  Fields fields;
  TRY(read_fields(body, " vvvvv8vvrb", &fields));
  if (fields.values[9] > TRADES_MAX) return LEAVE;
  TRY(place_header(args, &fields));
  PyObject *trades = PyList_New((Py_ssize_t)fields.values[9]), *trade = NULL;
  TRY(place(args, 8, trades));
  Span span, all = fields.spans[9];
  for (Py_ssize_t i = 0; all.at < all.end; i++) {
    all.at++; /* the tag */
    TRY(take_bytes(&all, &span));
    TRY(make(trade_type, 5, place_trade_fields, span, &trade));
    if (PyList_SetItem(trades, i, trade) < 0) return FAILED;
  }
  return place_scale(args, 9, &fields, 10);
}

static Outcome place_quote(PyObject *args, Span body) {
  Fields fields;
  TRY(read_fields(body, " vvvvv8vvvvvvb", &fields));
  TRY(place_header(args, &fields));
  for (int i = 0; i < 4; i++) {
    uint64_t value = fields.values[9 + i];
    int64_t number = i % 2 ? (int64_t)value : unzigzag(value);
    if (number < -VALUE_MAX || number > VALUE_MAX) return LEAVE;
    TRY(place_integer(args, 8 + i, number));
  }
  return place_scale(args, 12, &fields, 13);
}

static Outcome take_chunk(Span in, PyObject **message) {
  Span body;
  if (in.at == in.end) return LEAVE;
  int tag = *in.at++;
  TRY(take_bytes(&in, &body));
  if (in.at != in.end) return LEAVE;
  switch (tag) {
    case 1 << 3 | BYTES: return make(book_type, 13, place_book, body, message);
    case 2 << 3 | BYTES: return make(trades_type, 10, place_trades, body, message);
    case 3 << 3 | BYTES: return make(quote_type, 13, place_quote, body, message);
    default: return LEAVE;
  }
}

static Span span_of(PyObject *bytes) {
  const uint8_t *at = (const uint8_t *)PyBytes_AsString(bytes);
  return (Span){at, at + PyBytes_Size(bytes)};
}

static PyObject *unpack_record(PyObject *module, PyObject *value) {
  (void)module;
  if (!PyBytes_Check(value)) return Py_NewRef(Py_None);
  PyObject *message = NULL;
  Outcome outcome = take_chunk(span_of(value), &message);
  return outcome == LEAVE ? Py_NewRef(Py_None) : message;
}

/* The chunks of `in`, or NULL. */
static PyObject *take_chunks(Span in) {
  PyObject *parts = PyList_New(0);
  while (parts && in.at < in.end) {
    const uint8_t *start = in.at;
    Span chunk;
    PyObject *part = NULL;
    Outcome outcome = *in.at++ == (1 << 3 | BYTES) ? take_bytes(&in, &chunk) : LEAVE;
    if (outcome == LEAVE) in.at = in.end; /* no chunk: all that follows is the codec's */
    if (outcome == OK) outcome = take_chunk(chunk, &part);
    if (outcome == LEAVE) part = PyBytes_FromStringAndSize((const char *)start, in.at - start);
    if (!part || PyList_Append(parts, part) < 0) Py_CLEAR(parts);
    Py_XDECREF(part);
  }
  return parts;
}

static PyObject *unpack_frame(PyObject *module, PyObject *frame) {
  (void)module;
  PyObject *bytes = PyBytes_FromObject(frame), *parts = bytes ? take_chunks(span_of(bytes)) : NULL;
  Py_XDECREF(bytes);
  return parts;
}

/* ---- deltas */

enum { DELTA_LEVELS_MAX = 64 /* per side; the codec reads larger ones */, LEVELS_FROM = 9 /* field */ };

/* The body of a book in a record, without what only snapshots have. */
static Outcome read_delta(PyObject *value, Fields *fields, int64_t *header) {
  if (!PyBytes_Check(value)) return LEAVE;
  const uint8_t *at = (const uint8_t *)PyBytes_AsString(value);
  Span in = {at, at + PyBytes_Size(value)}, body;
  if (in.at == in.end || *in.at++ != (1 << 3 | BYTES)) return LEAVE;
  TRY(take_bytes(&in, &body));
  if (in.at != in.end) return LEAVE;
  TRY(read_fields(body, " vvvvv8vvbbbb", fields));
  return read_header(fields, header);
}

/* Its levels and their number; LEAVE when they are not valid. */
static Outcome read_side(const Fields *fields, int number, Level *levels, Py_ssize_t *count) {
  Side side = side_of(fields, number);
  *count = count_varints(side.steps);
  if (*count > DELTA_LEVELS_MAX) return LEAVE;
  for (Py_ssize_t i = 0; i < *count; i++) {
    TRY(take_level(&side));
    levels[i] = side.last;
  }
  return finished(&side);
}

static void set_levels(Ladder *side, const Level *levels, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; i++) set_level(side, levels[i]);
}

/* Adds the list of their prices to a list; -1 with an exception. */
static int list_prices(PyObject *list, const Level *levels, Py_ssize_t count) {
  PyObject *prices = prices_of(levels, count);
  int failed = !prices || PyList_Append(list, prices) < 0;
  Py_XDECREF(prices);
  return failed ? -1 : 0;
}

typedef struct {
  int64_t header[HEADER];
  Level bids[DELTA_LEVELS_MAX], asks[DELTA_LEVELS_MAX];
  Py_ssize_t bid_count, ask_count;
} Delta;

/* A record's, if it continues the position. */
static Outcome read_next(PyObject *record, PyObject *at_epoch, PyObject *at_seq, Delta *delta) {
  Fields fields;
  int64_t epoch, seq;
  const int64_t *h = delta->header;
  TRY(integer(at_epoch, 0, COUNT_MAX, &epoch));
  TRY(integer(at_seq, 1, COUNT_MAX, &seq));
  TRY(read_delta(record, &fields, delta->header));
  if (h[EPOCH] != epoch || h[PREV_SEQ] != seq || h[SEQ] == seq || h[FLAGS] & SNAPSHOT) return LEAVE;
  TRY(read_side(&fields, LEVELS_FROM, delta->bids, &delta->bid_count));
  return read_side(&fields, LEVELS_FROM + 2, delta->asks, &delta->ask_count);
}

/* What can fail comes first, so that all of a delta happens, or nothing. */
static PyObject *advance(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  Delta delta;
  (void)module;
  if (count != 7) return PyErr_SetString(PyExc_TypeError, "advance takes 7 arguments"), NULL;
  int listed = args[6] != Py_None;
  if ((PyObject *)Py_TYPE(args[3]) != ladder_type || (PyObject *)Py_TYPE(args[4]) != ladder_type ||
      (PyObject *)Py_TYPE(args[5]) != ring_type || (listed && !PyList_Check(args[6])))
    return PyErr_SetString(PyExc_TypeError, "advance takes two ladders and a ring of this module, and a list or None"), NULL;
  if (read_next(args[0], args[1], args[2], &delta) != OK) Py_RETURN_NONE;
  Ladder *bids = (Ladder *)args[3], *asks = (Ladder *)args[4];
  Ring *ring = (Ring *)args[5];
  if (reserve_levels(bids, delta.bid_count) < 0 || reserve_levels(asks, delta.ask_count) < 0 ||
      reserve_prices(ring, delta.bid_count + delta.ask_count) < 0)
    return NULL;
  if (listed && (list_prices(args[6], delta.bids, delta.bid_count) < 0 ||
                 list_prices(args[6], delta.asks, delta.ask_count) < 0))
    return NULL;
  const int64_t *h = delta.header;
  PyObject *advanced = Py_BuildValue("LLLL", (long long)h[SEQ], (long long)h[FLAGS], (long long)h[TS_EVENT],
                                     (long long)h[TS_RECEIVED]);
  if (!advanced) return NULL;
  set_levels(bids, delta.bids, delta.bid_count);
  set_levels(asks, delta.asks, delta.ask_count);
  int64_t *prices = ring->prices + ring->price_count;
  for (Py_ssize_t i = 0; i < delta.bid_count; i++) *prices++ = delta.bids[i].ticks;
  for (Py_ssize_t i = 0; i < delta.ask_count; i++) *prices++ = delta.asks[i].ticks;
  add_update(ring, h[SEQ], delta.bid_count, delta.ask_count);
  return advanced;
}

/* The fields of a body from the levels on. */
static Span levels_of(const Fields *fields) {
  Span span = {NULL, NULL};
  for (int number = LEVELS_FROM; number < LEVELS_FROM + 4; number++) {
    if (!has(fields, number)) continue;
    if (!span.at) span.at = fields->starts[number];
    span.end = fields->spans[number].end;
  }
  return span;
}

static PyObject *restamp(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  Fields fields;
  int64_t h[HEADER], stream, flags, published_ns;
  (void)module;
  if (count != 4) return PyErr_SetString(PyExc_TypeError, "restamp takes 4 arguments"), NULL;
  if (integer(args[1], 0, U32, &stream) != OK || integer(args[2], 0, U32, &flags) != OK ||
      integer(args[3], 1, INT64_MAX, &published_ns) != OK || read_delta(args[0], &fields, h) != OK)
    return PyErr_SetString(PyExc_ValueError, "not a record that was advanced by"), NULL;
  Span levels = levels_of(&fields);
  Py_ssize_t size = levels.end - levels.at;
  Out out;
  out.heap = NULL;
  if (reserve(&out, 0, ROOM + size) != OK) return NULL;
  out.at -= size;
  if (size) memcpy(out.at, levels.at, (size_t)size);
  h[STREAM] = stream;
  h[FLAGS] = flags;
  h[TS_PUBLISHED] = published_ns;
  write_header(&out, h);
  enclose(&out, 1, out.end);
  enclose(&out, 1, out.end);
  PyObject *bytes = PyBytes_FromStringAndSize((char *)out.at, out.end - out.at);
  PyMem_Free(out.heap);
  return bytes;
}

/* ---- the module */

static PyMethodDef methods[] = {
  {"pack_record", pack_record, METH_O, "See protos/shortcut.py."},
  {"pack_frame", pack_frame, METH_O, "See protos/shortcut.py."},
  {"unpack_record", unpack_record, METH_O, "See protos/shortcut.py."},
  {"unpack_frame", unpack_frame, METH_O, "See protos/shortcut.py."},
  {"advance", (PyCFunction)(void (*)(void))advance, METH_FASTCALL, "See protos/shortcut.py."},
  {"restamp", (PyCFunction)(void (*)(void))restamp, METH_FASTCALL, "See protos/shortcut.py."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

static int find_types(PyObject *messages) {
  book_type = PyObject_GetAttrString(messages, "BookUpdate");
  trades_type = PyObject_GetAttrString(messages, "TradesUpdate");
  quote_type = PyObject_GetAttrString(messages, "QuoteUpdate");
  trade_type = PyObject_GetAttrString(messages, "Trade");
  scale_type = PyObject_GetAttrString(messages, "Scale");
  PyObject *side_type = PyObject_GetAttrString(messages, "Side");
  int found = book_type && trades_type && quote_type && trade_type && scale_type && side_type;
  for (int i = 0; found && i < SIDES; i++) found = (sides[i] = PyObject_CallFunction(side_type, "i", i)) != NULL;
  Py_XDECREF(side_type);
  return found;
}

static int add_type(PyObject *module, const char *name, PyType_Spec *spec, PyObject **type) {
  *type = PyType_FromSpec(spec);
  return *type ? PyModule_AddObjectRef(module, name, *type) : -1;
}

PyMODINIT_FUNC PyInit_native(void) {
  for (int i = 0; i < NAMES; i++)
    if (!(names[i] = PyUnicode_InternFromString(texts[i]))) return NULL;
  PyObject *messages = PyImport_ImportModule("protos.messages");
  PyObject *module = messages && find_types(messages) ? PyModule_Create(&definition) : NULL;
  Py_XDECREF(messages);
  if (module && (add_type(module, "Ladder", &ladder_spec, &ladder_type) < 0 ||
                 add_type(module, "Ring", &ring_spec, &ring_type) < 0))
    Py_CLEAR(module);
  return module;
}
