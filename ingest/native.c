/* The loops over levels of ingest, in C on CPython's stable API. What each does is said, and done in Python, by
 * `fields.levels` and `Scaler._side`; tests/ingest/test_native.py holds both to it.
 *
 * Text that is not plainly digits with at most one dot among them is left to Python, which knows the rest and the errors. */
#include "../protos/levels.h"
#include <stdlib.h>

enum { DIGITS_MAX = 18 }; /* protos/fixed.py: what fits is below 10**18, and so is every number here */

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

static PyMethodDef methods[] = {
  {"are_plain", are_plain, METH_O, "Whether `ingest.mappers.fields.levels` has nothing to say against these levels."},
  {"convert", convert, METH_VARARGS, "`ingest.scaling.Scaler._side`, or None where it must be asked itself."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&definition); }
