/* `send_all` of services/streamer/sending.py, which says what it does, in C on CPython's stable API.
 *
 * Chunks are shared by many clients, so what a segment holds is looked up once per call and then found by its address:
 * segments stay alive while their queues do, and no Python code runs in between. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum { SEEN_BITS = 10, SEEN = 1 << SEEN_BITS, HEADER_MAX = 10 };

typedef struct {
  PyObject *segment; /* borrowed; NULL: free */
  PyObject *data, *tally;
  const char *bytes;
  Py_ssize_t size;
  long long queues; /* that held it and are sent, not yet in the total */
} Seen;

typedef struct {
  Seen seen[SEEN];
  PyObject *total; /* of the tallies of all that was sent */
} Work;

static PyObject *data_name, *tally_name;

/* Adds what one segment counts for, and lets it go. */
static int settle(Work *work, Seen *seen) {
  int failed = 0;
  if (seen->queues) {
    PyObject *queues = PyLong_FromLongLong(seen->queues);
    PyObject *product = queues ? PyNumber_Multiply(queues, seen->tally) : NULL;
    PyObject *total = product ? PyNumber_Add(work->total, product) : NULL;
    Py_XDECREF(queues);
    Py_XDECREF(product);
    failed = total == NULL;
    if (total) {
      Py_DECREF(work->total);
      work->total = total;
    }
  }
  Py_CLEAR(seen->data);
  Py_CLEAR(seen->tally);
  seen->segment = NULL;
  seen->queues = 0;
  return failed ? -1 : 0;
}

/* What is known of a segment; NULL with an exception. One that has its place taken makes it free. */
static Seen *look_up(Work *work, PyObject *segment) {
  Seen *seen = &work->seen[(uint64_t)(uintptr_t)segment * 0x9E3779B97F4A7C15u >> (64 - SEEN_BITS)];
  if (seen->segment == segment) return seen;
  if (seen->segment && settle(work, seen) < 0) return NULL;
  seen->data = PyObject_GetAttr(segment, data_name);
  seen->tally = PyObject_GetAttr(segment, tally_name);
  char *bytes;
  if (!seen->data || !seen->tally || PyBytes_AsStringAndSize(seen->data, &bytes, &seen->size) < 0) {
    settle(work, seen);
    return NULL;
  }
  seen->bytes = bytes;
  seen->segment = segment;
  return seen;
}

/* Joins the queue at `payload`; its size, larger than `size_max` when it does not fit, -1 with an exception. */
static Py_ssize_t join(Work *work, PyObject *queue, char *payload, Py_ssize_t size_max) {
  Py_ssize_t size = 0, count = PyList_Size(queue);
  for (Py_ssize_t i = 0; i < count; i++) {
    Seen *seen = look_up(work, PyList_GetItem(queue, i));
    if (!seen) return -1;
    if (size + seen->size > size_max) return size_max + 1;
    memcpy(payload + size, seen->bytes, seen->size);
    size += seen->size;
  }
  return size;
}

/* Writes the header of a frame in front of `payload` and returns where it begins (RFC 6455 section 5.2). */
static char *head(char *payload, unsigned first, Py_ssize_t size) {
  int length = size < 126 ? 2 : size < 65536 ? 4 : 10;
  char *header = payload - length;
  header[0] = (char)first;
  header[1] = (char)(size < 126 ? size : size < 65536 ? 126 : 127);
  for (int i = 2; i < length; i++) header[i] = (char)((uint64_t)size >> (8 * (length - 1 - i)));
  return header;
}

/* Counts a queue as sent, and empties it. */
static int empty(Work *work, PyObject *queue) {
  Py_ssize_t count = PyList_Size(queue);
  for (Py_ssize_t i = 0; i < count; i++) {
    Seen *seen = look_up(work, PyList_GetItem(queue, i));
    if (!seen) return -1;
    seen->queues++;
  }
  return PyList_SetSlice(queue, 0, count, NULL);
}

static int append_rest(PyObject *left, Py_ssize_t index, const char *rest, Py_ssize_t size) {
  PyObject *pair = Py_BuildValue("(ny#)", index, rest, size); /* None for NULL */
  int failed = !pair || PyList_Append(left, pair) < 0;
  Py_XDECREF(pair);
  return failed ? -1 : 0;
}

static PyObject *send_all(PyObject *module, PyObject *args) {
  PyObject *sockets, *firsts, *queues;
  Py_ssize_t bytes_max, sent_bytes = 0;
  (void)module;
  if (!PyArg_ParseTuple(args, "O!O!O!n", &PyList_Type, &sockets, &PyByteArray_Type, &firsts, &PyList_Type, &queues, &bytes_max))
    return NULL;
  Py_ssize_t count = PyList_Size(sockets);
  if (PyByteArray_Size(firsts) != count || PyList_Size(queues) != count) {
    PyErr_SetString(PyExc_ValueError, "sockets, firsts and queues differ in length");
    return NULL;
  }
  Work *work = PyMem_Calloc(1, sizeof *work);
  char *buffer = PyMem_Malloc(HEADER_MAX + bytes_max);
  PyObject *left = PyList_New(0), *result = NULL;
  if (!work || !buffer || !left || !(work->total = PyLong_FromLong(0))) goto done;
  char *payload = buffer + HEADER_MAX;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *queue = PyList_GetItem(queues, i);
    int fd = (int)PyLong_AsLong(PyList_GetItem(sockets, i));
    Py_ssize_t size = join(work, queue, payload, bytes_max);
    if (size < 0 || PyErr_Occurred()) goto done;
    if (size > bytes_max) {
      if (append_rest(left, i, NULL, 0) < 0) goto done;
      continue;
    }
    char *frame = head(payload, (unsigned char)PyByteArray_AsString(firsts)[i], size);
    Py_ssize_t whole = payload + size - frame, taken = send(fd, frame, whole, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (taken < whole && append_rest(left, i, frame + (taken < 0 ? 0 : taken), whole - (taken < 0 ? 0 : taken)) < 0)
      goto done;
    sent_bytes += whole;
    if (empty(work, queue) < 0) goto done;
  }
  for (int i = 0; i < SEEN; i++)
    if (settle(work, &work->seen[i]) < 0) goto done;
  result = Py_BuildValue("(nOO)", sent_bytes, work->total, left);
done:
  if (work) {
    for (int i = 0; i < SEEN; i++) {
      work->seen[i].queues = 0;
      settle(work, &work->seen[i]);
    }
    Py_XDECREF(work->total);
  }
  Py_XDECREF(left);
  PyMem_Free(work);
  PyMem_Free(buffer);
  if (!result && !PyErr_Occurred()) PyErr_NoMemory();
  return result;
}

static PyMethodDef methods[] = {
  {"send_all", send_all, METH_VARARGS, "See services/streamer/sending.py."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
  data_name = PyUnicode_InternFromString("data");
  tally_name = PyUnicode_InternFromString("tally");
  return data_name && tally_name ? PyModule_Create(&definition) : NULL;
}
