// Numbers by the register, for attend_block.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "common.h"
#include "ggml-cpu-impl.h"
#include "ops.h"

// A register's numbers.
#define RBEE_LANES 8

#define RBEE_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define RBEE_UNROLL _Pragma("unroll")
#else
#define RBEE_UNROLL _Pragma("GCC unroll 8")
#endif

typedef float rbee_f32 __attribute__((vector_size(32)));
typedef int32_t rbee_i32 __attribute__((vector_size(32)));
typedef float rbee_quad __attribute__((vector_size(16)));

RBEE_INLINE rbee_f32 rbee_load(const float * from) {
    rbee_f32 numbers;
    memcpy(&numbers, from, sizeof(numbers));
    return numbers;
}

RBEE_INLINE void rbee_store(float * to, rbee_f32 numbers) {
    memcpy(to, &numbers, sizeof(numbers));
}

RBEE_INLINE rbee_f32 rbee_spread(float number) {
    return number - (rbee_f32) { 0 };
}

RBEE_INLINE rbee_f32 rbee_load_f16(const ggml_fp16_t * from) {
#ifdef __aarch64__
    typedef __fp16 rbee_f16 __attribute__((vector_size(16)));
    rbee_f16 numbers;
    memcpy(&numbers, from, sizeof(numbers));
    return __builtin_convertvector(numbers, rbee_f32);
#else
    return (rbee_f32) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) from));
#endif
}

RBEE_INLINE void rbee_fetch(const char * from, int64_t dims) {
    for (int64_t byte = 0; byte < dims * (int64_t) sizeof(ggml_fp16_t); byte += CACHE_LINE_SIZE) {
        __builtin_prefetch(from + byte);
    }
}

RBEE_INLINE rbee_f32 rbee_max(rbee_f32 a, rbee_f32 b) {
    const rbee_i32 above = a > b;
    return (rbee_f32) ((above & (rbee_i32) a) | (~above & (rbee_i32) b));
}

RBEE_INLINE float rbee_max_of(rbee_f32 a) {
    float most = a[0];
    for (int i = 1; i < RBEE_LANES; i++) {
        most = a[i] > most ? a[i] : most;
    }
    return most;
}

// The sum of both halves.
RBEE_INLINE rbee_quad rbee_halves(rbee_f32 a) {
#ifdef __aarch64__
    rbee_quad halves[2];
    memcpy(halves, &a, sizeof(a));
    return halves[0] + halves[1];
#else
    return (rbee_quad) _mm_add_ps(_mm256_castps256_ps128((__m256) a), _mm256_extractf128_ps((__m256) a, 1));
#endif
}

// The sums of neighbours.
RBEE_INLINE rbee_quad rbee_pairs(rbee_quad a, rbee_quad b) {
#ifdef __aarch64__
    return (rbee_quad) vpaddq_f32((float32x4_t) a, (float32x4_t) b);
#else
    return (rbee_quad) _mm_hadd_ps((__m128) a, (__m128) b);
#endif
}

// The sum of each of four registers.
RBEE_INLINE rbee_quad rbee_sums(const rbee_f32 * a) {
    return rbee_pairs(rbee_pairs(rbee_halves(a[0]), rbee_halves(a[1])),
                      rbee_pairs(rbee_halves(a[2]), rbee_halves(a[3])));
}

RBEE_INLINE float rbee_sum(rbee_f32 a) {
    const rbee_quad quad = rbee_halves(a);
    return (quad[0] + quad[2]) + (quad[1] + quad[3]);
}

// e to the power of numbers that are not above 0, to 2 units in the last place:
// 2^n * e^r with |r| <= ln(2)/2, e^r by its series.
RBEE_INLINE rbee_f32 rbee_exp(rbee_f32 x) {
    const float to_integer = 0x1.8p23f;
    const rbee_f32 shifted = x * 0x1.715476p+0f + to_integer;
    const rbee_f32 n = shifted - to_integer;
    const rbee_f32 r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    rbee_f32 series = r * (1.0f / 5040) + (1.0f / 720);
    series = series * r + (1.0f / 120);
    series = series * r + (1.0f / 24);
    series = series * r + (1.0f / 6);
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    const rbee_i32 exponent = (rbee_i32) shifted << 23;
    const rbee_i32 power = (rbee_i32) series + exponent;
    return (rbee_f32) (power & (x > -87.0f));
}
