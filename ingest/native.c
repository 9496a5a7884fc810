/* The loops over levels of ingest, in C on CPython's stable API. What each does is said, and done in Python, by
 * `fields.levels`, `Scaler._side` and `book.PlainLadder`; tests/ingest/test_native.py holds both to it.
 *
 * Text that is not plainly digits with at most one dot among them is left to Python, which knows the rest and the errors. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS_MAX = 18 }; /* protos/fixed.py: what fits is below 10**18, and so is every number here */

typedef struct {
  int64_t ticks, lots;
} Level;

typedef struct {
  Level level;
  Py_ssize_t place; /* in the message */
} Placed;

static const int64_t powers[DIGITS_MAX + 1] = {1e0, 1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8, 1e9,
                                               1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18};

/* Reads plain text of at most DIGITS_MAX characters: `value` counts 10**-`decimals`. False: it is not. */
static int read_plain(PyObject *text, int64_t *value, int *decimals) {
  Py_ssize_t size, dot = -1;
  if (!PyUnicode_CheckExact(text)) return 0;
  const char *at = PyUnicode_AsUTF8AndSize(text, &size);
  if (!at) {
    PyErr_Clear(); /* a lone surrogate */
    return 0;
  }
  if (size == 0 || size > DIGITS_MAX || at[0] == '.' || at[size - 1] == '.') return 0;
  int64_t sum = 0;
  for (Py_ssize_t i = 0; i < size; i++) {
    unsigned digit = (unsigned char)at[i] - (unsigned)'0';
    if (digit <= 9)
      sum = sum * 10 + digit;
    else if (at[i] == '.' && dot < 0)
      dot = i;
    else
      return 0;
  }
  *value = sum;
  *decimals = dot < 0 ? 0 : (int)(size - 1 - dot);
  return 1;
}

/* The two texts of a level; false when it is not a list of two. The list owns them. */
static int texts_of(PyObject *level, PyObject **price, PyObject **size) {
  if (!PyList_CheckExact(level) || PyList_Size(level) != 2) return 0;
  *price = PyList_GetItem(level, 0);
  *size = PyList_GetItem(level, 1);
  return 1;
}

/* Whether it is text that begins with a digit from `least` to 9; whether it goes on well is for `convert` to say. */
static int begins(PyObject *text, char least) {
  Py_ssize_t size;
  if (!PyUnicode_CheckExact(text)) return 0;
  const char *at = PyUnicode_AsUTF8AndSize(text, &size);
  if (!at) PyErr_Clear(); /* a lone surrogate */
  return at && at[0] >= least && at[0] <= '9';
}

static PyObject *are_plain(PyObject *module, PyObject *levels) {
  (void)module;
  if (!PyList_CheckExact(levels)) Py_RETURN_FALSE;
  Py_ssize_t count = PyList_Size(levels);
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *price, *size;
    if (!texts_of(PyList_GetItem(levels, i), &price, &size)) Py_RETURN_FALSE;
    int64_t value;
    int decimals, below_1 = !begins(price, '1');
    if (below_1 && (!read_plain(price, &value, &decimals) || !value)) Py_RETURN_FALSE;
    if (!begins(size, '0')) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

/* Counts plain text in 10**`exponent`. False: not plain, does not fit, or is finer. */
static int count_in(int exponent, int trims, PyObject *text, int64_t *value) {
  int decimals;
  if (!read_plain(text, value, &decimals)) return 0;
  int finer = exponent + decimals; /* digits that must be 0 */
  if (finer > 0) {
    if (!trims || *value % powers[finer]) return 0;
    *value /= powers[finer];
  } else if (finer < 0) {
    if (*value >= powers[DIGITS_MAX + finer]) return 0;
    *value *= powers[-finer];
  }
  return 1;
}

static int compare(const void *a, const void *b) {
  const Placed *one = a, *other = b;
  if (one->level.ticks != other->level.ticks) return one->level.ticks < other->level.ticks ? -1 : 1;
  return one->place < other->place ? -1 : 1;
}

static int sort(Level *levels, Py_ssize_t count) {
  Placed *placed = PyMem_Malloc(count * sizeof *placed);
  if (!placed) return -1;
  for (Py_ssize_t i = 0; i < count; i++) placed[i] = (Placed){levels[i], i};
  qsort(placed, count, sizeof *placed, compare);
  for (Py_ssize_t i = 0; i < count; i++) levels[i] = placed[i].level;
  PyMem_Free(placed);
  return 0;
}

/* Ascending, of equal prices only the last; the number of levels that are left, -1 without memory. Venues mostly send
 * them in order, best first. */
static Py_ssize_t arrange(Level *levels, Py_ssize_t count) {
  Py_ssize_t ascending = 1, descending = 1, kept = 0;
  while (ascending < count && levels[ascending - 1].ticks < levels[ascending].ticks) ascending++;
  if (ascending >= count) return count;
  while (descending < count && levels[descending - 1].ticks > levels[descending].ticks) descending++;
  if (descending == count) {
    for (Py_ssize_t i = 0, j = count - 1; i < j; i++, j--) {
      Level level = levels[i];
      levels[i] = levels[j];
      levels[j] = level;
    }
    return count;
  }
  if (sort(levels, count) < 0) return -1;
  for (Py_ssize_t i = 0; i < count; i++)
    if (i + 1 == count || levels[i].ticks != levels[i + 1].ticks) levels[kept++] = levels[i];
  return kept;
}

/* (one, other), both new references that it takes; NULL with an exception, also when one of them is. */
static PyObject *pair_of(PyObject *one, PyObject *other) {
  PyObject *pair = one && other ? PyTuple_Pack(2, one, other) : NULL;
  Py_XDECREF(one);
  Py_XDECREF(other);
  return pair;
}

static PyObject *list_of(const Level *levels, Py_ssize_t count) {
  PyObject *list = PyList_New(count);
  for (Py_ssize_t i = 0; list && i < count; i++) {
    PyObject *level = pair_of(PyLong_FromLongLong(levels[i].ticks), PyLong_FromLongLong(levels[i].lots));
    if (!level || PyList_SetItem(list, i, level) < 0) Py_CLEAR(list);
  }
  return list;
}

static PyObject *convert(PyObject *module, PyObject *args) {
  PyObject *texts;
  int price_exponent, size_exponent, trims;
  (void)module;
  if (!PyArg_ParseTuple(args, "Oiip", &texts, &price_exponent, &size_exponent, &trims)) return NULL;
  if (!PyList_CheckExact(texts) || price_exponent > 0 || price_exponent < -DIGITS_MAX || size_exponent > 0 ||
      size_exponent < -DIGITS_MAX)
    Py_RETURN_NONE;
  Py_ssize_t count = PyList_Size(texts);
  Level *levels = PyMem_Malloc(count * sizeof *levels);
  if (!levels) return PyErr_NoMemory();
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *price, *size;
    if (!texts_of(PyList_GetItem(texts, i), &price, &size) ||
        !count_in(price_exponent, trims, price, &levels[i].ticks) ||
        !count_in(size_exponent, trims, size, &levels[i].lots)) {
      PyMem_Free(levels);
      Py_RETURN_NONE;
    }
  }
  count = arrange(levels, count);
  PyObject *result = count < 0 ? PyErr_NoMemory() : list_of(levels, count);
  PyMem_Free(levels);
  return result;
}

/* ---- one side of a book */

typedef struct {
  PyObject_HEAD
  Level *room; /* with space on both sides of the levels: changes near an end move only what is beyond them */
  Py_ssize_t size, begin, count;
} Ladder;

/* The numbers of (ticks, lots); -1 with an exception. */
static int read_level(PyObject *pair, Level *level) {
  if (!PyTuple_CheckExact(pair) || PyTuple_Size(pair) != 2 || !PyLong_CheckExact(PyTuple_GetItem(pair, 0)) ||
      !PyLong_CheckExact(PyTuple_GetItem(pair, 1))) {
    PyErr_SetString(PyExc_TypeError, "a level is (ticks, lots)");
    return -1;
  }
  level->ticks = PyLong_AsLongLong(PyTuple_GetItem(pair, 0));
  if (level->ticks == -1 && PyErr_Occurred()) return -1;
  level->lots = PyLong_AsLongLong(PyTuple_GetItem(pair, 1));
  return level->lots == -1 && PyErr_Occurred() ? -1 : 0;
}

/* First position from `from` on whose price is not below `ticks`. */
static Py_ssize_t find(const Ladder *self, Py_ssize_t from, int64_t ticks) {
  const Level *levels = self->room + self->begin;
  Py_ssize_t low = from, high = self->count;
  while (low < high) {
    Py_ssize_t middle = low + (high - low) / 2;
    if (levels[middle].ticks < ticks)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* New space for `count` levels, at least those that there are, and for half as many more on each side; -1 with an
 * exception. */
static int make_room(Ladder *self, Py_ssize_t count) {
  Py_ssize_t size = 2 * count + 16, begin = (size - count) / 2;
  Level *room = PyMem_Malloc(size * sizeof *room);
  if (!room) {
    PyErr_NoMemory();
    return -1;
  }
  if (self->count) memcpy(room + begin, self->room + self->begin, self->count * sizeof *room);
  PyMem_Free(self->room);
  self->room = room;
  self->size = size;
  self->begin = begin;
  return 0;
}

static int insert(Ladder *self, Py_ssize_t at, Level level) {
  int front = at < self->count / 2;
  if ((front ? self->begin == 0 : self->begin + self->count == self->size) && make_room(self, self->count) < 0) return -1;
  Level *levels = self->room + self->begin;
  if (front) {
    memmove(levels - 1, levels, at * sizeof *levels);
    self->begin--;
  } else
    memmove(levels + at + 1, levels + at, (self->count - at) * sizeof *levels);
  self->count++;
  self->room[self->begin + at] = level;
  return 0;
}

static void delete(Ladder *self, Py_ssize_t at) {
  Level *levels = self->room + self->begin;
  if (at < self->count / 2) {
    memmove(levels + 1, levels, at * sizeof *levels);
    self->begin++;
  } else
    memmove(levels + at, levels + at + 1, (self->count - at - 1) * sizeof *levels);
  self->count--;
}

/* Sets or removes a level whose price can only be from position `*at` on, where it is then, and tells its lots before.
 * -1 with an exception. */
static int set(Ladder *self, Level level, Py_ssize_t *at, int64_t *before) {
  *at = find(self, *at, level.ticks);
  Level *known = self->room + self->begin + *at;
  if (*at == self->count || known->ticks != level.ticks) {
    *before = 0;
    return level.lots ? insert(self, *at, level) : 0;
  }
  *before = known->lots;
  if (level.lots)
    known->lots = level.lots;
  else
    delete(self, *at);
  return 0;
}

static PyObject *ladder_merge(PyObject *object, PyObject *args) {
  Ladder *self = (Ladder *)object;
  PyObject *changes, *undo;
  if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &changes, &PyList_Type, &undo)) return NULL;
  PyObject *effective = PyList_New(0);
  Py_ssize_t at = 0;
  int64_t last = INT64_MIN;
  for (Py_ssize_t i = 0; effective && i < PyList_Size(changes); i++) {
    PyObject *change = PyList_GetItem(changes, i), *undone = NULL;
    Level level;
    int64_t before;
    int failed = read_level(change, &level) < 0;
    if (!failed && i && level.ticks <= last) {
      PyErr_SetString(PyExc_ValueError, "prices do not ascend");
      failed = 1;
    }
    last = level.ticks;
    failed = failed || set(self, level, &at, &before) < 0;
    if (!failed && (level.lots || before)) {
      undone = pair_of(PyLong_FromLongLong(level.ticks), PyLong_FromLongLong(before));
      failed = !undone || PyList_Append(undo, undone) < 0 || PyList_Append(effective, change) < 0;
      Py_XDECREF(undone);
    }
    if (failed) Py_CLEAR(effective);
  }
  return effective;
}

static PyObject *ladder_apply(PyObject *object, PyObject *levels) {
  if (!PyList_CheckExact(levels)) return PyErr_Format(PyExc_TypeError, "levels are no list");
  for (Py_ssize_t i = 0; i < PyList_Size(levels); i++) {
    Level level;
    Py_ssize_t at = 0;
    int64_t before;
    if (read_level(PyList_GetItem(levels, i), &level) < 0 || set((Ladder *)object, level, &at, &before) < 0) return NULL;
  }
  Py_RETURN_NONE;
}

static PyObject *ladder_replace(PyObject *object, PyObject *levels) {
  Ladder *self = (Ladder *)object, fresh = {.count = 0};
  if (!PyList_CheckExact(levels)) return PyErr_Format(PyExc_TypeError, "levels are no list");
  if (make_room(&fresh, PyList_Size(levels)) < 0) return NULL;
  for (Py_ssize_t i = 0; i < PyList_Size(levels); i++) {
    Level *level = fresh.room + fresh.begin + fresh.count;
    if (read_level(PyList_GetItem(levels, i), level) < 0) goto failed;
    if (!level->lots) continue;
    if (fresh.count && level[-1].ticks >= level->ticks) {
      PyErr_SetString(PyExc_ValueError, "prices do not ascend");
      goto failed;
    }
    fresh.count++;
  }
  PyMem_Free(self->room);
  self->room = fresh.room;
  self->size = fresh.size;
  self->begin = fresh.begin;
  self->count = fresh.count;
  Py_RETURN_NONE;
failed:
  PyMem_Free(fresh.room);
  return NULL;
}

static PyObject *ladder_part(PyObject *object, PyObject *args) {
  Ladder *self = (Ladder *)object;
  Py_ssize_t start, stop;
  if (!PyArg_ParseTuple(args, "nn", &start, &stop)) return NULL;
  if (start < 0 || stop > self->count) return PyErr_Format(PyExc_IndexError, "there are %zd levels", self->count);
  return list_of(self->room + self->begin + start, stop > start ? stop - start : 0);
}

static PyObject *ladder_levels(PyObject *object, PyObject *unused) {
  Ladder *self = (Ladder *)object;
  (void)unused;
  return list_of(self->room + self->begin, self->count);
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
  {"part", ladder_part, METH_VARARGS, NULL},
  {"levels", ladder_levels, METH_NOARGS, NULL},
  {NULL, NULL, 0, NULL},
};
static PyGetSetDef ladder_ends[] = {
  {"lowest", ladder_end, NULL, NULL, NULL},
  {"highest", ladder_end, NULL, NULL, &ladder_methods}, /* any address */
  {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot ladder_slots[] = {
  {Py_tp_doc, "See `ingest.book.Ladder`."},
  {Py_tp_dealloc, ladder_dealloc},
  {Py_tp_methods, ladder_methods},
  {Py_tp_getset, ladder_ends},
  {Py_sq_length, ladder_count},
  {0, NULL},
};
static PyType_Spec ladder_spec = {"ingest.native.Ladder", sizeof(Ladder), 0, Py_TPFLAGS_DEFAULT, ladder_slots};

static PyMethodDef methods[] = {
  {"are_plain", are_plain, METH_O, "Whether `ingest.mappers.fields.levels` has nothing to say against these levels."},
  {"convert", convert, METH_VARARGS, "`ingest.scaling.Scaler._side`, or None where it must be asked itself."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
  PyObject *module = PyModule_Create(&definition), *type = module ? PyType_FromSpec(&ladder_spec) : NULL;
  if (!type || PyModule_AddObjectRef(module, "Ladder", type) < 0) Py_CLEAR(module);
  Py_XDECREF(type);
  return module;
}
