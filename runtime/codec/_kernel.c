/* The context coder's inner loops. `_twin.py` says in Python what is done here, and reads and writes the same bytes;
 * docs/codec.md describes the format. Integers only; right shifts of negative numbers are arithmetic, as everywhere
 * that matters.
 *
 * The model (weights, look-up tables, initial distributions) is made and checked by `model.py`: its arrays are trusted.
 * Symbols and payloads are not. Nothing here keeps state between calls, and the GIL is released while it works.
 */

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define USE_SSE2 1
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define USE_NEON 1
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define LOWEST_BIT(x) ((unsigned)__builtin_ctz(x))
#elif defined(_MSC_VER)
#include <intrin.h>
#define INLINE static __forceinline
#define UNLIKELY(x) (x)
INLINE unsigned LOWEST_BIT(uint32_t x) { unsigned long i; _BitScanForward(&i, x); return i; }
#else
#error "unknown compiler: the pure Python twin serves instead"
#endif

enum {
    PROBABILITY_BITS = 15,
    ONE = 1 << PROBABILITY_BITS,
    STATE_LOW = 1 << 16,   /* a state is in [2^16, 2^32) between symbols and moves 16 bits at a time */
    LANES = 2,             /* channels that are coded in step, so that two chains of dependent loads overlap */
    DIGIT = 16,            /* symbols of one distribution */
    CAUSAL = 5,            /* weights for left, up, up-left, up-right, the channel's mean so far */
    WEIGHT_BITS = 12,
    MEAN_BITS = 4,
    LUT_BITS = 10,
    LUT_LAST = (1 << LUT_BITS) - 1
};

/* ---- the model ------------------------------------------------------------------------------------------------- */

typedef struct {
    int channels, rows, cols;
    int levels, bits;      /* alphabet, and bits of its largest symbol */
    int centre;            /* what symbols of more than 8 bits are folded around */
    int refs;              /* earlier channels that one channel looks at */
    int subs;              /* contexts of the second digit per first digit */
    int states;            /* 1, or LANES: fewer bytes for small tensors, more speed for large ones */
    int slowest;           /* adaptation: the largest shift; 0 = frozen */
    const int32_t *bias;        /* [channels] */
    const int16_t *weights;     /* [channels, CAUSAL + 2 * refs] */
    const uint16_t *ref;        /* [channels, refs] */
    const uint8_t *pad;         /* [channels]: the neighbour of a channel's first symbol */
    const uint16_t *offset;     /* [channels]: the first context of the channel's class */
    const uint8_t *bin;         /* [1 << LUT_BITS]: predicted value -> context */
    const uint16_t *texture;    /* [512]: roughness -> context, times the number of bins */
    const uint8_t *sub;         /* [1 << LUT_BITS]: predicted value -> part of the second digit's context */
    const int16_t *cdf;         /* [contexts, DIGIT]: cumulative frequencies - ONE */
    const uint8_t *counts;      /* [contexts]: how far adaptation has come */
    Py_ssize_t contexts, first; /* all contexts; those of the first digit */
} Model;

typedef struct {
    uint8_t *planes;    /* [channels, rows + 2, cols + 2]: what contexts see of symbols, borders repeated */
    int32_t *base[LANES]; /* [rows, cols]: the part of a prediction that comes from earlier channels */
    int32_t *known[LANES]; /* [cols]: the part that is known before a row begins */
    uint8_t *step[LANES];  /* [cols]: |up - up-left| */
    int16_t *cdf;
    uint8_t *counts;
    uint32_t *ops;      /* the encoder's: start | state << 15 | frequency << 17 */
    Py_ssize_t n_ops;
} Scratch;

static int scratch_init(Scratch *s, const Model *m, int ops_per_symbol) {
    size_t area = (size_t)m->rows * m->cols, padded = (size_t)(m->rows + 2) * (m->cols + 2);
    memset(s, 0, sizeof *s);
    s->planes = malloc(padded * m->channels);
    s->base[0] = malloc(area * LANES * sizeof(int32_t));
    s->cdf = malloc((size_t)m->contexts * DIGIT * sizeof(int16_t));
    s->counts = malloc((size_t)m->contexts);
    if (ops_per_symbol) s->ops = malloc(area * m->channels * ops_per_symbol * sizeof(uint32_t));
    s->known[0] = malloc((size_t)m->cols * LANES * sizeof(int32_t));
    s->step[0] = malloc((size_t)m->cols * LANES);
    if (!s->planes || !s->base[0] || !s->known[0] || !s->step[0] || !s->cdf || !s->counts) return -1;
    if (ops_per_symbol && !s->ops) return -1;
    for (int l = 1; l < LANES; l++) {
        s->base[l] = s->base[l - 1] + area;
        s->known[l] = s->known[l - 1] + m->cols;
        s->step[l] = s->step[l - 1] + m->cols;
    }
    memcpy(s->cdf, m->cdf, (size_t)m->contexts * DIGIT * sizeof(int16_t));
    memcpy(s->counts, m->counts, (size_t)m->contexts);
    return 0;
}

static void scratch_free(Scratch *s) {
    free(s->planes);
    free(s->base[0]);
    free(s->known[0]);
    free(s->step[0]);
    free(s->cdf);
    free(s->counts);
    free(s->ops);
}

/* ---- distributions --------------------------------------------------------------------------------------------- */

/* The digit whose interval holds `slot`, in [0, ONE). Entries past the alphabet are ONE, which no slot reaches. */
INLINE unsigned find_digit(const int16_t *cdf, uint32_t slot) {
    int16_t key = (int16_t)((int32_t)slot - ONE);
#if USE_SSE2
    __m128i k = _mm_set1_epi16(key);
    __m128i a = _mm_cmpgt_epi16(_mm_loadu_si128((const __m128i *)cdf), k);
    __m128i b = _mm_cmpgt_epi16(_mm_loadu_si128((const __m128i *)(cdf + 8)), k);
    return LOWEST_BIT((uint32_t)_mm_movemask_epi8(_mm_packs_epi16(a, b)) | 1u << DIGIT) - 1;
#elif USE_NEON
    int16x8_t k = vdupq_n_s16(key);
    uint16x8_t n = vaddq_u16(vcleq_s16(vld1q_s16(cdf), k), vcleq_s16(vld1q_s16(cdf + 8), k));
    return (unsigned)(-(int)(int16_t)vaddvq_u16(n)) - 1;
#else
    unsigned digit = 0;
    for (int i = 1; i < DIGIT; i++) digit += cdf[i] <= key;
    return digit;
#endif
}

INLINE uint32_t start_of(const int16_t *cdf, unsigned digit) { return (uint32_t)(cdf[digit] + ONE); }

INLINE uint32_t end_of(const int16_t *cdf, unsigned digit) {
    return digit == DIGIT - 1 ? ONE : (uint32_t)(cdf[digit + 1] + ONE);
}

/* Where distributions drift to after each digit of an alphabet: row `digit` leaves every other digit a frequency of 1. */
typedef struct {
    int16_t target[DIGIT][DIGIT];
} Drift;

static void drift_init(Drift *d, int alphabet) {
    for (int digit = 0; digit < DIGIT; digit++)
        for (int i = 0; i < DIGIT; i++)
            d->target[digit][i] = (int16_t)(i >= alphabet ? 0 : i <= digit ? i - ONE : i - alphabet);
}

/* Each cumulative frequency moves by (target - itself) >> shift, which keeps every frequency at 1 or more. */
INLINE void adapt(int16_t *cdf, uint8_t *count, const int16_t *target, int slowest) {
    unsigned n = *count;
    int shift = 4 + (n >= 6) + (n >= 20) + (n >= 60);
    shift = shift < slowest ? shift : slowest;
    *count = (uint8_t)(n + (n < 255));
#if USE_SSE2
    __m128i s = _mm_cvtsi32_si128(shift), *p = (__m128i *)cdf;
    const __m128i *t = (const __m128i *)target;
    for (int i = 0; i < 2; i++) {
        __m128i c = _mm_loadu_si128(p + i);
        _mm_storeu_si128(p + i, _mm_add_epi16(c, _mm_sra_epi16(_mm_sub_epi16(_mm_loadu_si128(t + i), c), s)));
    }
#else
    for (int i = 0; i < DIGIT; i++) cdf[i] = (int16_t)(cdf[i] + ((target[i] - cdf[i]) >> shift));
#endif
}

/* ---- contexts -------------------------------------------------------------------------------------------------- */

INLINE int clamp(int v, int last) { return v < 0 ? 0 : v > last ? last : v; }

INLINE unsigned magnitude(int v) { return (unsigned)(v < 0 ? -v : v); }

typedef struct {
    const int32_t *known;
    const uint8_t *step;
    uint8_t *row;         /* this row and the one above it in the padded plane */
    const uint8_t *above;
    int32_t left_weight;
    int left;             /* the last symbol's context value */
    unsigned offset;
    uint64_t sum;         /* of the rows before this one */
} Lane;

typedef struct {
    unsigned context, sub;
} Place;

/* Which distribution codes the next symbol of a lane. On a channel's first row the left neighbour stands for all. */
INLINE Place place(const Model *m, const Lane *lane, int x, int shift, int first_row) {
    int predicted = clamp((lane->known[x] + lane->left_weight * lane->left) >> shift, LUT_LAST);
    unsigned roughness = first_row ? 0 : magnitude(lane->left - lane->above[x]) + lane->step[x];
    Place p = {lane->offset + m->texture[roughness] + m->bin[predicted], m->sub[predicted]};
    return p;
}

/* What the earlier channels say about channel `c`: [rows, cols] into `base`. */
static void predict_from_refs(const Model *m, const Scratch *s, int c, int32_t *restrict base) {
    Py_ssize_t stride = m->cols + 2, padded = stride * (m->rows + 2), area = (Py_ssize_t)m->rows * m->cols;
    const int16_t *w = m->weights + (Py_ssize_t)c * (CAUSAL + 2 * m->refs) + CAUSAL;
    for (Py_ssize_t i = 0; i < area; i++) base[i] = m->bias[c];
    for (int r = 0; r < m->refs; r++, w += 2) {
        if (!w[0] && !w[1]) continue;
        const uint8_t *plane = s->planes + m->ref[(Py_ssize_t)c * m->refs + r] * padded;
        int32_t same = w[0], around = w[1];
        for (int y = 0; y < m->rows; y++) {
            const uint8_t *restrict p = plane + (y + 1) * stride + 1;
            int32_t *restrict out = base + (Py_ssize_t)y * m->cols;
            for (int x = 0; x < m->cols; x++)
                out[x] += same * p[x] + around * (p[x - 1] + p[x + 1] + p[x - stride] + p[x + stride]);
        }
    }
}

static uint8_t *plane_row(const Model *m, const Scratch *s, int c, int y) {
    Py_ssize_t stride = m->cols + 2;
    return s->planes + stride * (m->rows + 2) * c + stride * (y + 1) + 1;
}

/* The weighted mean of the rows before row `y`. */
static int32_t mean_before(const Model *m, const Lane *lane, int c, int y, int16_t weight) {
    uint64_t seen = (uint64_t)y * (uint64_t)m->cols;
    int32_t mean = y ? (int32_t)((lane->sum << MEAN_BITS) / seen) : m->pad[c] << MEAN_BITS;
    return (weight * mean) >> MEAN_BITS;
}

static void lane_begin_row(const Model *m, const Scratch *s, Lane *lane, int l, int c, int y) {
    const int16_t *w = m->weights + (Py_ssize_t)c * (CAUSAL + 2 * m->refs);
    const int32_t *restrict base = s->base[l] + (Py_ssize_t)y * m->cols;
    int32_t *restrict known = s->known[l];
    uint8_t *restrict step = s->step[l];
    if (!y) lane->sum = 0;
    int32_t mean = mean_before(m, lane, c, y, w[4]);
    lane->known = known;
    lane->step = step;
    lane->offset = m->offset[c];
    lane->row = plane_row(m, s, c, y);
    lane->above = y ? plane_row(m, s, c, y - 1) : lane->row;
    lane->left = y ? lane->above[0] : m->pad[c];
    lane->left_weight = y ? w[0] : w[0] + w[1] + w[2] + w[3];
    if (!y) {
        for (int x = 0; x < m->cols; x++) known[x] = base[x] + mean;
        return;
    }
    const uint8_t *restrict above = lane->above;
    int32_t up = w[1], up_left = w[2], up_right = w[3];
    for (int x = 0; x < m->cols; x++) {
        known[x] = base[x] + mean + up * above[x] + up_left * above[x - 1] + up_right * above[x + 1];
        step[x] = (uint8_t)magnitude(above[x] - above[x - 1]);
    }
}

static void lane_end_row(const Model *m, Lane *lane) {
    uint64_t sum = 0;
    for (int x = 0; x < m->cols; x++) sum += lane->row[x];
    lane->sum += sum;
    lane->row[-1] = lane->row[0];
    lane->row[m->cols] = lane->row[m->cols - 1];
}

/* Repeat a whole channel's first and last row beyond its borders, for the channels that look at it. */
static void close_plane(const Model *m, const Scratch *s, int c) {
    size_t stride = (size_t)m->cols + 2;
    uint8_t *first = plane_row(m, s, c, 0) - 1, *last = plane_row(m, s, c, m->rows - 1) - 1;
    memcpy(first - stride, first, stride);
    memcpy(last + stride, last, stride);
}

/* ---- symbols and digits ---------------------------------------------------------------------------------------- */

/* Up to 4 bits a symbol is one digit; up to 8, its upper four bits and the rest; beyond, it is folded around the
 * centre and written like a float: how many bits it has, the upper four of those below the first, the rest as it is. */
typedef struct {
    int low_bits;  /* bits below the first digit (of up to 8) */
    int shift;     /* from a prediction to the index of a look-up table */
    int alphabet, low_alphabet;
    int wide;
} Shape;

static Shape shape_of(const Model *m) {
    Shape s;
    int value_bits = m->bits < 8 ? m->bits : m->bits == 8 ? 8 : 4;
    s.wide = m->bits > 8;
    s.low_bits = s.wide || m->bits <= 4 ? 0 : m->bits - 4;
    s.shift = WEIGHT_BITS + value_bits - LUT_BITS;
    s.alphabet = s.wide ? m->bits : ((m->levels - 1) >> s.low_bits) + 1;
    s.low_alphabet = s.wide ? DIGIT : 1 << s.low_bits;
    return s;
}

INLINE uint32_t fold(const Model *m, uint32_t symbol) {
    int32_t d = (int32_t)(symbol - (uint32_t)m->centre) & ((1 << m->bits) - 1);
    if (d >> (m->bits - 1)) d -= 1 << m->bits;
    return d < 0 ? (uint32_t)(-d) * 2 - 1 : (uint32_t)d * 2;
}

INLINE uint32_t unfold(const Model *m, uint32_t folded) {
    int32_t d = folded & 1 ? -(int32_t)((folded + 1) >> 1) : (int32_t)(folded >> 1);
    return (uint32_t)(d + m->centre) & ((1u << m->bits) - 1);
}

INLINE int length_of(uint32_t folded) { /* 0 for 0 and 1, else the place of the highest bit */
    int n = 0;
    while (folded >> (n + 1)) n++;
    return n;
}

/* ---- encoder --------------------------------------------------------------------------------------------------- */

typedef struct {
    const Model *m;
    Scratch *s;
    Shape shape;
    Drift drift, low_drift;
    int adaptive;
} Coding;

INLINE void put_digit(Coding *k, unsigned context, unsigned digit, const Drift *drift, uint32_t state, int adaptive) {
    int16_t *cdf = k->s->cdf + (Py_ssize_t)context * DIGIT;
    uint32_t start = start_of(cdf, digit), frequency = end_of(cdf, digit) - start;
    k->s->ops[k->s->n_ops++] = start | state << 15 | frequency << 17;
    if (adaptive) adapt(cdf, k->s->counts + context, drift->target[digit], k->m->slowest);
}

INLINE void put_bits(Coding *k, uint32_t value, int n, uint32_t state) {
    k->s->ops[k->s->n_ops++] = value << (PROBABILITY_BITS - n) | state << 15 | 1u << (PROBABILITY_BITS - n + 17);
}

INLINE void put_symbol(Coding *k, Place at, uint32_t symbol, unsigned seen, uint32_t state, int kind, int adaptive) {
    unsigned first = (unsigned)k->m->first;
    if (kind == 0) {
        put_digit(k, at.context, symbol, &k->drift, state, adaptive);
    } else if (kind == 1) {
        unsigned high = symbol >> k->shape.low_bits, low = symbol & ((1u << k->shape.low_bits) - 1);
        put_digit(k, at.context, high, &k->drift, state, adaptive);
        put_digit(k, first + high * (unsigned)k->m->subs + at.sub, low, &k->low_drift, state, adaptive);
    } else {
        uint32_t folded = fold(k->m, symbol), rest = seen ? folded - (1u << seen) : folded;
        int n = seen ? (int)seen : 1, raw = n > 4 ? n - 4 : 0;
        put_digit(k, at.context, seen, &k->drift, state, adaptive);
        put_digit(k, first + seen * (unsigned)k->m->subs + at.sub, rest >> raw, &k->low_drift, state, adaptive);
        if (raw) put_bits(k, rest & ((1u << raw) - 1), raw, state);
    }
}

/* What contexts see of every symbol, into the padded planes. Returns -1 where a symbol is outside the alphabet. */
static int load_planes(Coding *k, const uint8_t *narrow, const uint16_t *wide) {
    const Model *m = k->m;
    uint32_t largest = 0;
    for (int c = 0; c < m->channels; c++)
        for (int y = 0; y < m->rows; y++) {
            uint8_t *row = plane_row(m, k->s, c, y);
            if (narrow) {
                uint8_t most = 0;
                for (int x = 0; x < m->cols; x++) {
                    row[x] = narrow[x];
                    most = most > narrow[x] ? most : narrow[x];
                }
                narrow += m->cols;
                largest = largest > most ? largest : most;
            } else {
                for (int x = 0; x < m->cols; x++) {
                    uint32_t v = wide[x];
                    largest = largest > v ? largest : v;
                    row[x] = (uint8_t)(k->shape.wide ? (uint32_t)length_of(fold(m, v)) : v);
                }
                wide += m->cols;
            }
        }
    return largest < (uint32_t)m->levels ? 0 : -1;
}

INLINE void put_rows(Coding *k, int c, int lanes, const uint16_t *wide, int kind, int adaptive) {
    const Model *m = k->m;
    Py_ssize_t area = (Py_ssize_t)m->rows * m->cols;
    Lane lane[LANES];
    for (int y = 0; y < m->rows; y++) {
        for (int l = 0; l < lanes; l++) lane_begin_row(m, k->s, lane + l, l, c + l, y);
        for (int x = 0; x < m->cols; x++)
            for (int l = 0; l < lanes; l++) {
                Place at = y ? place(m, lane + l, x, k->shape.shift, 0) : place(m, lane + l, x, k->shape.shift, 1);
                unsigned seen = lane[l].row[x];
                uint32_t symbol = kind == 2 ? wide[(c + l) * area + (Py_ssize_t)y * m->cols + x] : seen;
                put_symbol(k, at, symbol, seen, (uint32_t)(l & (m->states - 1)), kind, adaptive);
                lane[l].left = (int)seen;
            }
        for (int l = 0; l < lanes; l++) lane_end_row(m, lane + l);
    }
}

INLINE void put_planes(Coding *k, const uint16_t *wide, int kind, int adaptive) {
    const Model *m = k->m;
    for (int c = 0; c < m->channels; c += LANES) {
        int lanes = m->channels - c < LANES ? m->channels - c : LANES;
        for (int l = 0; l < lanes; l++) predict_from_refs(m, k->s, c + l, k->s->base[l]);
        if (lanes == LANES) put_rows(k, c, LANES, wide, kind, adaptive);
        else put_rows(k, c, lanes, wide, kind, adaptive);
        for (int l = 0; l < lanes; l++) close_plane(m, k->s, c + l);
    }
}

/* Turn the operations, last first, into words that end at `end`. Returns the first byte, or NULL past `begin`. */
static uint8_t *put_words(const Coding *k, uint8_t *begin, uint8_t *end) {
    uint32_t state[LANES] = {STATE_LOW, STATE_LOW};
    for (Py_ssize_t i = k->s->n_ops; i-- > 0;) {
        uint32_t op = k->s->ops[i], frequency = op >> 17, start = op & (ONE - 1), lane = op >> 15 & (LANES - 1);
        uint32_t x = state[lane];
        if (x >> (32 - PROBABILITY_BITS) >= frequency) {
            if (UNLIKELY(end - begin < 2)) return NULL;
            *--end = (uint8_t)(x >> 8);
            *--end = (uint8_t)x;
            x >>= 16;
        }
        uint32_t q = x / frequency;
        state[lane] = (q << PROBABILITY_BITS) + (x - q * frequency) + start;
    }
    for (int l = k->m->states; l-- > 0;) {
        if (end - begin < 4) return NULL;
        for (int b = 24; b >= 0; b -= 8) *--end = (uint8_t)(state[l] >> b);
    }
    return end;
}

static uint8_t *encode(Coding *k, const uint16_t *wide, uint8_t *begin, uint8_t *end) {
    int kind = k->shape.wide ? 2 : k->shape.low_bits ? 1 : 0;
    if (kind == 0 && k->adaptive) put_planes(k, wide, 0, 1);
    else if (kind == 0) put_planes(k, wide, 0, 0);
    else if (kind == 1 && k->adaptive) put_planes(k, wide, 1, 1);
    else if (kind == 1) put_planes(k, wide, 1, 0);
    else put_planes(k, wide, 2, k->adaptive);
    return put_words(k, begin, end);
}

/* ---- decoder --------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *next, *end; /* beyond `end` stand enough zeros for one row of symbols */
    int damaged;               /* a symbol is impossible */
} Words;

enum { MOST_BYTES_PER_SYMBOL = 2 * 3 }; /* two digits and plain bits, a word each */

/* No branch: whether a word is due is a coin toss that no predictor wins. That it existed is checked row by row. */
INLINE uint32_t advance(uint32_t x, uint32_t start, uint32_t frequency, Words *words) {
    x = frequency * (x >> PROBABILITY_BITS) + (x & (ONE - 1)) - start;
    uint32_t word = words->next[0] | (uint32_t)words->next[1] << 8;
    uint32_t filled = x << 16 | word;
    unsigned due = x < STATE_LOW;
    words->next += 2 * due;
    return due ? filled : x;
}

INLINE unsigned get_digit(Coding *k, unsigned context, const Drift *drift, uint32_t *state, Words *words, int adaptive) {
    int16_t *cdf = k->s->cdf + (Py_ssize_t)context * DIGIT;
    unsigned digit = find_digit(cdf, *state & (ONE - 1));
    uint32_t start = start_of(cdf, digit), end = end_of(cdf, digit);
    *state = advance(*state, start, end - start, words);
    if (adaptive) adapt(cdf, k->s->counts + context, drift->target[digit], k->m->slowest);
    return digit;
}

INLINE uint32_t get_bits(int n, uint32_t *state, Words *words) {
    uint32_t value = (*state & (ONE - 1)) >> (PROBABILITY_BITS - n);
    *state = advance(*state, value << (PROBABILITY_BITS - n), 1u << (PROBABILITY_BITS - n), words);
    return value;
}

/* Returns the symbol; `seen` is what contexts see of it. */
INLINE uint32_t get_symbol(Coding *k, Place at, unsigned *seen, uint32_t *state, Words *words, int kind, int adaptive) {
    unsigned first = (unsigned)k->m->first, high = get_digit(k, at.context, &k->drift, state, words, adaptive);
    if (kind == 0) return *seen = high;
    unsigned low = get_digit(k, first + high * (unsigned)k->m->subs + at.sub, &k->low_drift, state, words, adaptive);
    if (kind == 1) return *seen = high << k->shape.low_bits | low;
    int n = high ? (int)high : 1, raw = n > 4 ? n - 4 : 0;
    uint32_t rest = low;
    if (raw) rest = low << raw | get_bits(raw, state, words);
    *seen = high;
    if (UNLIKELY(rest >> n)) words->damaged = 1;
    return unfold(k->m, (high ? 1u << high : 0) + rest);
}

INLINE void get_rows(Coding *k, int c, int lanes, int n_states, uint32_t *states, Words *words, uint16_t *wide, int kind,
                     int adaptive) {
    const Model *m = k->m;
    Py_ssize_t area = (Py_ssize_t)m->rows * m->cols;
    Lane lane[LANES];
    Words w = *words;
    uint32_t state[LANES]; /* a copy that nothing points to stays in registers */
    memcpy(state, states, sizeof state);
    for (int y = 0; y < m->rows; y++) {
        for (int l = 0; l < lanes; l++) lane_begin_row(m, k->s, lane + l, l, c + l, y);
        for (int x = 0; x < m->cols; x++)
            for (int l = 0; l < lanes; l++) {
                Place at = y ? place(m, lane + l, x, k->shape.shift, 0) : place(m, lane + l, x, k->shape.shift, 1);
                unsigned seen;
                uint32_t symbol = get_symbol(k, at, &seen, state + (l & (n_states - 1)), &w, kind, adaptive);
                lane[l].row[x] = (uint8_t)seen;
                lane[l].left = (int)seen;
                if (kind && UNLIKELY(symbol >= (uint32_t)m->levels)) w.damaged = 1;
                if (kind == 2) {
                    wide[(c + l) * area + (Py_ssize_t)y * m->cols + x] = (uint16_t)symbol;
                }
            }
        for (int l = 0; l < lanes; l++) lane_end_row(m, lane + l);
        if (UNLIKELY(w.next > w.end)) {
            w.damaged = 1;
            break;
        }
    }
    memcpy(states, state, sizeof state);
    *words = w;
}

INLINE void get_planes(Coding *k, uint32_t *states, Words *words, uint16_t *wide, int kind, int adaptive) {
    const Model *m = k->m;
    for (int c = 0; c < m->channels && !words->damaged; c += LANES) {
        int lanes = m->channels - c < LANES ? m->channels - c : LANES;
        for (int l = 0; l < lanes; l++) predict_from_refs(m, k->s, c + l, k->s->base[l]);
        if (lanes < LANES || kind == 2) get_rows(k, c, lanes, m->states, states, words, wide, kind, adaptive);
        else if (m->states == LANES) get_rows(k, c, LANES, LANES, states, words, wide, kind, adaptive);
        else get_rows(k, c, LANES, 1, states, words, wide, kind, adaptive);
        for (int l = 0; l < lanes; l++) close_plane(m, k->s, c + l);
    }
}

/* What contexts saw is the symbol itself, up to 8 bits: copy it out of the padded planes. */
static void store_planes(const Coding *k, uint8_t *narrow, uint16_t *wide) {
    const Model *m = k->m;
    for (int c = 0; c < m->channels; c++)
        for (int y = 0; y < m->rows; y++) {
            const uint8_t *row = plane_row(m, k->s, c, y);
            if (narrow) {
                memcpy(narrow, row, (size_t)m->cols);
                narrow += m->cols;
            } else {
                for (int x = 0; x < m->cols; x++) wide[x] = row[x];
                wide += m->cols;
            }
        }
}

/* Returns 0, or -1 where the payload is none that the encoder could have made: its states must end where the
 * encoder's began, with no word missing and none left. */
static int decode(Coding *k, const uint8_t *payload, Py_ssize_t size, uint8_t *narrow, uint16_t *wide) {
    uint32_t states[LANES] = {STATE_LOW, STATE_LOW};
    Words words = {payload, payload + size, 0};
    int kind = k->shape.wide ? 2 : k->shape.low_bits ? 1 : 0;
    if (size < 4 * k->m->states) return -1;
    for (int l = 0; l < k->m->states; l++, words.next += 4) {
        const uint8_t *p = words.next;
        states[l] = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        if (states[l] < STATE_LOW) return -1;
    }
    if (kind == 0 && k->adaptive) get_planes(k, states, &words, wide, 0, 1);
    else if (kind == 0) get_planes(k, states, &words, wide, 0, 0);
    else if (kind == 1 && k->adaptive) get_planes(k, states, &words, wide, 1, 1);
    else if (kind == 1) get_planes(k, states, &words, wide, 1, 0);
    else get_planes(k, states, &words, wide, 2, k->adaptive);
    if (words.damaged || words.next != words.end) return -1;
    for (int l = 0; l < LANES; l++)
        if (states[l] != STATE_LOW) return -1;
    if (kind != 2) store_planes(k, narrow, wide);
    return 0;
}

/* ---- size estimate --------------------------------------------------------------------------------------------- */

/* Count first digits by context, and second digits by context, over every `step`-th group of channels. */
static void tally(Coding *k, const uint16_t *wide, int step, uint32_t *counts) {
    const Model *m = k->m;
    Py_ssize_t area = (Py_ssize_t)m->rows * m->cols;
    for (int c = 0; c < m->channels; c++) {
        for (int y = 0; y < m->rows; y++) {
            uint8_t *row = plane_row(m, k->s, c, y);
            row[-1] = row[0];
            row[m->cols] = row[m->cols - 1];
        }
        close_plane(m, k->s, c);
    }
    for (int c = 0; c < m->channels; c += step) {
        Lane lane;
        predict_from_refs(m, k->s, c, k->s->base[0]);
        for (int y = 0; y < m->rows; y++) {
            lane_begin_row(m, k->s, &lane, 0, c, y);
            for (int x = 0; x < m->cols; x++) {
                Place at = place(m, &lane, x, k->shape.shift, !y);
                unsigned seen = lane.row[x], high = seen >> k->shape.low_bits, low = 0;
                if (k->shape.wide) {
                    uint32_t rest = fold(m, wide[c * area + (Py_ssize_t)y * m->cols + x]) & ((1u << (seen ? seen : 1)) - 1);
                    low = seen > 4 ? rest >> (seen - 4) : rest;
                } else if (k->shape.low_bits) low = seen & ((1u << k->shape.low_bits) - 1);
                counts[(Py_ssize_t)at.context * DIGIT + high]++;
                if (k->shape.wide || k->shape.low_bits)
                    counts[(m->first + high * (Py_ssize_t)m->subs + at.sub) * DIGIT + low]++;
                lane.left = (int)seen;
            }
            lane_end_row(m, &lane);
        }
    }
}

/* ---- Python ---------------------------------------------------------------------------------------------------- */

enum { ARRAYS = 10 };

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
    int slot = 0;
    memset(h, 0, sizeof *h);
    if (!PyArg_ParseTuple(numbers, "iiiiiiiiiin", &m->channels, &m->rows, &m->cols, &m->levels, &m->bits, &m->centre,
                          &m->refs, &m->subs, &m->states, &m->slowest, &m->first))
        return -1;
    if (PyTuple_Size(arrays) != ARRAYS) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "a model has ten arrays");
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
    m->bin = h->arrays[5].buf;
    m->texture = h->arrays[6].buf;
    m->sub = h->arrays[7].buf;
    m->cdf = h->arrays[8].buf;
    m->counts = h->arrays[9].buf;
    m->contexts = h->arrays[9].len;
    return 0;
}

static int coding_init(Coding *k, const Model *m, Scratch *s, int ops_per_symbol) {
    k->m = m;
    k->s = s;
    k->shape = shape_of(m);
    k->adaptive = m->slowest > 0;
    drift_init(&k->drift, k->shape.alphabet);
    drift_init(&k->low_drift, k->shape.low_alphabet);
    return scratch_init(s, m, ops_per_symbol);
}

static Py_ssize_t elements(const Model *m) { return (Py_ssize_t)m->channels * m->rows * m->cols; }

/* A buffer of symbols: one or two bytes each. Returns -1 with an exception where its size is neither. */
static int symbols_view(const Model *m, const Py_buffer *b, uint8_t **narrow, uint16_t **wide) {
    *narrow = b->len == elements(m) ? b->buf : NULL;
    *wide = b->len == 2 * elements(m) ? b->buf : NULL;
    int aligned = (uintptr_t)b->buf % sizeof(uint16_t) == 0;
    if (elements(m) > 0 && ((*wide && aligned) || (*narrow && m->bits <= 8))) return 0;
    PyErr_SetString(PyExc_ValueError, "the buffer of symbols does not fit the model");
    return -1;
}

static PyObject *py_encode(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *result = NULL;
    Py_buffer symbols;
    Py_ssize_t capacity;
    Held h;
    Scratch s;
    Coding k;
    uint8_t *narrow, *out = NULL, *start = NULL;
    uint16_t *wide;
    int ready, inside = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!y*n", &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &symbols, &capacity)) return NULL;
    if (held_init(&h, numbers, arrays) < 0) goto no_model;
    if (symbols_view(&h.m, &symbols, &narrow, &wide) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    ready = coding_init(&k, &h.m, &s, h.m.bits > 8 ? 3 : h.m.bits > 4 ? 2 : 1) == 0;
    out = ready && capacity > 0 ? malloc((size_t)capacity) : NULL;
    if (out) {
        inside = load_planes(&k, narrow, wide) == 0;
        if (inside) start = encode(&k, wide, out, out + capacity);
    }
    scratch_free(&s);
    Py_END_ALLOW_THREADS
    if (!out) PyErr_NoMemory();
    else if (!inside) PyErr_SetString(PyExc_ValueError, "a symbol is outside the alphabet");
    else if (!start) result = Py_NewRef(Py_None);
    else result = PyBytes_FromStringAndSize((const char *)start, out + capacity - start);
    free(out);
done:
    held_free(&h);
no_model:
    PyBuffer_Release(&symbols);
    return result;
}

static PyObject *py_decode(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *result = NULL;
    Py_buffer payload, symbols;
    Held h;
    Scratch s;
    Coding k;
    uint8_t *narrow;
    uint16_t *wide;
    uint8_t *padded = NULL;
    int whole = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!y*w*", &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &payload, &symbols)) return NULL;
    if (held_init(&h, numbers, arrays) < 0) goto no_model;
    if (symbols_view(&h.m, &symbols, &narrow, &wide) < 0) goto done;
    Py_BEGIN_ALLOW_THREADS
    if (coding_init(&k, &h.m, &s, 0) == 0) {
        size_t size = (size_t)payload.len, slack = (size_t)h.m.cols * LANES * MOST_BYTES_PER_SYMBOL + 2;
        padded = malloc(size + slack);
        if (padded) {
            memcpy(padded, payload.buf, size);
            memset(padded + size, 0, slack);
            whole = decode(&k, padded, payload.len, narrow, wide) == 0;
        }
    }
    scratch_free(&s);
    Py_END_ALLOW_THREADS
    if (!padded) PyErr_NoMemory();
    else result = PyBool_FromLong(whole);
    free(padded);
done:
    held_free(&h);
no_model:
    PyBuffer_Release(&payload);
    PyBuffer_Release(&symbols);
    return result;
}

static PyObject *py_tally(PyObject *self, PyObject *args) {
    PyObject *numbers, *arrays, *result = NULL;
    Py_buffer symbols, counts;
    Held h;
    Scratch s;
    Coding k;
    uint8_t *narrow;
    uint16_t *wide;
    int step, ready, inside = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!O!y*iw*", &PyTuple_Type, &numbers, &PyTuple_Type, &arrays, &symbols, &step, &counts)) return NULL;
    if (held_init(&h, numbers, arrays) < 0) goto no_model;
    if (symbols_view(&h.m, &symbols, &narrow, &wide) < 0) goto done;
    if (step < 1 || counts.len != h.m.contexts * DIGIT * (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "the buffer of counts does not fit the model");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    ready = coding_init(&k, &h.m, &s, 0) == 0;
    if (ready) {
        inside = load_planes(&k, narrow, wide) == 0;
        if (inside) tally(&k, wide, step, counts.buf);
    }
    scratch_free(&s);
    Py_END_ALLOW_THREADS
    if (!ready) PyErr_NoMemory();
    else if (!inside) PyErr_SetString(PyExc_ValueError, "a symbol is outside the alphabet");
    else result = Py_NewRef(Py_None);
done:
    held_free(&h);
no_model:
    PyBuffer_Release(&symbols);
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
