/* open_batch of services/kafka/follower.py, which says what it does, in C on CPython's stable API.
 *
 * It decides nothing: it reads the records of batches that are plain, with the values that aiokafka reads. Whatever is
 * unusual, compressed as well as malformed, it leaves to aiokafka, which reads it or says what is wrong. The checksum
 * was verified before, by aiokafka's. No Python code runs meanwhile, but for what garbage collection calls. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>

typedef enum { OK, LEAVE /* it to aiokafka */, FAILED /* with an exception */ } Outcome;
#define TRY(step) do { Outcome tried = (step); if (tried != OK) return tried; } while (0)

/* Where fields of a batch are. */
enum { LENGTH = 8, COUNTED = 12 /* by it */, MAGIC = 16, ATTRIBUTES = 21, FIRST_TIME = 27, MAX_TIME = 35, COUNT = 57, RECORDS = 61 };
/* Attributes. What is transactional is read as it comes, and the horizon of deletes is for brokers. */
enum { APPEND_TIME = 8, TRANSACTIONAL = 16, HORIZON = 64, PLAIN = APPEND_TIME | TRANSACTIONAL | HORIZON };
enum { OFFSET = 2, TIMESTAMP, KEY, VALUE }; /* fields of a record */

static newfunc new_tuple;

typedef struct {
  const uint8_t *at, *end;
} Span;

typedef struct {
  PyTypeObject *type;
  PyObject *args, *fields; /* of `tuple.__new__`; the fields of one record after the other */
  int64_t base_offset, start, first_ms, append_ms, last_ms;
  int has_append_ms;
} Batch;

static int64_t big_endian(const uint8_t *at, int size) {
  uint64_t value = at[0] < 0x80 ? 0 : UINT64_MAX;
  for (int i = 0; i < size; i++) value = value << 8 | at[i];
  return (int64_t)value;
}

static Outcome varint(Span *in, int64_t *value) {
  uint64_t bits = 0;
  for (int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
    uint64_t byte = *in->at++;
    if (shift == 63 && byte > 1) return LEAVE;
    bits |= (byte & 0x7f) << shift;
    if (byte < 0x80) {
      *value = (int64_t)(bits >> 1 ^ (0 - (bits & 1)));
      return OK;
    }
  }
  return LEAVE;
}

/* `bytes` is NULL for a null. */
static Outcome text(Span *in, const uint8_t **bytes, int64_t *size) {
  TRY(varint(in, size));
  *bytes = *size < 0 ? NULL : in->at;
  if (*size > in->end - in->at) return LEAVE;
  if (*size > 0) in->at += *size;
  return OK;
}

static PyObject *bytes_or_none(const uint8_t *bytes, int64_t size) {
  return bytes ? PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size) : Py_NewRef(Py_None);
}

/* Steals the value. The fields are those of the last record: nobody else has seen that tuple. */
static int set(const Batch *batch, int field, PyObject *value) {
  return value ? PyTuple_SetItem(batch->fields, field, value) : -1;
}

static Outcome read_record(Span *in, Batch *batch, PyObject *records) {
  int64_t size, delta_ms, delta, key_size, value_size, headers, timestamp = batch->append_ms, offset;
  const uint8_t *key, *value;
  TRY(varint(in, &size));
  if (size < 1 || size > in->end - in->at) return LEAVE;
  Span record = {in->at, in->at + size};
  in->at = record.end;
  if (*record.at++) return LEAVE; /* attributes, of which there are none */
  TRY(varint(&record, &delta_ms));
  TRY(varint(&record, &delta));
  TRY(text(&record, &key, &key_size));
  TRY(text(&record, &value, &value_size));
  TRY(varint(&record, &headers));
  if (headers || record.at != record.end || __builtin_add_overflow(batch->base_offset, delta, &offset)) return LEAVE;
  if (!batch->has_append_ms && __builtin_add_overflow(batch->first_ms, delta_ms, &timestamp)) return LEAVE;
  if (timestamp == -1) return LEAVE; /* there is none */
  if (offset < batch->start) return OK;
  if (set(batch, OFFSET, PyLong_FromLongLong(offset)) < 0 || set(batch, KEY, bytes_or_none(key, key_size)) < 0 ||
      set(batch, VALUE, bytes_or_none(value, value_size)) < 0)
    return FAILED;
  if (timestamp != batch->last_ms && set(batch, TIMESTAMP, PyLong_FromLongLong(timestamp)) < 0) return FAILED;
  batch->last_ms = timestamp; /* often the next record's, too */
  PyObject *made = new_tuple(batch->type, batch->args, NULL);
  int failed = !made || PyList_Append(records, made) < 0;
  Py_XDECREF(made);
  return failed ? FAILED : OK;
}

static Outcome read_batch(Span in, Batch *batch, PyObject *records) {
  const uint8_t *at = in.at;
  if (in.end - at < RECORDS || at[MAGIC] != 2 || big_endian(at + ATTRIBUTES, 2) & ~PLAIN) return LEAVE;
  batch->has_append_ms = at[ATTRIBUTES + 1] & APPEND_TIME;
  batch->base_offset = big_endian(at, 8);
  batch->first_ms = big_endian(at + FIRST_TIME, 8);
  batch->append_ms = big_endian(at + MAX_TIME, 8);
  int64_t count = big_endian(at + COUNT, 4);
  if (count < 0) return LEAVE;
  in.at += RECORDS;
  while (count--) TRY(read_record(&in, batch, records));
  return in.at == in.end ? OK : LEAVE;
}

static PyObject *open_batch(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  char *data;
  Py_ssize_t size;
  (void)module;
  if (count != 7) return PyErr_SetString(PyExc_TypeError, "open_batch takes 7 arguments"), NULL;
  if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0) return NULL;
  Batch batch = {.type = (PyTypeObject *)args[5], .last_ms = -1};
  Py_ssize_t at = PyLong_AsSsize_t(args[1]);
  batch.start = PyLong_AsLongLong(args[2]);
  if (PyErr_Occurred()) return NULL;
  if (!PyType_Check(args[5]) || !PyType_IsSubtype(batch.type, &PyTuple_Type))
    return PyErr_SetString(PyExc_TypeError, "records are to be tuples"), NULL;
  if (at < 0 || size - at < COUNTED) return PyErr_SetString(PyExc_ValueError, "no batch begins there"), NULL;
  Span in = {(uint8_t *)data + at, (uint8_t *)data + size};
  int64_t length = big_endian(in.at + LENGTH, 4);
  if (length < 0 || length > in.end - in.at - COUNTED) return PyErr_SetString(PyExc_ValueError, "no batch ends there"), NULL;
  in.end = in.at + COUNTED + length;
  PyObject *records = PyList_New(0), *result = NULL;
  batch.args = Py_BuildValue("((OOOOOOO))", args[3], args[4], Py_None, Py_None, Py_None, Py_None, args[6]);
  if (records && batch.args) {
    batch.fields = PyTuple_GetItem(batch.args, 0);
    Outcome outcome = read_batch(in, &batch, records);
    Py_ssize_t end = at + COUNTED + (Py_ssize_t)length;
    if (outcome != FAILED) result = Py_BuildValue("(On)", outcome == OK ? records : Py_None, end);
  }
  Py_XDECREF(records);
  Py_XDECREF(batch.args);
  return result;
}

static PyMethodDef methods[] = {
  {"open_batch", (PyCFunction)(void (*)(void))open_batch, METH_FASTCALL, "See services/kafka/follower.py."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
  new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
  return new_tuple ? PyModule_Create(&definition) : NULL;
}
