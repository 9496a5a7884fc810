/* What the modules in C share: levels as numbers, and as objects. */
#ifndef DEPTHCAST_LEVELS_H
#define DEPTHCAST_LEVELS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef struct {
  int64_t ticks, lots;
} Level;

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

#endif
