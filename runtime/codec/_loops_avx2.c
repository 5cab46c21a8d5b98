/* The loops once more, for processors with AVX2: `_kernel.c` asks before it uses them. */

#include "_loops.h"

#ifdef HAVE_AVX2_LOOPS
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2")
#endif
#define USE_AVX2 1
#define THESE_LOOPS avx2_loops
#include "_loops.c"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
