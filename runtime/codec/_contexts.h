/* Which distribution a symbol has: what its neighbours and earlier channels say, for several channels in step. Included
 * once in each of the files that compile the loops, after `_digits.h`. */

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
