/* Python's side of the context coder: arguments in, the loops of `_loops.c` without the GIL, results or exceptions out.
 * The model (weights, look-up tables, initial distributions) is made and checked by `model.py`: its arrays are trusted.
 * Symbols and payloads are not.
 */

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_loops.h"

/* The fastest loops that this processor runs. */
static const Loops *loops(void) {
#ifdef HAVE_AVX2_LOOPS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) return &avx2_loops;
#endif
    return &plain_loops;
}

enum { ARRAYS = 11 };

typedef struct {
    Model m;
    Py_buffer arrays[ARRAYS];
    int held;
} Held;

static void held_free(Held *h) {
    while (h->held) PyBuffer_Release(h->arrays + --h->held);
}

/* A model is a pair: a tuple of integers, and a tuple of arrays in the order of `Model`. */
static int held_init(Held *h, PyObject *numbers, PyObject *arrays) {
    Model *m = &h->m;
    int slot = 0, adaptation;
    Py_ssize_t first;
    memset(h, 0, sizeof *h);
    if (!PyArg_ParseTuple(numbers, "iiiiiiiiiin", &m->channels, &m->rows, &m->cols, &m->levels, &m->bits, &m->centre,
                          &m->refs, &m->subs, &m->states, &adaptation, &first))
        return -1;
    m->adaptation = (Adaptation)adaptation;
    m->first = first;
    if (PyTuple_Size(arrays) != ARRAYS) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "a model has eleven arrays");
        return -1;
    }
    for (; slot < ARRAYS; slot++) {
        if (PyObject_GetBuffer(PyTuple_GetItem(arrays, slot), h->arrays + slot, PyBUF_SIMPLE) < 0) {
            held_free(h);
            return -1;
        }
        h->held++;
    }
    m->bias = h->arrays[0].buf;
    m->weights = h->arrays[1].buf;
    m->ref = h->arrays[2].buf;
    m->pad = h->arrays[3].buf;
    m->offset = h->arrays[4].buf;
    m->context = h->arrays[5].buf;
    m->texture = h->arrays[6].buf;
    m->sub = h->arrays[7].buf;
    m->cdf = h->arrays[8].buf;
    m->counts = h->arrays[9].buf;
    m->rates = h->arrays[10].buf;
    m->contexts = h->arrays[9].len;
    return 0;
}

static Py_ssize_t elements(const Model *m) { return (Py_ssize_t)m->channels * m->rows * m->cols; }

/* A buffer of symbols: one or two bytes each. Returns -1 with an exception where its size is neither. */
static int symbols_view(const Model *m, const Py_buffer *b, Symbols *s) {
    s->narrow = b->len == elements(m) ? b->buf : NULL;
    s->wide = b->len == 2 * elements(m) ? b->buf : NULL;
    int aligned = (uintptr_t)b->buf % sizeof(uint16_t) == 0;
    if (elements(m) > 0 && ((s->wide && aligned) || (s->narrow && m->bits <= 8))) return 0;
    PyErr_SetString(PyExc_ValueError, "the buffer of symbols does not fit the model");
    return -1;
}

/* An exception for an outcome that has one. */
static void raise(Outcome outcome) {
    if (outcome == NO_MEMORY) PyErr_NoMemory();
    if (outcome == OUTSIDE) PyErr_SetString(PyExc_ValueError, "a symbol is outside the alphabet");
}

static PyObject *py_encode(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *result = NULL;
    Py_buffer buffer;
    Py_ssize_t capacity;
    Held h;
    Symbols symbols;
    Outcome outcome = NO_MEMORY;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!y*n", &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &buffer, &capacity)) return NULL;
    if (held_init(&h, numbers, arrays) < 0) goto no_model;
    if (symbols_view(&h.m, &buffer, &symbols) < 0) goto done;
    uint8_t *out, *end, *start;
    Py_BEGIN_ALLOW_THREADS
    out = capacity > 0 ? malloc((size_t)capacity + ENCODER_SLACK) : NULL;
    end = out ? out + capacity + ENCODER_SLACK : NULL;
    if (out) outcome = loops()->encode(&h.m, symbols, out, end, &start);
    Py_END_ALLOW_THREADS
    if (outcome == DONE) result = PyBytes_FromStringAndSize((const char *)start, end - start);
    else if (outcome == TOO_LONG) result = Py_NewRef(Py_None);
    else raise(outcome);
    free(out);
done:
    held_free(&h);
no_model:
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_decode(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *result = NULL;
    Py_buffer payload, buffer;
    Held h;
    Symbols symbols;
    Outcome outcome;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!y*w*", &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &payload, &buffer)) return NULL;
    if (held_init(&h, numbers, arrays) < 0) goto no_model;
    if (symbols_view(&h.m, &buffer, &symbols) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    outcome = loops()->decode(&h.m, payload.buf, payload.len, symbols);
    Py_END_ALLOW_THREADS
    if (outcome == NO_MEMORY) raise(outcome);
    else result = PyBool_FromLong(outcome == DONE);
done:
    held_free(&h);
no_model:
    PyBuffer_Release(&payload);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_tally(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *result = NULL;
    Py_buffer buffer, counts;
    Held h;
    Symbols symbols;
    Outcome outcome;
    int step;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!y*iw*", &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &buffer, &step, &counts)) return NULL;
    if (held_init(&h, numbers, arrays) < 0) goto no_model;
    if (symbols_view(&h.m, &buffer, &symbols) < 0) goto done;
    if (step < 1 || counts.len != h.m.contexts * DIGIT * (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "the buffer of counts does not fit the model");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    outcome = loops()->tally(&h.m, symbols, step, counts.buf);
    Py_END_ALLOW_THREADS
    if (outcome == DONE) result = Py_NewRef(Py_None);
    else raise(outcome);
done:
    held_free(&h);
no_model:
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&counts);
    return result;
}

static PyMethodDef methods[] = {
    {"encode", py_encode, METH_VARARGS, "encode(numbers, arrays, symbols, capacity) -> bytes, or None past capacity"},
    {"decode", py_decode, METH_VARARGS, "decode(numbers, arrays, payload, symbols) -> whether the payload was whole"},
    {"tally", py_tally, METH_VARARGS, "tally(numbers, arrays, symbols, step, counts): count digits by context"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "The context coder's inner loops.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
