/* Prices that updates touched: the numbers, and the type. protos/ring.py says what its methods do, and does it in Python. */
#include "levels.h"

typedef struct {
  int64_t seq;
  uint32_t bids, asks; /* how many prices; of the first in a ring none, it is a position alone */
} Touch;

typedef struct {
  PyObject_HEAD
  Py_ssize_t updates_max, prices_max;
  int64_t epoch;
  Touch *updates;
  int64_t *prices; /* of each update its bids, then its asks */
  Py_ssize_t update_count, update_room, price_count, price_room;
} Ring;

static PyObject *ring_type;

/* So that an update of so many prices can be added and does not fail; -1 with an exception. */
static int reserve_prices(Ring *self, Py_ssize_t more) {
  if (self->update_count == self->update_room) {
    Py_ssize_t size = self->update_room + self->update_room / 4 + 8;
    Touch *updates = PyMem_Realloc(self->updates, (size_t)size * sizeof *updates);
    if (!updates) return PyErr_NoMemory(), -1;
    self->updates = updates;
    self->update_room = size;
  }
  Py_ssize_t needed = self->price_count + more;
  if (needed > self->price_room) {
    Py_ssize_t size = needed + needed / 4 + 8;
    int64_t *prices = PyMem_Realloc(self->prices, (size_t)size * sizeof *prices);
    if (!prices) return PyErr_NoMemory(), -1;
    self->prices = prices;
    self->price_room = size;
  }
  return 0;
}

/* Gives the memory back that one huge update took. */
static void shrink(Ring *self) {
  Py_ssize_t size = 2 * self->price_count + 8;
  if (self->price_room < 2 * size) return;
  int64_t *prices = PyMem_Realloc(self->prices, (size_t)size * sizeof *prices);
  if (!prices) return;
  self->prices = prices;
  self->price_room = size;
}

/* Keeps the newer half of the updates, or fewer when single ones are huge. */
static void forget(Ring *self) {
  Py_ssize_t first = self->update_count - 1, kept = 0;
  while (first > self->update_count / 2) {
    Py_ssize_t more = kept + self->updates[first].bids + self->updates[first].asks;
    if (more > self->prices_max / 2) break;
    kept = more;
    first--;
  }
  if (kept) memmove(self->prices, self->prices + self->price_count - kept, (size_t)kept * sizeof *self->prices);
  self->price_count = kept;
  self->update_count -= first;
  memmove(self->updates, self->updates + first, (size_t)self->update_count * sizeof *self->updates);
  self->updates[0].bids = self->updates[0].asks = 0;
  shrink(self);
}

/* Adds the update whose prices stand behind all others. */
static void add_update(Ring *self, int64_t seq, Py_ssize_t bids, Py_ssize_t asks) {
  self->updates[self->update_count++] = (Touch){seq, (uint32_t)bids, (uint32_t)asks};
  self->price_count += bids + asks;
  if (self->update_count > self->updates_max || self->price_count > self->prices_max) forget(self);
}

/* Writes the prices behind the others; -1 with an exception. */
static int write_prices(Ring *self, PyObject *list, Py_ssize_t at) {
  for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
    PyObject *item = PyList_GetItem(list, i);
    if (!PyLong_Check(item)) return PyErr_SetString(PyExc_TypeError, "a price is an int"), -1;
    int64_t price = PyLong_AsLongLong(item);
    if (price == -1 && PyErr_Occurred()) return -1;
    self->prices[self->price_count + at + i] = price;
  }
  return 0;
}

static PyObject *ring_add(PyObject *object, PyObject *const *args, Py_ssize_t given) {
  Ring *self = (Ring *)object;
  if (given != 3 || !PyLong_Check(args[0]) || !PyList_CheckExact(args[1]) || !PyList_CheckExact(args[2]))
    return PyErr_SetString(PyExc_TypeError, "add takes a seq and two lists of prices"), NULL;
  int64_t seq = PyLong_AsLongLong(args[0]);
  if (seq == -1 && PyErr_Occurred()) return NULL;
  Py_ssize_t bids = PyList_Size(args[1]), asks = PyList_Size(args[2]);
  if (reserve_prices(self, bids + asks) < 0 || write_prices(self, args[1], 0) < 0 || write_prices(self, args[2], bids) < 0)
    return NULL;
  add_update(self, seq, bids, asks);
  Py_RETURN_NONE;
}

static void begin_at(Ring *self, int64_t epoch, int64_t seq) {
  self->epoch = epoch;
  self->updates[0] = (Touch){seq, 0, 0};
  self->update_count = 1;
  self->price_count = 0;
  shrink(self);
}

static PyObject *ring_reset(PyObject *object, PyObject *args) {
  long long epoch, seq;
  if (!PyArg_ParseTuple(args, "LL", &epoch, &seq)) return NULL;
  begin_at((Ring *)object, epoch, seq);
  Py_RETURN_NONE;
}

/* Of the update to the position (epoch, seq) in `args`; -1: the ring does not hold it, -2 with an exception. */
static Py_ssize_t index_of(const Ring *self, PyObject *args) {
  long long epoch, seq;
  if (!PyArg_ParseTuple(args, "LL", &epoch, &seq)) return -2;
  if (epoch != self->epoch || seq == 0) return -1;
  Py_ssize_t low = 0, high = self->update_count;
  while (low < high) {
    Py_ssize_t middle = low + (high - low) / 2;
    if (self->updates[middle].seq < seq) low = middle + 1;
    else high = middle;
  }
  return low < self->update_count && self->updates[low].seq == seq ? low : -1;
}

static PyObject *ring_holds(PyObject *object, PyObject *args) {
  Py_ssize_t index = index_of((Ring *)object, args);
  return index == -2 ? NULL : PyBool_FromLong(index >= 0);
}

static int join(PyObject *set, const int64_t *prices, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *price = PyLong_FromLongLong(prices[i]);
    int failed = !price || PySet_Add(set, price) < 0;
    Py_XDECREF(price);
    if (failed) return -1;
  }
  return 0;
}

static PyObject *ring_touched(PyObject *object, PyObject *args) {
  Ring *self = (Ring *)object;
  Py_ssize_t index = index_of(self, args);
  if (index < 0) return index == -2 ? NULL : Py_NewRef(Py_None);
  PyObject *bids = PySet_New(NULL), *asks = PySet_New(NULL);
  const int64_t *at = self->prices + self->price_count;
  int failed = !bids || !asks;
  for (Py_ssize_t i = self->update_count - 1; !failed && i > index; i--) {
    Touch update = self->updates[i];
    at -= update.bids + update.asks;
    failed = join(bids, at, update.bids) < 0 || join(asks, at + update.bids, update.asks) < 0;
  }
  if (failed) Py_CLEAR(bids);
  return pair_of(bids, asks);
}

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  Py_ssize_t updates_max, prices_max;
  (void)keywords;
  if (!PyArg_ParseTuple(args, "nn", &updates_max, &prices_max)) return NULL;
  Ring *self = (Ring *)PyType_GenericAlloc(type, 0);
  if (!self) return NULL;
  self->updates_max = updates_max;
  self->prices_max = prices_max;
  if (reserve_prices(self, 0) < 0) {
    Py_DECREF(self);
    return NULL;
  }
  begin_at(self, 0, 0);
  return (PyObject *)self;
}

static void ring_dealloc(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  PyMem_Free(((Ring *)object)->updates);
  PyMem_Free(((Ring *)object)->prices);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
  Py_DECREF(type);
}

static PyMethodDef ring_methods[] = {
  {"reset", ring_reset, METH_VARARGS, NULL},
  {"add", (PyCFunction)(void (*)(void))ring_add, METH_FASTCALL, NULL},
  {"holds", ring_holds, METH_VARARGS, NULL},
  {"touched", ring_touched, METH_VARARGS, NULL},
  {NULL, NULL, 0, NULL},
};
static PyType_Slot ring_slots[] = {
  {Py_tp_doc, "See `protos.ring.Ring`."},
  {Py_tp_new, ring_new},
  {Py_tp_dealloc, ring_dealloc},
  {Py_tp_methods, ring_methods},
  {0, NULL},
};
static PyType_Spec ring_spec = {"protos.native.Ring", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT, ring_slots};
