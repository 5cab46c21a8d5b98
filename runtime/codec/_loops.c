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

#include "_digits.h"

#include "_contexts.h"

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
