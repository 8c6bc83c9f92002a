// Put in front of llama-graph.cpp by llama.cmake.
//
// A context for plain attention stores its values by columns, and llama.cpp's
// flash attention reads them by rows. Here they are put in rows before it reads
// them, so that a context can take the faster of both ways for each batch.
#pragma once

#include <cstdint>

#include "ggml.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

// Tokens that one thread puts in rows at a time: a cache line of each column.
constexpr int64_t RBEE_TOKENS = 32;
// Numbers of 16 bits in a register.
constexpr int64_t RBEE_BLOCK = 8;

// Turns 8 columns of 8 numbers into 8 rows. Strides are in numbers.
static inline void rbee_turn_block(const uint16_t * from, size_t column, uint16_t * to, size_t row) {
#ifdef __SSE2__
    __m128i a[RBEE_BLOCK];
    __m128i b[RBEE_BLOCK];
    for (int i = 0; i < RBEE_BLOCK; i++) {
        a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i * column));
    }
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        a[4 * i] = _mm_unpacklo_epi32(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm_unpackhi_epi32(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm_unpacklo_epi32(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm_unpackhi_epi32(b[4 * i + 1], b[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to + (2 * i) * row), _mm_unpacklo_epi64(a[i], a[i + 4]));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(to + (2 * i + 1) * row), _mm_unpackhi_epi64(a[i], a[i + 4]));
    }
#else
    for (int64_t token = 0; token < RBEE_BLOCK; token++) {
        for (int64_t i = 0; i < RBEE_BLOCK; i++) {
            to[token * row + i] = from[i * column + token];
        }
    }
#endif
}

// An operation of ggml: thread `ith` of `nth` puts its share of the values in rows.
static inline void rbee_put_in_rows(struct ggml_tensor * rows, int ith, int nth, void *) {
    const struct ggml_tensor * values = rows->src[0];
    const int64_t dims = rows->ne[0];
    const int64_t parts = rows->ne[1] / RBEE_TOKENS;
    const size_t column = values->nb[0] / sizeof(uint16_t);
    for (int64_t share = ith; share < parts * rows->ne[2] * rows->ne[3]; share += nth) {
        const int64_t first = share % parts * RBEE_TOKENS;
        const int64_t head = share / parts % rows->ne[2];
        const int64_t stream = share / parts / rows->ne[2];
        const char * from = static_cast<const char *>(values->data) + stream * values->nb[3] + head * values->nb[2];
        char * to = static_cast<char *>(rows->data) + stream * rows->nb[3] + head * rows->nb[2];
        for (int64_t dim = 0; dim < dims; dim += RBEE_BLOCK) {
            for (int64_t token = first; token < first + RBEE_TOKENS; token += RBEE_BLOCK) {
                rbee_turn_block(reinterpret_cast<const uint16_t *>(from) + dim * column + token, column,
                                reinterpret_cast<uint16_t *>(to) + token * dims + dim, dims);
            }
        }
    }
}

static inline struct ggml_tensor * rbee_in_rows(struct ggml_context * ctx, struct ggml_tensor * values) {
    const size_t size = ggml_type_size(values->type);
    if (values->nb[0] == size) {
        return values;
    }
    const int64_t * ne = values->ne;
    // llama.cpp keeps a multiple of 256 cells in view, and heads are seldom of another number.
    const bool is_in_blocks = size == sizeof(uint16_t) && values->nb[1] == size && ne[0] % RBEE_BLOCK == 0 &&
                              ne[1] % RBEE_TOKENS == 0;
    if (!is_in_blocks) {
        return ggml_cont(ctx, values);
    }
    return ggml_custom_4d(ctx, values->type, ne[0], ne[1], ne[2], ne[3], &values, 1, rbee_put_in_rows,
                          GGML_N_TASKS_MAX, nullptr);
}

#define ggml_flash_attn_ext(ctx, q, k, v, ...) \
    ggml_flash_attn_ext(ctx, q, k, rbee_in_rows(ctx, v), __VA_ARGS__)

// The shim refers to it, so that a build without this header does not link.
extern "C" {
extern const int rbee_values_in_rows;
const int rbee_values_in_rows = 1;
}
