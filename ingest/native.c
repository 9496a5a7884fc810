/* The loops over levels of ingest, in C on CPython's stable API. What each does is said, and done in Python, by
 * `fields.levels`, `Scaler._side` and `merge.merge_each`; tests/ingest/test_native.py holds both to it.
 *
 * Text that is not plainly digits with at most one dot among them is left to Python, which knows the rest and the errors. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

enum { DIGITS_MAX = 18 }; /* protos/fixed.py: what fits is below 10**18, and so is every number here */

typedef struct {
  int64_t ticks, lots;
  Py_ssize_t place; /* in the message */
} Level;

static const int64_t powers[DIGITS_MAX + 1] = {1e0, 1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8, 1e9,
                                               1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18};

static PyObject *lots_name, *prices_name;

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

static PyObject *are_plain(PyObject *module, PyObject *levels) {
  (void)module;
  if (!PyList_CheckExact(levels)) Py_RETURN_FALSE;
  Py_ssize_t count = PyList_Size(levels);
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *price, *size;
    int64_t value;
    int decimals;
    if (!texts_of(PyList_GetItem(levels, i), &price, &size)) Py_RETURN_FALSE;
    if (!read_plain(price, &value, &decimals) || !value || !read_plain(size, &value, &decimals)) Py_RETURN_FALSE;
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
  const Level *one = a, *other = b;
  if (one->ticks != other->ticks) return one->ticks < other->ticks ? -1 : 1;
  return one->place < other->place ? -1 : 1;
}

/* Ascending, of equal prices only the last; returns how many are left. Venues send them in order, best first. */
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
  qsort(levels, count, sizeof *levels, compare);
  for (Py_ssize_t i = 0; i < count; i++)
    if (i + 1 == count || levels[i].ticks != levels[i + 1].ticks) levels[kept++] = levels[i];
  return kept;
}

static PyObject *pair_of(PyObject *one, PyObject *other) {
  return one && other ? PyTuple_Pack(2, one, other) : NULL;
}

static PyObject *list_of(const Level *levels, Py_ssize_t count) {
  PyObject *list = PyList_New(count);
  for (Py_ssize_t i = 0; list && i < count; i++) {
    PyObject *ticks = PyLong_FromLongLong(levels[i].ticks), *lots = PyLong_FromLongLong(levels[i].lots);
    PyObject *level = pair_of(ticks, lots);
    Py_XDECREF(ticks);
    Py_XDECREF(lots);
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
  PyObject *result = Py_None;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *price, *size;
    if (!texts_of(PyList_GetItem(texts, i), &price, &size) ||
        !count_in(price_exponent, trims, price, &levels[i].ticks) ||
        !count_in(size_exponent, trims, size, &levels[i].lots))
      goto done;
    levels[i].place = i;
  }
  result = list_of(levels, arrange(levels, count));
done:
  PyMem_Free(levels);
  if (result == Py_None) Py_INCREF(result);
  return result;
}

/* Whether prices[i] < ticks; -1 with an exception. */
static int is_below(PyObject *prices, Py_ssize_t i, int64_t ticks) {
  int64_t price = PyLong_AsLongLong(PyList_GetItem(prices, i));
  return price == -1 && PyErr_Occurred() ? -1 : price < ticks;
}

/* First index from `from` on whose price is not below `ticks`, by ever larger steps, then halving: the next change of a
 * message is mostly near. -1 with an exception. */
static Py_ssize_t find(PyObject *prices, Py_ssize_t from, int64_t ticks) {
  Py_ssize_t low = from, high = PyList_Size(prices), step = 1;
  int below = 1;
  while (low + step <= high && (below = is_below(prices, low + step - 1, ticks)) == 1) {
    low += step;
    step *= 2;
  }
  if (below < 0) return -1;
  if (low + step - 1 < high) high = low + step - 1;
  while (low < high) {
    Py_ssize_t middle = low + (high - low) / 2;
    if ((below = is_below(prices, middle, ticks)) < 0) return -1;
    if (below)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* Sets or removes one level. 1: it was a change, appended to both lists; 0: it was none; -1 with an exception. */
static int apply(PyObject *prices, PyObject *lots, PyObject *level, Py_ssize_t *at, PyObject *zero, PyObject *undo) {
  PyObject *ticks = PyTuple_GetItem(level, 0), *size = PyTuple_GetItem(level, 1);
  int64_t number = PyLong_AsLongLong(ticks);
  if (number == -1 && PyErr_Occurred()) return -1;
  PyObject *before = PyDict_GetItemWithError(lots, ticks);
  if (!before && PyErr_Occurred()) return -1;
  int stays = PyObject_IsTrue(size);
  if (stays < 0 || (!stays && !before)) return stays;
  PyObject *undone = pair_of(ticks, before ? before : zero);
  int failed = !undone || PyList_Append(undo, undone) < 0;
  Py_XDECREF(undone);
  if (failed) return -1;
  if (!stays || !before) {
    *at = find(prices, *at, number);
    if (*at < 0) return -1;
    if (stays ? PyList_Insert(prices, *at, ticks) < 0 : PyList_SetSlice(prices, *at, *at + 1, NULL) < 0) return -1;
  }
  return (stays ? PyDict_SetItem(lots, ticks, size) : PyDict_DelItem(lots, ticks)) < 0 ? -1 : 1;
}

static PyObject *merge(PyObject *module, PyObject *args) {
  PyObject *side, *changes, *undo;
  (void)module;
  if (!PyArg_ParseTuple(args, "OO!O!", &side, &PyList_Type, &changes, &PyList_Type, &undo)) return NULL;
  PyObject *lots = PyObject_GetAttr(side, lots_name), *prices = lots ? PyObject_GetAttr(side, prices_name) : NULL;
  PyObject *zero = PyLong_FromLong(0), *effective = PyList_New(0);
  Py_ssize_t at = 0;
  int failed = !prices || !zero || !effective;
  if (!failed && (!PyDict_CheckExact(lots) || !PyList_CheckExact(prices))) {
    PyErr_SetString(PyExc_TypeError, "a side has its prices in a list and its lots in a dict");
    failed = 1;
  }
  for (Py_ssize_t i = 0; !failed && i < PyList_Size(changes); i++) {
    PyObject *level = PyList_GetItem(changes, i);
    if (!PyTuple_CheckExact(level) || PyTuple_Size(level) != 2 || !PyLong_CheckExact(PyTuple_GetItem(level, 0)) ||
        !PyLong_CheckExact(PyTuple_GetItem(level, 1))) {
      PyErr_SetString(PyExc_TypeError, "a change is (ticks, lots)");
      failed = 1;
      break;
    }
    int changed = apply(prices, lots, level, &at, zero, undo);
    failed = changed < 0 || (changed && PyList_Append(effective, level) < 0);
  }
  if (failed) Py_CLEAR(effective);
  Py_XDECREF(lots);
  Py_XDECREF(prices);
  Py_XDECREF(zero);
  return effective;
}

static PyMethodDef methods[] = {
  {"are_plain", are_plain, METH_O, "Whether `ingest.mappers.fields.levels` has nothing to say against these levels."},
  {"convert", convert, METH_VARARGS, "`ingest.scaling.Scaler._side`, or None where it must be asked itself."},
  {"merge", merge, METH_VARARGS, "`ingest.merge.merge_each`."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
  lots_name = PyUnicode_InternFromString("lots");
  prices_name = PyUnicode_InternFromString("prices");
  return lots_name && prices_name ? PyModule_Create(&definition) : NULL;
}
