/* One side of a book: the numbers, and the type. protos/ladder.py says what its methods do, and does it in Python. */
#include "levels.h"

typedef struct {
  PyObject_HEAD
  Level *room; /* with space on both sides of the levels: changes near an end move only what is beyond them */
  Py_ssize_t size, begin, count;
  Py_ssize_t near; /* where the last search ended: the next one is mostly for a price close to it */
} Ladder;

static PyObject *ladder_type;

static PyObject *prices_of(const Level *levels, Py_ssize_t count) {
  PyObject *prices = PyList_New(count);
  for (Py_ssize_t i = 0; prices && i < count; i++) {
    PyObject *price = PyLong_FromLongLong(levels[i].ticks);
    if (!price || PyList_SetItem(prices, i, price) < 0) Py_CLEAR(prices);
  }
  return prices;
}

/* First position whose price is not below `ticks`. Searches away from the last: what is far from there is in no cache. */
static Py_ssize_t find(Ladder *self, int64_t ticks) {
  const Level *levels = self->room + self->begin;
  Py_ssize_t low = 0, high = self->count;
  if (self->near < high && levels[self->near].ticks < ticks) {
    low = self->near + 1;
    for (Py_ssize_t step = 1; step < high - low; step *= 2) {
      if (levels[low + step - 1].ticks >= ticks) high = low + step - 1;
      else low += step;
    }
  } else {
    if (self->near < high) high = self->near;
    for (Py_ssize_t step = 1; step < high - low; step *= 2) {
      if (levels[high - step].ticks < ticks) low = high - step + 1;
      else high -= step;
    }
  }
  while (low < high) {
    Py_ssize_t middle = low + (high - low) / 2;
    if (levels[middle].ticks < ticks) low = middle + 1;
    else high = middle;
  }
  return self->near = low;
}

/* New space for `count` levels, at least those that there are, and on each side for half as many and `spare` more; -1
 * with an exception. */
static int make_room(Ladder *self, Py_ssize_t count, Py_ssize_t spare) {
  Py_ssize_t begin = count / 2 + spare, size = count + 2 * begin;
  Level *room = PyMem_Malloc((size_t)size * sizeof *room);
  if (!room) {
    PyErr_NoMemory();
    return -1;
  }
  if (self->count) memcpy(room + begin, self->room + self->begin, (size_t)self->count * sizeof *room);
  PyMem_Free(self->room);
  self->room = room;
  self->size = size;
  self->begin = begin;
  return 0;
}

/* So that so many levels can be set and none fails; -1 with an exception. */
static int reserve_levels(Ladder *self, Py_ssize_t more) {
  int enough = self->begin >= more && self->size - self->begin - self->count >= more;
  return enough ? 0 : make_room(self, self->count, 8 + more);
}

static void insert(Ladder *self, Py_ssize_t at, Level level) {
  Level *levels = self->room + self->begin;
  if (at < self->count / 2) {
    memmove(levels - 1, levels, (size_t)at * sizeof *levels);
    self->begin--;
  } else {
    memmove(levels + at + 1, levels + at, (size_t)(self->count - at) * sizeof *levels);
  }
  self->count++;
  self->room[self->begin + at] = level;
}

static void delete(Ladder *self, Py_ssize_t at) {
  Level *levels = self->room + self->begin;
  if (at < self->count / 2) {
    memmove(levels + 1, levels, (size_t)at * sizeof *levels);
    self->begin++;
  } else {
    memmove(levels + at, levels + at + 1, (size_t)(self->count - at - 1) * sizeof *levels);
  }
  self->count--;
}

/* Sets or removes a level, for which there is room, and tells its lots before. */
static int64_t set_level(Ladder *self, Level level) {
  Py_ssize_t at = find(self, level.ticks);
  Level *known = self->room + self->begin + at;
  if (at == self->count || known->ticks != level.ticks) {
    if (level.lots) insert(self, at, level);
    return 0;
  }
  int64_t before = known->lots;
  if (level.lots) known->lots = level.lots;
  else delete(self, at);
  return before;
}

/* The same of (ticks, lots); -1 with an exception. */
static int take_pair(Ladder *self, PyObject *pair, Level *level, int64_t *before) {
  if (!PyTuple_CheckExact(pair) || PyTuple_Size(pair) != 2 || !PyLong_CheckExact(PyTuple_GetItem(pair, 0)) ||
      !PyLong_CheckExact(PyTuple_GetItem(pair, 1)))
    return PyErr_SetString(PyExc_TypeError, "a level is (ticks, lots)"), -1;
  level->ticks = PyLong_AsLongLong(PyTuple_GetItem(pair, 0));
  if (level->ticks == -1 && PyErr_Occurred()) return -1;
  level->lots = PyLong_AsLongLong(PyTuple_GetItem(pair, 1));
  if ((level->lots == -1 && PyErr_Occurred()) || reserve_levels(self, 1) < 0) return -1;
  *before = set_level(self, *level);
  return 0;
}

static int take_pairs(Ladder *self, PyObject *levels) {
  Level level;
  int64_t before;
  if (!PyList_CheckExact(levels)) return PyErr_SetString(PyExc_TypeError, "levels are no list"), -1;
  for (Py_ssize_t i = 0; i < PyList_Size(levels); i++)
    if (take_pair(self, PyList_GetItem(levels, i), &level, &before) < 0) return -1;
  return 0;
}

static PyObject *ladder_apply(PyObject *object, PyObject *levels) {
  return take_pairs((Ladder *)object, levels) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *ladder_replace(PyObject *object, PyObject *levels) {
  Ladder *self = (Ladder *)object, fresh = {.count = 0};
  if (make_room(&fresh, PyList_CheckExact(levels) ? PyList_Size(levels) : 0, 8) < 0) return NULL;
  if (take_pairs(&fresh, levels) < 0) {
    PyMem_Free(fresh.room);
    return NULL;
  }
  PyMem_Free(self->room);
  self->room = fresh.room;
  self->size = fresh.size;
  self->begin = fresh.begin;
  self->count = fresh.count;
  self->near = 0;
  Py_RETURN_NONE;
}

static PyObject *ladder_merge(PyObject *object, PyObject *args) {
  PyObject *changes, *undo;
  if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &changes, &PyList_Type, &undo)) return NULL;
  PyObject *effective = PyList_New(0);
  for (Py_ssize_t i = 0; effective && i < PyList_Size(changes); i++) {
    PyObject *change = PyList_GetItem(changes, i), *undone = NULL;
    Level level;
    int64_t before;
    int failed = take_pair((Ladder *)object, change, &level, &before) < 0;
    if (!failed && (level.lots || before)) {
      undone = pair_of(PyLong_FromLongLong(level.ticks), PyLong_FromLongLong(before));
      failed = !undone || PyList_Append(undo, undone) < 0 || PyList_Append(effective, change) < 0;
      Py_XDECREF(undone);
    }
    if (failed) Py_CLEAR(effective);
  }
  return effective;
}

/* The positions that the arguments say, as a slice does; 0 with an exception. */
static int read_slice(const Ladder *self, PyObject *const *args, Py_ssize_t given, Py_ssize_t *start, Py_ssize_t *count) {
  if (given != 2) return PyErr_SetString(PyExc_TypeError, "positions are two numbers"), 0;
  *start = PyLong_AsSsize_t(args[0]);
  if (*start == -1 && PyErr_Occurred()) return 0;
  Py_ssize_t stop = PyLong_AsSsize_t(args[1]);
  if (stop == -1 && PyErr_Occurred()) return 0;
  *count = PySlice_AdjustIndices(self->count, start, &stop, 1);
  return 1;
}

static PyObject *ladder_part(PyObject *object, PyObject *const *args, Py_ssize_t given) {
  Ladder *self = (Ladder *)object;
  Py_ssize_t start, count;
  return read_slice(self, args, given, &start, &count) ? list_of(self->room + self->begin + start, count) : NULL;
}

static PyObject *ladder_prices(PyObject *object, PyObject *const *args, Py_ssize_t given) {
  Ladder *self = (Ladder *)object;
  Py_ssize_t start, count;
  return read_slice(self, args, given, &start, &count) ? prices_of(self->room + self->begin + start, count) : NULL;
}

static PyObject *ladder_levels(PyObject *object, PyObject *unused) {
  Ladder *self = (Ladder *)object;
  (void)unused;
  return list_of(self->room + self->begin, self->count);
}

static PyObject *ladder_get(PyObject *object, PyObject *const *args, Py_ssize_t given) {
  Ladder *self = (Ladder *)object;
  if (given != 2 || !PyLong_Check(args[0])) return PyErr_SetString(PyExc_TypeError, "get takes a price and a default"), NULL;
  int64_t ticks = PyLong_AsLongLong(args[0]);
  if (ticks == -1 && PyErr_Occurred()) return NULL;
  Py_ssize_t at = find(self, ticks);
  const Level *level = self->room + self->begin + at;
  return at < self->count && level->ticks == ticks ? PyLong_FromLongLong(level->lots) : Py_NewRef(args[1]);
}

static PyObject *ladder_end(PyObject *object, void *highest) {
  Ladder *self = (Ladder *)object;
  if (!self->count) Py_RETURN_NONE;
  return PyLong_FromLongLong(self->room[self->begin + (highest ? self->count - 1 : 0)].ticks);
}

static Py_ssize_t ladder_count(PyObject *object) { return ((Ladder *)object)->count; }

static void ladder_dealloc(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  PyMem_Free(((Ladder *)object)->room);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
  Py_DECREF(type);
}

static PyMethodDef ladder_methods[] = {
  {"merge", ladder_merge, METH_VARARGS, NULL},
  {"apply", ladder_apply, METH_O, NULL},
  {"replace", ladder_replace, METH_O, NULL},
  {"part", (PyCFunction)(void (*)(void))ladder_part, METH_FASTCALL, NULL},
  {"prices", (PyCFunction)(void (*)(void))ladder_prices, METH_FASTCALL, NULL},
  {"levels", ladder_levels, METH_NOARGS, NULL},
  {"get", (PyCFunction)(void (*)(void))ladder_get, METH_FASTCALL, NULL},
  {NULL, NULL, 0, NULL},
};
static PyGetSetDef ladder_ends[] = {
  {"lowest", ladder_end, NULL, NULL, NULL},
  {"highest", ladder_end, NULL, NULL, &ladder_methods}, /* any address */
  {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot ladder_slots[] = {
  {Py_tp_doc, "See `protos.ladder.Ladder`."},
  {Py_tp_dealloc, ladder_dealloc},
  {Py_tp_methods, ladder_methods},
  {Py_tp_getset, ladder_ends},
  {Py_sq_length, ladder_count},
  {0, NULL},
};
static PyType_Spec ladder_spec = {"protos.native.Ladder", sizeof(Ladder), 0, Py_TPFLAGS_DEFAULT, ladder_slots};
