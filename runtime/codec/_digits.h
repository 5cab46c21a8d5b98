/* One digit: the vectors of this machine, and a distribution that is searched and drifts in one of them. Included once in
 * each of the files that compile the loops. */

#if defined(NARROWS_NO_SIMD)
#elif defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define USE_SSE2 1
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
