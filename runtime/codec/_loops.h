/* What `_kernel.c` (Python's side) and `_loops.c` (the coding loops) know of each other. */

#ifndef NARROWS_LOOPS_H
#define NARROWS_LOOPS_H

#include <stddef.h>
#include <stdint.h>

enum {
    PROBABILITY_BITS = 15,
    ONE = 1 << PROBABILITY_BITS,
    STATE_LOW = 1 << 16,   /* a state is in [2^16, 2^32) between symbols and moves 16 bits at a time */
    LANES = 8,             /* channels that are coded in step, so that their chains of dependent loads overlap, */
    HALF = LANES / 2,      /* and of these, as many whose next contexts need not wait for the others' symbols */
    STATES = 8,            /* coder states at most; lane `l` has state `l` modulo their number, a power of two */
    DIGIT = 16,            /* entries of one distribution */
    CAUSAL = 5,            /* weights for left, up, up-left, up-right, the channel's mean so far */
    WEIGHT_BITS = 12,
    MEAN_BITS = 4,
    LUT_BITS = 10,
    LUT_LAST = (1 << LUT_BITS) - 1,
    TEXTURES = 4           /* parts of a neighbourhood's roughness */
};

typedef enum { FROZEN, STEADY /* distributions adapt at one rate, rates[255] */, SETTLING /* by `counts` */ } Adaptation;

/* What is known before the first symbol: made and checked by `model.py`, and trusted. */
typedef struct {
    int channels, rows, cols;
    int levels, bits;      /* alphabet, and bits of its largest symbol */
    int centre;            /* what symbols of more than 8 bits are folded around */
    int refs;              /* earlier channels that one channel looks at */
    int subs;              /* contexts of the second digit per first digit */
    int states;            /* a power of two: fewer bytes for small tensors, more speed for large ones */
    Adaptation adaptation;
    const int32_t *bias;        /* [channels] */
    const int16_t *weights;     /* [channels, CAUSAL + 2 * refs] */
    const uint16_t *ref;        /* [channels, refs] */
    const uint8_t *pad;         /* [channels]: the neighbour of a channel's first symbol */
    const uint16_t *offset;     /* [channels]: the first context of the channel's class */
    const uint16_t *context;    /* [TEXTURES, 1 << LUT_BITS]: roughness and prediction -> context of the class */
    const int16_t *texture;     /* [TEXTURES - 1]: the roughness from which the next part begins */
    const uint8_t *sub;         /* [1 << LUT_BITS]: prediction -> part of the second digit's context */
    const int16_t *cdf;         /* [contexts + 1, DIGIT]: cumulative frequencies - ONE; in the last row only the first counts */
    const uint8_t *counts;      /* [contexts]: how far adaptation has come */
    const uint16_t *rates;      /* [256]: by that, how much of the way to its target an entry moves, in 1 / 2^16 */
    ptrdiff_t contexts, first;  /* all contexts; those of the first digit */
} Model;

/* Symbols are [channels, rows, cols] of one or two bytes: one of `narrow` and `wide` is NULL. */
typedef struct {
    uint8_t *narrow;
    uint16_t *wide;
} Symbols;

typedef enum { DONE, NO_MEMORY, OUTSIDE /* a symbol is not in the alphabet */, TOO_LONG, DAMAGED } Outcome;

enum {
    MOST_BYTES_PER_SYMBOL = 2 * 3, /* two digits and plain bits, a word each */
    ENCODER_SLACK = LANES * MOST_BYTES_PER_SYMBOL
};

typedef struct {
    /* Words that end at `end`; `*start` becomes the first byte, at least ENCODER_SLACK after `begin`. */
    Outcome (*encode)(const Model *, Symbols, uint8_t *begin, uint8_t *end, uint8_t **start);
    Outcome (*decode)(const Model *, const uint8_t *payload, ptrdiff_t size, Symbols);
    /* Count digits by context over every `step`-th group of channels. */
    Outcome (*tally)(const Model *, Symbols, int step, uint32_t *counts);
} Loops;

#if defined(__GNUC__) && !defined(_WIN32)
#define PRIVATE __attribute__((visibility("hidden")))
#else
#define PRIVATE
#endif

extern PRIVATE const Loops plain_loops;
#if defined(__GNUC__) && defined(__x86_64__) && !defined(NARROWS_NO_AVX2)
#define HAVE_AVX2_LOOPS 1
extern PRIVATE const Loops avx2_loops;
#endif

#endif
