/* The context coder's inner loops. `_twin.py` says in Python what is done here, and reads and writes the same bytes;
 * docs/codec.md describes the format. Integers only; right shifts of negative numbers are arithmetic, as everywhere
 * that matters. Symbols and payloads are not trusted. Nothing here keeps state between calls.
 */

#include "_loops.h"

#include <stdlib.h>
#include <string.h>

#ifndef THESE_LOOPS
#define THESE_LOOPS plain_loops
#endif

#if defined(NARROWS_NO_SIMD)
#elif defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define USE_SSE2 1
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define USE_NEON 1
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define UNROLLED _Pragma("GCC unroll 8")
#define LOWEST_BIT(x) ((unsigned)__builtin_ctz(x))
#elif defined(_MSC_VER)
#include <intrin.h>
#define INLINE static __forceinline
#define UNLIKELY(x) (x)
#define UNROLLED
INLINE unsigned LOWEST_BIT(uint32_t x) { unsigned long i; _BitScanForward(&i, x); return i; }
#else
#error "unknown compiler: the pure Python twin serves instead"
#endif

/* ---- one distribution: its entries, DIGIT ascending cumulative frequencies less ONE; those past the alphabet are 0 --- */

#if defined(USE_AVX2)
typedef __m256i Row;
INLINE Row row_load(const int16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void row_store(int16_t *p, Row r) { _mm256_storeu_si256((__m256i *)p, r); }
INLINE Row row_above(Row r, int16_t key) { return _mm256_cmpgt_epi16(r, _mm256_set1_epi16(key)); }
/* Twice the index of the first entry that is above: two bits an entry, and TZCNT of 0 is 32. */
INLINE unsigned row_next(Row above) { return _tzcnt_u32((uint32_t)_mm256_movemask_epi8(above)); }
INLINE Row row_drift(Row r, Row above, Row low, Row high, uint16_t rate) {
    Row away = _mm256_sub_epi16(_mm256_blendv_epi8(low, high, above), r);
    return _mm256_add_epi16(r, _mm256_mulhi_epi16(away, _mm256_set1_epi16((int16_t)rate)));
}
#elif defined(USE_SSE2)
typedef struct {
    __m128i a, b;
} Row;
INLINE Row row_load(const int16_t *p) {
    Row r = {_mm_loadu_si128((const __m128i *)p), _mm_loadu_si128((const __m128i *)(p + 8))};
    return r;
}
INLINE void row_store(int16_t *p, Row r) {
    _mm_storeu_si128((__m128i *)p, r.a);
    _mm_storeu_si128((__m128i *)(p + 8), r.b);
}
INLINE Row row_above(Row r, int16_t key) {
    __m128i k = _mm_set1_epi16(key);
    Row above = {_mm_cmpgt_epi16(r.a, k), _mm_cmpgt_epi16(r.b, k)};
    return above;
}
INLINE unsigned row_next(Row above) { /* twice the index of the first entry that is above */
    return 2 * LOWEST_BIT((uint32_t)_mm_movemask_epi8(_mm_packs_epi16(above.a, above.b)) | 1u << DIGIT);
}
INLINE __m128i half_drift(__m128i r, __m128i above, __m128i low, __m128i high, uint16_t rate) {
    __m128i target = _mm_or_si128(_mm_and_si128(above, high), _mm_andnot_si128(above, low));
    return _mm_add_epi16(r, _mm_mulhi_epi16(_mm_sub_epi16(target, r), _mm_set1_epi16((int16_t)rate)));
}
INLINE Row row_drift(Row r, Row above, Row low, Row high, uint16_t rate) {
    Row moved = {half_drift(r.a, above.a, low.a, high.a, rate), half_drift(r.b, above.b, low.b, high.b, rate)};
    return moved;
}
#else
typedef struct {
    int16_t v[DIGIT];
} Row;
INLINE Row row_load(const int16_t *p) {
    Row r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
INLINE void row_store(int16_t *p, Row r) { memcpy(p, r.v, sizeof r.v); }
INLINE Row row_above(Row r, int16_t key) {
    Row above;
    for (int i = 0; i < DIGIT; i++) above.v[i] = (int16_t)-(r.v[i] > key);
    return above;
}
INLINE unsigned row_next(Row above) { /* twice the index of the first entry that is above */
    int n = DIGIT;
    for (int i = 0; i < DIGIT; i++) n += above.v[i];
    return 2 * (unsigned)n;
}
INLINE Row row_drift(Row r, Row above, Row low, Row high, uint16_t rate) {
    for (int i = 0; i < DIGIT; i++) {
        int target = above.v[i] ? high.v[i] : low.v[i];
        r.v[i] = (int16_t)(r.v[i] + (((target - r.v[i]) * (int)rate) >> 16));
    }
    return r;
}
#endif

/* Where entries drift to after a digit: those that begin above it to `high`, the others to `low`, which leaves every
 * other digit of the alphabet a frequency of 1. */
typedef struct {
    Row low, high;
} Drift;

static Drift drift_of(int alphabet) {
    int16_t low[DIGIT], high[DIGIT];
    for (int i = 0; i < DIGIT; i++) {
        low[i] = (int16_t)(i < alphabet ? i - ONE : 0);
        high[i] = (int16_t)(i < alphabet ? i - alphabet : 0);
    }
    Drift d = {row_load(low), row_load(high)};
    return d;
}

typedef struct {
    int16_t *cdf;       /* [contexts + 1, DIGIT], as adaptation has left them */
    uint8_t *counts;
    const uint16_t *rates;
    uint16_t steady;
} Distributions;

/* Entries move by floor((target - entry) * rate / 2^16), after which they are still at least 1 apart. */
INLINE void adapt(const Distributions *d, size_t context, Row row, Row above, const Drift *drift, Adaptation adaptation) {
    uint16_t rate = d->steady;
    if (adaptation == FROZEN) return;
    if (adaptation == SETTLING) {
        unsigned n = d->counts[context];
        d->counts[context] = (uint8_t)(n + (n < 255));
        rate = d->rates[n];
    }
    row_store(d->cdf + context * DIGIT, row_drift(row, above, drift->low, drift->high, rate));
}

/* Start and frequency of a digit. The entry after a distribution's last is the next one's first: 0, which is as good as
 * ONE, modulo ONE. */
typedef struct {
    uint32_t start, frequency;
} Interval;

/* Of the digit before the one that begins `next` bytes from `cdf`. Of `start`, only the bits below ONE count. */
INLINE Interval interval_before(const int16_t *cdf, unsigned next) {
    const int16_t *end = (const int16_t *)((const char *)cdf + next);
    Interval i = {(uint16_t)end[-1], ((uint32_t)(uint16_t)end[0] - (uint16_t)end[-1]) & (ONE - 1)};
    return i;
}

#if defined(USE_SSE2)
#define SCALAR_ROWS 0
/* Eight rows of eight bytes, `stride` apart, become columns. */
INLINE void transpose(const uint8_t *from, ptrdiff_t stride, __m128i columns[4]) {
    __m128i r[8];
    UNROLLED
    for (int i = 0; i < 8; i++) r[i] = _mm_loadl_epi64((const __m128i *)(from + i * stride));
    __m128i a = _mm_unpacklo_epi8(r[0], r[4]), b = _mm_unpacklo_epi8(r[1], r[5]);
    __m128i c = _mm_unpacklo_epi8(r[2], r[6]), d = _mm_unpacklo_epi8(r[3], r[7]);
    __m128i ac = _mm_unpacklo_epi8(a, c), bd = _mm_unpacklo_epi8(b, d);
    columns[0] = _mm_unpacklo_epi8(ac, bd);
    columns[1] = _mm_unpackhi_epi8(ac, bd);
    ac = _mm_unpackhi_epi8(a, c), bd = _mm_unpackhi_epi8(b, d);
    columns[2] = _mm_unpacklo_epi8(ac, bd);
    columns[3] = _mm_unpackhi_epi8(ac, bd);
}
#else
#define SCALAR_ROWS 1
#endif

/* HALF bytes as one number, the first lowest. */
INLINE uint32_t packed(const uint8_t *p) {
    uint32_t v = 0;
    for (int i = 0; i < HALF; i++) v |= (uint32_t)p[i] << 8 * i;
    return v;
}

INLINE void unpack(uint8_t *p, uint32_t v) {
    for (int i = 0; i < HALF; i++) p[i] = (uint8_t)(v >> 8 * i);
}

/* ---- contexts ---------------------------------------------------------------------------------------------------- */

INLINE unsigned magnitude(int v) { return (unsigned)(v < 0 ? -v : v); }

/* LANES channels while they are coded, symbol by symbol; of what their symbols are, contexts see a byte each. */
typedef struct {
    uint8_t *above, *row;    /* [cols + 2, LANES]: the row before this one and this one, the first symbol at [1] */
    int32_t *known;          /* [cols, LANES]: the part of a prediction that does not come from the same channel */
    int16_t causal[4 * LANES]; /* each lane's weights of left and up, then each lane's of up-left and up-right */
    int16_t below_first;     /* 0 on the first row, where the left neighbour stands for all; then -1 */
    uint64_t sum[LANES];     /* of the rows before this one */
    uint32_t offset[LANES];
    int32_t *base;           /* [LANES, rows, cols + 2]: what earlier channels say */
} Group;

/* Index of each context (in `Model.context`; the low LUT_BITS are the prediction) of HALF lanes, from `from` on, at column
 * `x`. `left_symbols` is what stands at x - 1, or for it. */
typedef struct {
    uint16_t at[2 * HALF]; /* what is beyond HALF is room for a whole vector */
} Places;

#if defined(USE_SSE2)
INLINE __m128i widened(uint32_t v) { return _mm_unpacklo_epi8(_mm_cvtsi32_si128((int)v), _mm_setzero_si128()); }
INLINE __m128i away(__m128i a, __m128i b) { return _mm_sub_epi16(_mm_max_epi16(a, b), _mm_min_epi16(a, b)); }

INLINE Places places(const Model *m, const Group *g, int x, int from, uint32_t left_symbols, int shift) {
    const uint8_t *above = g->above + x * LANES + from;
    const __m128i *w = (const __m128i *)(g->causal + 2 * from), *w1 = (const __m128i *)(g->causal + 2 * (LANES + from));
    __m128i left = widened(left_symbols), up_left = widened(packed(above)), up = widened(packed(above + LANES));
    __m128i up_right = widened(packed(above + 2 * LANES));
    __m128i sum = _mm_loadu_si128((const __m128i *)(g->known + x * LANES + from));
    sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_unpacklo_epi16(up_left, up_right), _mm_loadu_si128(w1)));
    sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_unpacklo_epi16(left, up), _mm_loadu_si128(w)));
    sum = _mm_sra_epi32(sum, _mm_cvtsi32_si128(shift));
    __m128i at = _mm_packs_epi32(sum, sum), next = _mm_set1_epi16(1 << LUT_BITS);
    at = _mm_min_epi16(_mm_max_epi16(at, _mm_setzero_si128()), _mm_set1_epi16(LUT_LAST));
    __m128i rough = _mm_and_si128(_mm_add_epi16(away(left, up), away(up, up_left)), _mm_set1_epi16(g->below_first));
    UNROLLED
    for (int t = 0; t < TEXTURES - 1; t++)
        at = _mm_add_epi16(at, _mm_andnot_si128(_mm_cmpgt_epi16(_mm_set1_epi16(m->texture[t]), rough), next));
    Places p;
    _mm_storeu_si128((__m128i *)p.at, at);
    return p;
}
#else
INLINE Places places(const Model *m, const Group *g, int x, int from, uint32_t left_symbols, int shift) {
    Places p = {{0}};
    for (int i = 0; i < HALF; i++) {
        const int l = from + i, left = (int)(left_symbols >> 8 * i & 255);
        const uint8_t *up = g->above + (x + 1) * LANES + l;
        const int16_t *w = g->causal + 2 * l, *w1 = w + 2 * LANES;
        int32_t sum = g->known[x * LANES + l] + w[0] * left + w[1] * *up + w1[0] * up[-LANES] + w1[1] * up[LANES];
        int rough = (int)(magnitude(left - *up) + magnitude(*up - up[-LANES])) & g->below_first;
        sum >>= shift;
        p.at[i] = (uint16_t)(sum < 0 ? 0 : sum > LUT_LAST ? LUT_LAST : sum);
        for (int t = 0; t < TEXTURES - 1; t++) p.at[i] = (uint16_t)(p.at[i] + ((rough >= m->texture[t]) << LUT_BITS));
    }
    return p;
}
#endif

typedef struct {
    uint8_t *planes;    /* [channels, rows + 2, cols + 2]: what contexts see of symbols, borders repeated */
    Distributions of;
    Group group;
    uint32_t *ops;      /* the encoder's: start | frequency << 15; 0 where a symbol has no plain bits */
    ptrdiff_t n_ops;
    void *memory[6];
} Scratch;

static ptrdiff_t stride_of(const Model *m) { return (ptrdiff_t)m->cols + 2; }

static uint8_t *plane_row(const Model *m, const Scratch *s, int c, int y) {
    return s->planes + stride_of(m) * ((ptrdiff_t)(m->rows + 2) * c + y + 1) + 1;
}

static int scratch_init(Scratch *s, const Model *m, int ops_per_symbol) {
    size_t area = (size_t)m->rows * m->cols, stride = (size_t)stride_of(m);
    size_t cdf_bytes = ((size_t)m->contexts + 1) * DIGIT * sizeof(int16_t);
    memset(s, 0, sizeof *s);
    size_t sizes[] = {stride * (m->rows + 2) * m->channels + LANES, /* rows are read and written eight symbols at a time, */
                      cdf_bytes + 64,
                      (size_t)m->contexts,
                      (stride + LANES) * LANES * (2 + sizeof(int32_t)),
                      (stride * m->rows * LANES + 4) * sizeof(int32_t), /* or four */
                      area * m->channels * ops_per_symbol * sizeof(uint32_t)};
    for (int i = 0; i < (ops_per_symbol ? 6 : 5); i++)
        if (!(s->memory[i] = malloc(sizes[i]))) return -1;
    s->planes = s->memory[0];
    s->of.cdf = (int16_t *)(((uintptr_t)s->memory[1] + 63) & ~(uintptr_t)63); /* no distribution across cache lines */
    memcpy(s->of.cdf, m->cdf, cdf_bytes);
    s->of.counts = s->memory[2];
    memcpy(s->of.counts, m->counts, (size_t)m->contexts);
    s->of.rates = m->rates;
    s->of.steady = m->rates[255];
    s->group.known = s->memory[3];
    s->group.above = (uint8_t *)(s->group.known + (stride + LANES) * LANES);
    s->group.row = s->group.above + (stride + LANES) * LANES;
    memset(s->group.above, 0, 2 * (stride + LANES) * LANES);
    s->group.base = s->memory[4];
    s->ops = s->memory[5];
    return 0;
}

static void scratch_free(Scratch *s) {
    for (int i = 0; i < 6; i++) free(s->memory[i]);
}

/* What the earlier channels say about channel `c`, into `base` [rows, cols + 2]. Rows run into each other: what stands
 * between them is never looked at. */
static void predict_from_refs(const Model *m, const Scratch *s, int c, int32_t *restrict base) {
    const ptrdiff_t stride = stride_of(m), padded = stride * (m->rows + 2), n = stride * m->rows - 2;
    const int16_t *w = m->weights + (ptrdiff_t)c * (CAUSAL + 2 * m->refs) + CAUSAL;
    for (ptrdiff_t i = 0; i < n; i++) base[i] = m->bias[c];
    for (int r = 0; r < m->refs; r++, w += 2) {
        if (!w[0] && !w[1]) continue;
        const uint8_t *restrict p = s->planes + m->ref[(ptrdiff_t)c * m->refs + r] * padded + stride + 1;
        const int32_t same = w[0], around = w[1];
        for (ptrdiff_t i = 0; i < n; i++)
            base[i] += same * p[i] + around * (p[i - 1] + p[i + 1] + p[i - stride] + p[i + stride]);
    }
}

static void group_begin(const Model *m, Scratch *s, int c, int lanes) {
    Group *g = &s->group;
    memset(g->causal, 0, sizeof g->causal);
    g->below_first = 0;
    for (int l = 0; l < lanes; l++) {
        const int16_t *w = m->weights + (ptrdiff_t)(c + l) * (CAUSAL + 2 * m->refs);
        g->causal[2 * l] = (int16_t)(w[0] + w[1] + w[2] + w[3]);
        g->offset[l] = m->offset[c + l];
        g->sum[l] = 0;
        predict_from_refs(m, s, c + l, g->base + l * stride_of(m) * m->rows);
    }
}

/* Row `y` of what earlier channels say, and the mean of each lane, into the group's buffer. */
static void know_row(const Model *m, const Group *g, int y, const int32_t mean[LANES]) {
    const ptrdiff_t stride = stride_of(m);
    const int32_t *base = g->base + y * stride;
#if defined(USE_SSE2)
    for (int half = 0; half < LANES; half += 4, base += 4 * stride * m->rows) {
        const __m128i means = _mm_loadu_si128((const __m128i *)(mean + half));
        for (int x = 0; x < m->cols; x += 4) {
            __m128i r[4];
            UNROLLED
            for (int l = 0; l < 4; l++) r[l] = _mm_loadu_si128((const __m128i *)(base + l * stride * m->rows + x));
            __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpackhi_epi32(r[0], r[1]);
            __m128i c = _mm_unpacklo_epi32(r[2], r[3]), d = _mm_unpackhi_epi32(r[2], r[3]);
            __m128i *to = (__m128i *)(g->known + x * LANES + half);
            _mm_storeu_si128(to, _mm_add_epi32(_mm_unpacklo_epi64(a, c), means));
            _mm_storeu_si128(to + 2, _mm_add_epi32(_mm_unpackhi_epi64(a, c), means));
            _mm_storeu_si128(to + 4, _mm_add_epi32(_mm_unpacklo_epi64(b, d), means));
            _mm_storeu_si128(to + 6, _mm_add_epi32(_mm_unpackhi_epi64(b, d), means));
        }
    }
#else
    for (int l = 0; l < LANES; l++, base += stride * m->rows)
        for (int x = 0; x < m->cols; x++) g->known[x * LANES + l] = base[x] + mean[l];
#endif
}

/* Make ready for row `y`. */
static void row_begin(const Model *m, Scratch *s, int c, int lanes, int y) {
    Group *g = &s->group;
    int32_t mean[LANES] = {0};
    uint64_t inverse = y ? ((uint64_t)1 << 32) / ((uint64_t)y * (uint64_t)m->cols) : 0;
    for (int l = 0; l < lanes; l++) {
        const int16_t *w = m->weights + (ptrdiff_t)(c + l) * (CAUSAL + 2 * m->refs);
        /* The weighted mean of the rows before this one. */
        mean[l] = y ? (int32_t)((g->sum[l] << MEAN_BITS) * inverse >> 32) : m->pad[c + l] << MEAN_BITS;
        mean[l] = (w[4] * mean[l]) >> MEAN_BITS;
        g->row[l] = y ? g->above[LANES + l] : m->pad[c + l];
        if (y == 1)
            for (int i = 0; i < 4; i++) g->causal[2 * (LANES * (i / 2) + l) + i % 2] = w[i];
    }
    if (y == 1) g->below_first = -1;
    know_row(m, g, y, mean);
}

/* Repeat the borders of the group's row, which becomes the one above. */
static void row_end(const Model *m, Scratch *s, int lanes) {
    Group *g = &s->group;
    for (int l = 0; l < lanes; l++) {
        uint64_t sum = 0;
        for (int x = 0; x < m->cols; x++) sum += g->row[(x + 1) * LANES + l];
        g->sum[l] += sum;
    }
    memcpy(g->row, g->row + LANES, LANES);
    memcpy(g->row + (m->cols + 1) * LANES, g->row + m->cols * LANES, LANES);
    uint8_t *above = g->above;
    g->above = g->row;
    g->row = above;
}

/* Row `y` of each lane into the group's buffer. */
static void load_row(const Model *m, const Scratch *s, int c, int lanes, int y) {
    uint8_t *row = s->group.row + LANES;
#if defined(USE_SSE2)
    for (int x = 0; lanes == LANES && x < m->cols; x += 8) {
        __m128i columns[4];
        transpose(plane_row(m, s, c, y) + x, stride_of(m) * (m->rows + 2), columns);
        UNROLLED
        for (int i = 0; i < 4; i++) _mm_storeu_si128((__m128i *)(row + (x + 2 * i) * LANES), columns[i]);
    }
    if (lanes == LANES) return;
#endif
    for (int l = 0; l < lanes; l++) {
        const uint8_t *restrict from = plane_row(m, s, c + l, y);
        for (int x = 0; x < m->cols; x++) row[x * LANES + l] = from[x];
    }
}

/* The group's row `y` into the planes. What is written past its end is written again by what comes there. */
static void store_row(const Model *m, const Scratch *s, int c, int lanes, int y) {
    const uint8_t *row = s->group.row + LANES;
#if defined(USE_SSE2)
    const ptrdiff_t padded = stride_of(m) * (m->rows + 2);
    for (int x = 0; lanes == LANES && x < m->cols; x += 8) {
        __m128i columns[4];
        transpose(row + x * LANES, LANES, columns);
        uint8_t *to = plane_row(m, s, c, y) + x;
        UNROLLED
        for (int i = 0; i < 4; i++, to += 2 * padded) {
            _mm_storel_epi64((__m128i *)to, columns[i]);
            _mm_storel_epi64((__m128i *)(to + padded), _mm_srli_si128(columns[i], 8));
        }
    }
#endif
    for (int l = 0; l < lanes; l++) {
        uint8_t *restrict to = plane_row(m, s, c + l, y);
        if (SCALAR_ROWS || lanes < LANES)
            for (int x = 0; x < m->cols; x++) to[x] = row[x * LANES + l];
        to[-1] = to[0];
        to[m->cols] = to[m->cols - 1];
    }
}

/* Repeat a whole channel's first and last row beyond its borders, for the channels that look at it. */
static void plane_end(const Model *m, const Scratch *s, int c) {
    size_t stride = (size_t)stride_of(m);
    uint8_t *first = plane_row(m, s, c, 0) - 1, *last = plane_row(m, s, c, m->rows - 1) - 1;
    memcpy(first - stride, first, stride);
    memcpy(last + stride, last, stride);
}

/* ---- symbols and digits ------------------------------------------------------------------------------------------ */

/* Up to 4 bits a symbol is one digit; up to 8, its upper four bits and the rest; beyond, it is folded around the
 * centre and written like a float: how many bits it has, the upper four of those below the first, the rest as it is. */
typedef enum { ONE_DIGIT, TWO_DIGITS, FLOATS } Kind;

typedef struct {
    Kind kind;
    int low_bits;  /* bits below the first digit (of up to 8) */
    int shift;     /* from a prediction to the index of a look-up table */
    int alphabet, low_alphabet;
} Shape;

static Shape shape_of(const Model *m) {
    Shape s;
    int value_bits = m->bits <= 8 ? m->bits : 4;
    s.kind = m->bits > 8 ? FLOATS : m->bits > 4 ? TWO_DIGITS : ONE_DIGIT;
    s.low_bits = s.kind == TWO_DIGITS ? m->bits - 4 : 0;
    s.shift = WEIGHT_BITS + value_bits - LUT_BITS;
    s.alphabet = s.kind == FLOATS ? m->bits : ((m->levels - 1) >> s.low_bits) + 1;
    s.low_alphabet = s.kind == FLOATS ? DIGIT : 1 << s.low_bits;
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

typedef struct {
    const Model *m;
    Scratch s;
    Shape shape;
    Drift drift, low_drift;
} Coding;

static int coding_init(Coding *k, const Model *m, int coding) {
    k->m = m;
    k->shape = shape_of(m);
    k->drift = drift_of(k->shape.alphabet);
    k->low_drift = drift_of(k->shape.low_alphabet);
    return scratch_init(&k->s, m, coding ? (int)k->shape.kind + 1 : 0);
}

/* ---- encoder ----------------------------------------------------------------------------------------------------- */

INLINE void put_digit(Coding *k, size_t context, unsigned digit, const Drift *drift, Adaptation adaptation) {
    int16_t *cdf = k->s.of.cdf + context * DIGIT;
    Interval i = interval_before(cdf, 2 * digit + 2);
    k->s.ops[k->s.n_ops++] = (i.start & (ONE - 1)) | i.frequency << PROBABILITY_BITS;
    if (adaptation != FROZEN) {
        Row row = row_load(cdf);
        adapt(&k->s.of, context, row, row_above(row, cdf[digit]), drift, adaptation);
    }
}

INLINE void put_bits(Coding *k, uint32_t value, int n) {
    k->s.ops[k->s.n_ops++] = value << (PROBABILITY_BITS - n) | 1u << (PROBABILITY_BITS - n + PROBABILITY_BITS);
}

/* What comes after the first of a symbol's digits. */
INLINE void put_rest(Coding *k, unsigned sub, uint32_t symbol, unsigned seen, Kind kind, Adaptation adaptation) {
    unsigned high = kind == TWO_DIGITS ? symbol >> k->shape.low_bits : seen;
    size_t context = (size_t)k->m->first + high * (size_t)k->m->subs + sub;
    if (kind == TWO_DIGITS) {
        put_digit(k, context, symbol & ((1u << k->shape.low_bits) - 1), &k->low_drift, adaptation);
    } else {
        uint32_t folded = fold(k->m, symbol), rest = seen ? folded - (1u << seen) : folded;
        int n = seen ? (int)seen : 1, raw = n > 4 ? n - 4 : 0;
        put_digit(k, context, rest >> raw, &k->low_drift, adaptation);
        if (raw) put_bits(k, rest & ((1u << raw) - 1), raw);
        else k->s.ops[k->s.n_ops++] = 0;
    }
}

/* What contexts see of every symbol, into the padded planes. Returns -1 where a symbol is outside the alphabet. */
static int load_planes(Coding *k, Symbols symbols) {
    const Model *m = k->m;
    const uint8_t *narrow = symbols.narrow;
    const uint16_t *wide = symbols.wide;
    uint32_t largest = 0;
    for (int c = 0; c < m->channels; c++)
        for (int y = 0; y < m->rows; y++) {
            uint8_t *restrict row = plane_row(m, &k->s, c, y);
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
                    row[x] = (uint8_t)(k->shape.kind == FLOATS ? (uint32_t)length_of(fold(m, v)) : v);
                }
                wide += m->cols;
            }
        }
    for (int c = 0; c < m->channels; c++) {
        for (int y = 0; y < m->rows; y++) {
            uint8_t *row = plane_row(m, &k->s, c, y);
            row[-1] = row[0];
            row[m->cols] = row[m->cols - 1];
        }
        plane_end(m, &k->s, c);
    }
    return largest < (uint32_t)m->levels ? 0 : -1;
}

INLINE void put_row(Coding *coding, int c, int lanes, int y, const uint16_t *wide, Kind kind,
                    Adaptation adaptation) {
    Coding k = *coding; /* copies that nothing points to stay in registers */
    const Model m = *k.m;
    const Group g = k.s.group;
    const ptrdiff_t area = (ptrdiff_t)m.rows * m.cols;
    for (int x = 0; x < m.cols; x++) {
        const uint8_t *row = g.row + (x + 1) * LANES;
        uint8_t sub[LANES] = {0};
        UNROLLED
        for (int from = 0; from < lanes; from += HALF) {
            Places at = places(&m, &g, x, from, packed(row - LANES + from), k.shape.shift);
            const int to = lanes < from + HALF ? lanes : from + HALF;
            UNROLLED
            for (int l = from; l < to; l++) {
                size_t context = g.offset[l] + (size_t)m.context[at.at[l - from]];
                if (kind != ONE_DIGIT) sub[l] = m.sub[at.at[l - from] & LUT_LAST];
                put_digit(&k, context, (unsigned)row[l] >> k.shape.low_bits, &k.drift, adaptation);
            }
        }
        UNROLLED
        for (int l = 0; kind != ONE_DIGIT && l < lanes; l++) {
            uint32_t symbol = kind == FLOATS ? wide[(c + l) * area + (ptrdiff_t)y * m.cols + x] : row[l];
            put_rest(&k, sub[l], symbol, row[l], kind, adaptation);
        }
    }
    coding->s.n_ops = k.s.n_ops;
}

INLINE void put_planes(Coding *k, const uint16_t *wide, Kind kind, Adaptation adaptation) {
    const Model *m = k->m;
    for (int c = 0; c < m->channels; c += LANES) {
        int lanes = m->channels - c < LANES ? m->channels - c : LANES;
        group_begin(m, &k->s, c, lanes);
        for (int y = 0; y < m->rows; y++) {
            row_begin(m, &k->s, c, lanes, y);
            load_row(m, &k->s, c, lanes, y);
            if (lanes == LANES) put_row(k, c, LANES, y, wide, kind, adaptation);
            else put_row(k, c, lanes, y, wide, kind, adaptation);
            row_end(m, &k->s, lanes);
        }
    }
}

/* One step of a state, and the word it has no room for. */
INLINE uint8_t *put_word(uint32_t op, uint32_t *state, uint8_t *end) {
    uint32_t frequency = op >> PROBABILITY_BITS, x = *state;
    if (x >> (32 - PROBABILITY_BITS) >= frequency) {
        *--end = (uint8_t)(x >> 8);
        *--end = (uint8_t)x;
        x >>= 16;
    }
    uint32_t q = x / frequency;
    *state = (q << PROBABILITY_BITS) + (x - q * frequency) + (op & (ONE - 1));
    return end;
}

/* Turn operations, the last first, into words that end at `end`. Returns where they begin, or NULL where less than the
 * slack is left from `begin` on. */
INLINE uint8_t *put_group(const uint32_t *ops, ptrdiff_t area, int lanes, int digits, int n_states, uint32_t *states,
                          const uint8_t *begin, uint8_t *end) {
    uint32_t state[STATES];
    memcpy(state, states, sizeof state);
    const uint32_t *op = ops + area * lanes * digits;
    for (ptrdiff_t i = 0; i < area; i++) {
        if (UNLIKELY(end - begin < ENCODER_SLACK)) return NULL;
        UNROLLED
        for (int l = lanes - 1; digits > 1 && l >= 0; l--)
            for (int d = 1; d < digits; d++)
                if (*--op) end = put_word(*op, state + (l & (n_states - 1)), end);
        UNROLLED
        for (int l = lanes - 1; l >= 0; l--) end = put_word(*--op, state + (l & (n_states - 1)), end);
    }
    memcpy(states, state, sizeof state);
    return end;
}

static uint8_t *put_words(const Coding *k, uint8_t *begin, uint8_t *end) {
    const Model *m = k->m;
    const int digits = (int)k->shape.kind + 1;
    const ptrdiff_t area = (ptrdiff_t)m->rows * m->cols;
    uint32_t states[STATES];
    for (int l = 0; l < STATES; l++) states[l] = STATE_LOW;
    for (int c = (m->channels - 1) / LANES * LANES; c >= 0 && end; c -= LANES) {
        const int lanes = m->channels - c < LANES ? m->channels - c : LANES;
        const uint32_t *ops = k->s.ops + area * c * digits;
        if (lanes < LANES || m->states < 4 || digits == 3)
            end = put_group(ops, area, lanes, digits, m->states, states, begin, end);
        else if (m->states == 8) end = put_group(ops, area, LANES, digits, 8, states, begin, end);
        else if (digits == 1) end = put_group(ops, area, LANES, 1, 4, states, begin, end);
        else end = put_group(ops, area, LANES, 2, 4, states, begin, end);
    }
    if (!end || end - begin < 4 * m->states + ENCODER_SLACK) return NULL;
    for (int l = m->states; l-- > 0;)
        for (int b = 24; b >= 0; b -= 8) *--end = (uint8_t)(states[l] >> b);
    return end;
}

static Outcome encode(const Model *m, Symbols symbols, uint8_t *begin, uint8_t *end, uint8_t **start) {
    Coding k;
    Outcome outcome = NO_MEMORY;
    if (coding_init(&k, m, 1) == 0) {
        const uint16_t *wide = symbols.wide;
        outcome = load_planes(&k, symbols) < 0 ? OUTSIDE : DONE;
        if (outcome == DONE) {
            if (k.shape.kind == ONE_DIGIT && m->adaptation == STEADY) put_planes(&k, wide, ONE_DIGIT, STEADY);
            else if (k.shape.kind == TWO_DIGITS && m->adaptation == FROZEN) put_planes(&k, wide, TWO_DIGITS, FROZEN);
            else if (k.shape.kind == ONE_DIGIT) put_planes(&k, wide, ONE_DIGIT, m->adaptation);
            else if (k.shape.kind == TWO_DIGITS) put_planes(&k, wide, TWO_DIGITS, m->adaptation);
            else put_planes(&k, wide, FLOATS, m->adaptation);
            *start = put_words(&k, begin, end);
            if (!*start) outcome = TOO_LONG;
        }
    }
    scratch_free(&k.s);
    return outcome;
}

/* ---- decoder ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *next, *end; /* beyond `end` stand enough zeros for one row of symbols */
    int damaged;               /* a symbol is impossible */
} Words;

/* That the word was there is checked row by row. */
INLINE uint32_t advance(uint32_t x, Interval i, Words *words) {
    x = i.frequency * (x >> PROBABILITY_BITS) + ((x - i.start) & (ONE - 1));
    if (UNLIKELY(x < STATE_LOW)) {
        x = x << 16 | words->next[0] | (uint32_t)words->next[1] << 8;
        words->next += 2;
    }
    return x;
}

/* Twice the digit, and 2. */
INLINE unsigned get_digit(const Coding *k, size_t context, const Drift *drift, uint32_t *state, Words *words,
                          Adaptation adaptation) {
    const int16_t *cdf = k->s.of.cdf + context * DIGIT;
    Row row = row_load(cdf), above = row_above(row, (int16_t)(*state | ONE)); /* the slot - ONE */
    unsigned next = row_next(above);
    *state = advance(*state, interval_before(cdf, next), words);
    adapt(&k->s.of, context, row, above, drift, adaptation);
    return next;
}

INLINE uint32_t get_bits(int n, uint32_t *state, Words *words) {
    uint32_t value = (*state & (ONE - 1)) >> (PROBABILITY_BITS - n);
    Interval i = {value << (PROBABILITY_BITS - n), 1u << (PROBABILITY_BITS - n)};
    *state = advance(*state, i, words);
    return value;
}

/* The symbol, from the first of its two digits on. */
INLINE uint32_t get_rest(const Coding *k, unsigned high, unsigned sub, uint32_t *state, Words *words, Kind kind,
                         Adaptation adaptation) {
    size_t context = (size_t)k->m->first + high * (size_t)k->m->subs + sub;
    unsigned low = get_digit(k, context, &k->low_drift, state, words, adaptation) / 2 - 1;
    if (kind == TWO_DIGITS) return high << k->shape.low_bits | low;
    int n = high ? (int)high : 1, raw = n > 4 ? n - 4 : 0;
    uint32_t rest = low;
    if (raw) rest = low << raw | get_bits(raw, state, words);
    if (UNLIKELY(rest >> n)) words->damaged = 1;
    return unfold(k->m, (high ? 1u << high : 0) + rest);
}

INLINE void get_row(const Coding *coding, int c, int lanes, int y, int n_states, uint32_t *states,
                    Words *words, uint16_t *wide, Kind kind, Adaptation adaptation) {
    const Coding k = *coding; /* copies that nothing points to stay in registers */
    const Model m = *k.m;
    const Group g = k.s.group;
    const ptrdiff_t area = (ptrdiff_t)m.rows * m.cols;
    Words w = *words;
    uint32_t state[STATES], left[LANES / HALF] = {packed(g.row), packed(g.row + HALF)};
    memcpy(state, states, sizeof state);
    for (int x = 0; x < m.cols; x++) {
        uint8_t sub[LANES] = {0};
        UNROLLED
        for (int from = 0; from < lanes; from += HALF) {
            Places at = places(&m, &g, x, from, left[from / HALF], k.shape.shift);
            uint32_t seen = 0;
            const int to = lanes < from + HALF ? lanes : from + HALF;
            UNROLLED
            for (int l = from; l < to; l++) {
                size_t context = g.offset[l] + (size_t)m.context[at.at[l - from]];
                unsigned next = get_digit(&k, context, &k.drift, state + (l & (n_states - 1)), &w, adaptation);
                seen |= next << 8 * (l - from);
                if (kind != ONE_DIGIT) sub[l] = m.sub[at.at[l - from] & LUT_LAST];
            }
            seen = (seen >> 1) - 0x01010101; /* digits; this borrows from lanes without a channel only */
            left[from / HALF] = seen;
            if (kind != TWO_DIGITS) unpack(g.row + (x + 1) * LANES + from, seen);
        }
        UNROLLED
        for (int from = 0; kind != ONE_DIGIT && from < lanes; from += HALF) {
            uint32_t seen = 0;
            const int to = lanes < from + HALF ? lanes : from + HALF;
            UNROLLED
            for (int l = from; l < to; l++) {
                unsigned high = left[from / HALF] >> 8 * (l - from) & (DIGIT - 1);
                uint32_t symbol = get_rest(&k, high, sub[l], state + (l & (n_states - 1)), &w, kind, adaptation);
                if (UNLIKELY(symbol >= (uint32_t)m.levels)) w.damaged = 1;
                if (kind == FLOATS) wide[(c + l) * area + (ptrdiff_t)y * m.cols + x] = (uint16_t)symbol;
                else seen |= symbol << 8 * (l - from);
            }
            if (kind == TWO_DIGITS) unpack(g.row + (x + 1) * LANES + from, left[from / HALF] = seen);
        }
    }
    memcpy(states, state, sizeof state);
    *words = w;
}

INLINE void get_planes(Coding *k, uint32_t *states, Words *words, uint16_t *wide, Kind kind, Adaptation adaptation) {
    const Model *m = k->m;
    for (int c = 0; c < m->channels; c += LANES) {
        int lanes = m->channels - c < LANES ? m->channels - c : LANES;
        group_begin(m, &k->s, c, lanes);
        for (int y = 0; y < m->rows; y++) {
            row_begin(m, &k->s, c, lanes, y);
            if (lanes < LANES || kind == FLOATS)
                get_row(k, c, lanes, y, m->states, states, words, wide, kind, adaptation);
            else if (m->states == 8) get_row(k, c, LANES, y, 8, states, words, wide, kind, adaptation);
            else if (m->states == 4) get_row(k, c, LANES, y, 4, states, words, wide, kind, adaptation);
            else if (m->states == 2) get_row(k, c, LANES, y, 2, states, words, wide, kind, adaptation);
            else get_row(k, c, LANES, y, 1, states, words, wide, kind, adaptation);
            store_row(m, &k->s, c, lanes, y);
            row_end(m, &k->s, lanes);
            if (UNLIKELY(words->next > words->end)) words->damaged = 1;
            if (words->damaged) return;
        }
        for (int l = 0; l < lanes; l++) plane_end(m, &k->s, c + l);
    }
}

/* What contexts saw is the symbol itself, up to 8 bits: copy it out of the padded planes. */
static void store_planes(const Coding *k, Symbols symbols) {
    const Model *m = k->m;
    for (int c = 0; c < m->channels; c++)
        for (int y = 0; y < m->rows; y++) {
            const uint8_t *row = plane_row(m, &k->s, c, y);
            if (symbols.narrow) {
                memcpy(symbols.narrow, row, (size_t)m->cols);
                symbols.narrow += m->cols;
            } else {
                for (int x = 0; x < m->cols; x++) symbols.wide[x] = row[x];
                symbols.wide += m->cols;
            }
        }
}

/* A payload is one that the encoder could have made only where its states end as the encoder's began, with no word
 * missing and none left. */
static Outcome read_payload(Coding *k, const uint8_t *payload, ptrdiff_t size, Symbols symbols) {
    const Model *m = k->m;
    uint32_t states[STATES];
    Words words = {payload, payload + size, 0};
    uint16_t *wide = symbols.wide;
    for (int l = 0; l < STATES; l++) states[l] = STATE_LOW;
    if (size < 4 * m->states) return DAMAGED;
    for (int l = 0; l < m->states; l++, words.next += 4) {
        const uint8_t *p = words.next;
        states[l] = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        if (states[l] < STATE_LOW) return DAMAGED;
    }
    if (k->shape.kind == ONE_DIGIT && m->adaptation == STEADY) get_planes(k, states, &words, wide, ONE_DIGIT, STEADY);
    else if (k->shape.kind == ONE_DIGIT && m->adaptation == SETTLING) get_planes(k, states, &words, wide, ONE_DIGIT, SETTLING);
    else if (k->shape.kind == ONE_DIGIT) get_planes(k, states, &words, wide, ONE_DIGIT, FROZEN);
    else if (k->shape.kind == TWO_DIGITS && m->adaptation == SETTLING) get_planes(k, states, &words, wide, TWO_DIGITS, SETTLING);
    else if (k->shape.kind == TWO_DIGITS && m->adaptation == STEADY) get_planes(k, states, &words, wide, TWO_DIGITS, STEADY);
    else if (k->shape.kind == TWO_DIGITS) get_planes(k, states, &words, wide, TWO_DIGITS, FROZEN);
    else get_planes(k, states, &words, wide, FLOATS, m->adaptation);
    if (words.damaged || words.next != words.end) return DAMAGED;
    for (int l = 0; l < STATES; l++)
        if (states[l] != STATE_LOW) return DAMAGED;
    if (k->shape.kind != FLOATS) store_planes(k, symbols);
    return DONE;
}

static Outcome decode(const Model *m, const uint8_t *payload, ptrdiff_t size, Symbols symbols) {
    Coding k;
    Outcome outcome = NO_MEMORY;
    size_t slack = (size_t)m->cols * LANES * MOST_BYTES_PER_SYMBOL + 2;
    uint8_t *padded = malloc((size_t)size + slack);
    int ready = coding_init(&k, m, 0) == 0;
    if (padded && ready) {
        memcpy(padded, payload, (size_t)size);
        memset(padded + size, 0, slack);
        outcome = read_payload(&k, padded, size, symbols);
    }
    scratch_free(&k.s);
    free(padded);
    return outcome;
}

/* ---- size estimate ----------------------------------------------------------------------------------------------- */

static void tally_symbol(const Coding *k, size_t context, unsigned sub, unsigned seen, uint32_t symbol, uint32_t *counts) {
    const Model *m = k->m;
    unsigned high = seen >> k->shape.low_bits, low = seen & ((1u << k->shape.low_bits) - 1);
    if (k->shape.kind == FLOATS) {
        uint32_t rest = fold(m, symbol) & ((1u << (seen ? seen : 1)) - 1);
        low = seen > 4 ? rest >> (seen - 4) : rest;
    }
    counts[context * DIGIT + high]++;
    if (k->shape.kind != ONE_DIGIT) counts[((size_t)m->first + high * (size_t)m->subs + sub) * DIGIT + low]++;
}

static Outcome tally(const Model *m, Symbols symbols, int step, uint32_t *counts) {
    Coding k;
    Outcome outcome = NO_MEMORY;
    if (coding_init(&k, m, 0) < 0) goto done;
    outcome = OUTSIDE;
    if (load_planes(&k, symbols) < 0) goto done;
    outcome = DONE;
    for (int c = 0; c < m->channels; c += LANES * step) {
        int lanes = m->channels - c < LANES ? m->channels - c : LANES;
        const Group *g = &k.s.group;
        Places at;
        group_begin(m, &k.s, c, lanes);
        for (int y = 0; y < m->rows; y++) {
            row_begin(m, &k.s, c, lanes, y);
            load_row(m, &k.s, c, lanes, y);
            for (int x = 0; x < m->cols; x++) {
                for (int l = 0; l < lanes; l++) {
                    const uint8_t *row = g->row + (x + 1) * LANES + l / HALF * HALF;
                    if (l % HALF == 0) at = places(m, g, x, l, packed(row - LANES), k.shape.shift);
                    uint32_t symbol = symbols.wide ? symbols.wide[((ptrdiff_t)(c + l) * m->rows + y) * m->cols + x] : 0;
                    size_t context = g->offset[l] + (size_t)m->context[at.at[l % HALF]];
                    tally_symbol(&k, context, m->sub[at.at[l % HALF] & LUT_LAST], row[l % HALF], symbol, counts);
                }
            }
            row_end(m, &k.s, lanes);
        }
    }
done:
    scratch_free(&k.s);
    return outcome;
}

const Loops THESE_LOOPS = {encode, decode, tally};
