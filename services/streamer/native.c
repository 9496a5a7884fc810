/* `Line`, with its queues and listeners (`streamer/line.py` says what they do), and `send_all` of sending.py, in C on
 * CPython's stable API.
 *
 * A queue is one piece of memory with room for what usually waits, because most of the time that a queue of Python
 * objects takes goes by waiting for memory. Chunks are shared by many clients, so what a segment holds is looked up once
 * per call of `send_all` and then found by its address: none is made meanwhile, as no Python code runs. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>

enum { SEEN_BITS = 10, SEEN = 1 << SEEN_BITS, HEADER_MAX = 10, FEW = 8, KEPT_MAX = 64, AHEAD = 4 };

typedef struct Queue Queue;

typedef struct {
  PyObject_HEAD
  Queue *first, *last; /* owned: each is referred to while it stands here */
  Py_ssize_t count;
} Line;

struct Queue {
  PyObject_HEAD
  Queue *before, *next; /* in the line */
  Line *line;
  PyObject *owner, **items; /* `few`, or memory of its own */
  int count, room, socket;
  unsigned char first;
  char plain, standing;
  PyObject *few[FEW];
};

typedef struct {
  PyObject_HEAD
  Line *line;
  Queue **queues;
  Py_ssize_t count, room;
} Listeners;

static PyTypeObject *line_type, *queue_type, *listeners_type;

/* ---- queues */

static void leave(Line *line, Queue *queue) { /* the line's reference is the caller's now */
  if (queue->before) queue->before->next = queue->next;
  else line->first = queue->next;
  if (queue->next) queue->next->before = queue->before;
  else line->last = queue->before;
  queue->before = queue->next = NULL;
  queue->standing = 0;
  line->count--;
}

static void stand(Queue *queue) {
  Line *line = queue->line;
  if (queue->standing) return;
  queue->standing = 1;
  queue->before = line->last;
  if (line->last) line->last->next = queue;
  else line->first = queue;
  line->last = (Queue *)Py_NewRef((PyObject *)queue);
  line->count++;
}

static int append(Queue *queue, PyObject *segment) {
  if (queue->count == queue->room) {
    int room = 2 * queue->room;
    PyObject **items = PyMem_Realloc(queue->items == queue->few ? NULL : queue->items, room * sizeof *items);
    if (!items) return PyErr_NoMemory(), -1;
    if (queue->items == queue->few) memcpy(items, queue->few, sizeof queue->few);
    queue->items = items;
    queue->room = room;
  }
  queue->items[queue->count++] = Py_NewRef(segment);
  stand(queue);
  return 0;
}

static void empty(Queue *queue) {
  int count = queue->count;
  queue->count = 0;
  for (int i = 0; i < count; i++) Py_DECREF(queue->items[i]);
  if (queue->room > KEPT_MAX) {
    PyMem_Free(queue->items);
    queue->items = queue->few;
    queue->room = FEW;
  }
}

static PyObject *queue_append(PyObject *self, PyObject *segment) {
  return append((Queue *)self, segment) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *queue_stand(PyObject *self, PyObject *none) {
  (void)none;
  stand((Queue *)self);
  return Py_NewRef(Py_None);
}

static PyObject *queue_segments(PyObject *self, PyObject *none) {
  Queue *queue = (Queue *)self;
  PyObject *list = PyList_New(queue->count);
  (void)none;
  for (int i = 0; list && i < queue->count; i++) PyList_SetItem(list, i, Py_NewRef(queue->items[i]));
  return list;
}

static PyObject *queue_replace(PyObject *self, PyObject *segments) {
  Queue *queue = (Queue *)self;
  char standing = queue->standing;
  if (!PyList_Check(segments)) return PyErr_SetString(PyExc_TypeError, "not a list"), NULL;
  empty(queue);
  for (Py_ssize_t i = 0; i < PyList_Size(segments); i++) {
    queue->standing = 1; /* so that it does not go and stand there */
    int failed = append(queue, PyList_GetItem(segments, i)) < 0;
    queue->standing = standing;
    if (failed) return NULL;
  }
  return Py_NewRef(Py_None);
}

static Py_ssize_t queue_length(PyObject *self) { return ((Queue *)self)->count; }

static int queue_traverse(PyObject *self, visitproc visit, void *arg) {
  Queue *queue = (Queue *)self;
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(queue->line);
  Py_VISIT(queue->owner);
  for (int i = 0; i < queue->count; i++) Py_VISIT(queue->items[i]);
  return 0;
}

static int queue_clear(PyObject *self) {
  Queue *queue = (Queue *)self;
  Py_CLEAR(queue->owner);
  empty(queue);
  return 0;
}

static void dispose(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

static void queue_dealloc(PyObject *self) {
  Queue *queue = (Queue *)self;
  PyObject_GC_UnTrack(self);
  queue_clear(self);
  if (queue->items != queue->few) PyMem_Free(queue->items);
  Py_CLEAR(queue->line);
  dispose(self);
}

static PyMethodDef queue_methods[] = {
  {"append", queue_append, METH_O, NULL},
  {"stand", queue_stand, METH_NOARGS, NULL},
  {"segments", queue_segments, METH_NOARGS, NULL},
  {"replace", queue_replace, METH_O, NULL},
  {NULL, NULL, 0, NULL},
};
static PyMemberDef queue_members[] = {
  {"owner", T_OBJECT, offsetof(Queue, owner), 0, NULL},
  {"first", T_UBYTE, offsetof(Queue, first), READONLY, NULL},
  {"socket", T_INT, offsetof(Queue, socket), 0, NULL},
  {"plain", T_BOOL, offsetof(Queue, plain), 0, NULL},
  {NULL, 0, 0, 0, NULL},
};
static PyType_Slot queue_slots[] = {
  {Py_tp_methods, queue_methods},
  {Py_tp_members, queue_members},
  {Py_sq_length, queue_length},
  {Py_tp_traverse, queue_traverse},
  {Py_tp_clear, queue_clear},
  {Py_tp_dealloc, queue_dealloc},
  {0, NULL},
};

/* ---- listeners */

static PyObject *listeners_add(PyObject *self, PyObject *queue) {
  Listeners *listeners = (Listeners *)self;
  if (Py_TYPE(queue) != queue_type) return PyErr_SetString(PyExc_TypeError, "not a queue of a line like this"), NULL;
  if (listeners->count == listeners->room) {
    Py_ssize_t room = listeners->room ? 2 * listeners->room : 4;
    Queue **queues = PyMem_Realloc(listeners->queues, room * sizeof *queues);
    if (!queues) return PyErr_NoMemory();
    listeners->queues = queues;
    listeners->room = room;
  }
  listeners->queues[listeners->count++] = (Queue *)Py_NewRef(queue);
  return Py_NewRef(Py_None);
}

static Py_ssize_t find(Listeners *listeners, PyObject *queue) {
  for (Py_ssize_t i = 0; i < listeners->count; i++)
    if ((PyObject *)listeners->queues[i] == queue) return i;
  return -1;
}

static PyObject *listeners_discard(PyObject *self, PyObject *queue) {
  Listeners *listeners = (Listeners *)self;
  Py_ssize_t i = find(listeners, queue);
  if (i >= 0) {
    listeners->queues[i] = listeners->queues[--listeners->count];
    Py_DECREF(queue);
  }
  return Py_NewRef(Py_None);
}

static PyObject *listeners_offer(PyObject *self, PyObject *segment) {
  Listeners *listeners = (Listeners *)self;
  Queue **queues = listeners->queues;
  for (Py_ssize_t i = 0; i < listeners->count; i++) {
    if (i + AHEAD < listeners->count) __builtin_prefetch(&queues[i + AHEAD]->before, 1);
    if (append(queues[i], segment) < 0) return NULL;
  }
  return Py_NewRef(Py_None);
}

static Py_ssize_t listeners_length(PyObject *self) { return ((Listeners *)self)->count; }

static int listeners_contains(PyObject *self, PyObject *queue) { return find((Listeners *)self, queue) >= 0; }

static int listeners_traverse(PyObject *self, visitproc visit, void *arg) {
  Listeners *listeners = (Listeners *)self;
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(listeners->line);
  for (Py_ssize_t i = 0; i < listeners->count; i++) Py_VISIT(listeners->queues[i]);
  return 0;
}

static int listeners_clear(PyObject *self) {
  Listeners *listeners = (Listeners *)self;
  while (listeners->count) Py_DECREF(listeners->queues[--listeners->count]);
  return 0;
}

static void listeners_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  listeners_clear(self);
  PyMem_Free(((Listeners *)self)->queues);
  Py_CLEAR(((Listeners *)self)->line);
  dispose(self);
}

static PyMethodDef listeners_methods[] = {
  {"add", listeners_add, METH_O, NULL},
  {"discard", listeners_discard, METH_O, NULL},
  {"offer", listeners_offer, METH_O, NULL},
  {NULL, NULL, 0, NULL},
};
static PyType_Slot listeners_slots[] = {
  {Py_tp_methods, listeners_methods},
  {Py_sq_length, listeners_length},
  {Py_sq_contains, listeners_contains},
  {Py_tp_traverse, listeners_traverse},
  {Py_tp_clear, listeners_clear},
  {Py_tp_dealloc, listeners_dealloc},
  {0, NULL},
};

/* ---- the line */

static PyObject *line_queue(PyObject *self, PyObject *args) {
  PyObject *owner;
  unsigned char first;
  if (!PyArg_ParseTuple(args, "Ob", &owner, &first)) return NULL;
  Queue *queue = (Queue *)PyType_GenericAlloc(queue_type, 0);
  if (!queue) return NULL;
  queue->line = (Line *)Py_NewRef(self);
  queue->owner = Py_NewRef(owner);
  queue->items = queue->few;
  queue->room = FEW;
  queue->socket = -1;
  queue->first = first;
  queue->plain = 1;
  return (PyObject *)queue;
}

static PyObject *line_listeners(PyObject *self, PyObject *none) {
  Listeners *listeners = (Listeners *)PyType_GenericAlloc(listeners_type, 0);
  (void)none;
  if (listeners) listeners->line = (Line *)Py_NewRef(self);
  return (PyObject *)listeners;
}

static PyObject *line_take(PyObject *self, PyObject *queues_max) {
  Line *line = (Line *)self;
  Py_ssize_t count = line->count;
  if (queues_max != Py_None) {
    Py_ssize_t most = PyLong_AsSsize_t(queues_max);
    if (PyErr_Occurred()) return NULL;
    if (most < count) count = most;
  }
  PyObject *list = PyList_New(count);
  for (Py_ssize_t i = 0; list && i < count; i++) {
    Queue *queue = line->first;
    leave(line, queue);
    PyList_SetItem(list, i, (PyObject *)queue);
  }
  return list;
}

static PyObject *line_leave(PyObject *self, PyObject *queue) {
  if (Py_TYPE(queue) == queue_type && (PyObject *)((Queue *)queue)->line == self && ((Queue *)queue)->standing) {
    leave((Line *)self, (Queue *)queue);
    Py_DECREF(queue);
  }
  return Py_NewRef(Py_None);
}

static Py_ssize_t line_length(PyObject *self) { return ((Line *)self)->count; }

static int line_traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(self));
  for (Queue *queue = ((Line *)self)->first; queue; queue = queue->next) Py_VISIT(queue);
  return 0;
}

static int line_clear(PyObject *self) {
  Line *line = (Line *)self;
  while (line->first) {
    Queue *queue = line->first;
    leave(line, queue);
    Py_DECREF(queue);
  }
  return 0;
}

static void line_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  line_clear(self);
  dispose(self);
}

static PyMethodDef line_methods[] = {
  {"queue", line_queue, METH_VARARGS, NULL},
  {"listeners", line_listeners, METH_NOARGS, NULL},
  {"take", line_take, METH_O, NULL},
  {"leave", line_leave, METH_O, NULL},
  {NULL, NULL, 0, NULL},
};
static PyType_Slot line_slots[] = {
  {Py_tp_methods, line_methods},
  {Py_sq_length, line_length},
  {Py_tp_traverse, line_traverse},
  {Py_tp_clear, line_clear},
  {Py_tp_dealloc, line_dealloc},
  {0, NULL},
};

/* ---- sending */

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

static Seen *place_of(Work *work, PyObject *segment) {
  return &work->seen[(uint64_t)(uintptr_t)segment * 0x9E3779B97F4A7C15u >> (64 - SEEN_BITS)];
}

/* Fetches what the next queues need into the caches, while the kernel sends: it puts all that out of them. */
static void look_ahead(Work *work, PyObject *queues, Py_ssize_t i, Py_ssize_t count) {
  if (i + 2 < count) {
    char *later = (char *)PyList_GetItem(queues, i + 2);
    __builtin_prefetch(later);
    __builtin_prefetch(later + 64);
    __builtin_prefetch(later + 128);
  }
  if (i + 1 < count) {
    Queue *next = (Queue *)PyList_GetItem(queues, i + 1);
    if (Py_TYPE((PyObject *)next) == queue_type)
      for (int k = 0; k < next->count; k++) __builtin_prefetch(place_of(work, next->items[k]));
  }
}

/* What is known of a segment; NULL with an exception. One that has its place taken makes it free. */
static Seen *look_up(Work *work, PyObject *segment) {
  Seen *seen = place_of(work, segment);
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

/* Joins the queue at `payload` and counts it as sent; its size, larger than `size_max` when it does not fit and is not
 * counted, -1 with an exception. */
static Py_ssize_t join(Work *work, Queue *queue, char *payload, Py_ssize_t size_max) {
  Py_ssize_t size = 0;
  int i = 0;
  for (; i < queue->count; i++) {
    Seen *seen = look_up(work, queue->items[i]);
    if (!seen) return -1;
    if (size + seen->size > size_max) break;
    memcpy(payload + size, seen->bytes, seen->size);
    size += seen->size;
    seen->queues++;
  }
  if (i == queue->count) return size;
  while (i-- > 0) {
    Seen *seen = look_up(work, queue->items[i]);
    if (!seen) return -1;
    seen->queues--;
  }
  return size_max + 1;
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

static int append_rest(PyObject *left, PyObject *queue, const char *rest, Py_ssize_t size) {
  PyObject *pair = Py_BuildValue("(Oy#)", queue, rest, size);
  int failed = !pair || PyList_Append(left, pair) < 0;
  Py_XDECREF(pair);
  return failed ? -1 : 0;
}

static PyObject *send_all(PyObject *module, PyObject *args) {
  PyObject *queues;
  Py_ssize_t bytes_max, sent_bytes = 0;
  (void)module;
  if (!PyArg_ParseTuple(args, "O!n", &PyList_Type, &queues, &bytes_max)) return NULL;
  Py_ssize_t count = PyList_Size(queues);
  Work *work = PyMem_Calloc(1, sizeof *work);
  char *buffer = PyMem_Malloc(HEADER_MAX + bytes_max);
  PyObject *left = PyList_New(0), *asked = PyList_New(0), *result = NULL;
  if (!work || !buffer || !left || !asked || !(work->total = PyLong_FromLong(0))) goto done;
  char *payload = buffer + HEADER_MAX;
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *object = PyList_GetItem(queues, i);
    Queue *queue = (Queue *)object;
    if (Py_TYPE(object) != queue_type || queue->socket < 0 || !queue->plain || !queue->count) {
      if (PyList_Append(asked, object) < 0) goto done;
      continue;
    }
    Py_ssize_t size = join(work, queue, payload, bytes_max);
    if (size < 0) goto done;
    if (size > bytes_max) {
      if (PyList_Append(asked, object) < 0) goto done;
      continue;
    }
    look_ahead(work, queues, i, count);
    char *frame = head(payload, queue->first, size);
    Py_ssize_t whole = payload + size - frame, taken = send(queue->socket, frame, whole, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (taken < 0) taken = 0;
    if (taken < whole && append_rest(left, object, frame + taken, whole - taken) < 0) goto done;
    sent_bytes += whole;
    empty(queue);
  }
  for (int i = 0; i < SEEN; i++)
    if (settle(work, &work->seen[i]) < 0) goto done;
  if (PyList_SetSlice(queues, 0, count, asked) < 0) goto done;
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
  Py_XDECREF(asked);
  PyMem_Free(work);
  PyMem_Free(buffer);
  if (!result && !PyErr_Occurred()) PyErr_NoMemory();
  return result;
}

static PyTypeObject *made(PyObject *module, const char *name, size_t size, PyType_Slot *slots, unsigned flags) {
  PyType_Spec spec = {name, (int)size, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | flags, slots};
  PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
  if (type && PyModule_AddObjectRef(module, strrchr(name, '.') + 1, type) < 0) Py_CLEAR(type);
  return (PyTypeObject *)type; /* kept for ever */
}

static PyMethodDef methods[] = {
  {"send_all", send_all, METH_VARARGS, "See services/streamer/sending.py."},
  {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
  const unsigned by_line = Py_TPFLAGS_DISALLOW_INSTANTIATION;
  PyObject *module = PyModule_Create(&definition);
  data_name = PyUnicode_InternFromString("data");
  tally_name = PyUnicode_InternFromString("tally");
  if (!module || !data_name || !tally_name ||
      !(line_type = made(module, "services.streamer.native.Line", sizeof(Line), line_slots, 0)) ||
      !(queue_type = made(module, "services.streamer.native.Queue", sizeof(Queue), queue_slots, by_line)) ||
      !(listeners_type = made(module, "services.streamer.native.Listeners", sizeof(Listeners), listeners_slots, by_line)))
    Py_CLEAR(module);
  return module;
}
