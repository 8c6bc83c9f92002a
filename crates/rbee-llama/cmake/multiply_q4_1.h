// Put in front of ggml-cpu.c by llama.cmake.
//
// llama.cpp multiplies matrices of type Q4_1 one row of weights and one column
// at a time, and takes every weight out of its nibble anew for each column.
// Here, eight rows of weights are turned so that a register has four weights of
// each of them: scales are applied to eight rows at once, and what was taken out
// of nibbles serves all columns.
//
// Every number is summed up in llama.cpp's order, and is the same to the bit.
#pragma once

#if defined(__GNUC__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(GGML_USE_LLAMAFILE)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "ggml-cpu-impl.h"
#include "llamafile/sgemm.h"
#include "ops.h"
#include "quants.h"

#define RBEE_FORCED static inline __attribute__((always_inline))

// Rows of weights that are computed together: as many as a register has single numbers.
#define RBEE_PANEL 8
// Registers of weights in a block of a panel, each of four weights of every row.
#define RBEE_FOURS (QK4_1 / 4)
// Blocks of a panel that are taken out of their nibbles before they are multiplied: 15 KiB.
#define RBEE_SLICE 48
// Columns that are multiplied by a slice before the next one is taken.
#define RBEE_COLUMNS 64
// Columns up to which a block is multiplied as soon as it is out of its nibbles.
#define RBEE_FEW 2

// A block of eight rows, out of its nibbles.
struct rbee_weights {
    __m256i fours[RBEE_FOURS];
    __m256 scales;
    __m256 least;
};

// What eight numbers of a column come to so far: llama.cpp sums up each four weights of a block
// apart, and what their least value adds.
struct rbee_sums {
    __m256 fours[RBEE_FOURS];
    __m256 least;
};

// Matrices as llamafile_sgemm gets them, with strides in blocks and numbers.
struct rbee_product {
    const block_q4_1 * weights;
    int64_t weights_stride;
    const block_q8_1 * columns;
    int64_t columns_stride;
    float * to;
    int64_t to_stride;
    int64_t blocks;
};

RBEE_FORCED __m256i rbee_two_rows(const block_q4_1 * row, int64_t half) {
    const __m128i low = _mm_loadu_si128((const __m128i *) row->qs);
    const __m128i high = _mm_loadu_si128((const __m128i *) (row + half)->qs);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

RBEE_FORCED int rbee_factors(const block_q4_1 * row) {
    int factors;
    memcpy(&factors, row, sizeof(factors));
    return factors;
}

// Asks for a part of the next panel, of the size of a block of it: rows of a panel stand apart in memory.
RBEE_FORCED void rbee_ask_ahead(const struct rbee_product * p, int64_t row, int64_t block) {
    const size_t size = RBEE_PANEL * sizeof(block_q4_1);
    const char * next = (const char *) (p->weights + (row + RBEE_PANEL) * p->weights_stride);
    for (size_t byte = 0; byte < size; byte += CACHE_LINE_SIZE) {
        __builtin_prefetch(next + block * size + byte);
    }
}

// Takes one block of eight rows out of its nibbles.
RBEE_FORCED void rbee_unpack(const block_q4_1 * from, int64_t stride, struct rbee_weights * to) {
    const int64_t half = stride * (RBEE_PANEL / 2);
    const __m256i a = rbee_two_rows(from, half);
    const __m256i b = rbee_two_rows(from + stride, half);
    const __m256i c = rbee_two_rows(from + stride * 2, half);
    const __m256i d = rbee_two_rows(from + stride * 3, half);
    const __m256i ab_low = _mm256_unpacklo_epi32(a, b);
    const __m256i ab_high = _mm256_unpackhi_epi32(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi32(c, d);
    const __m256i cd_high = _mm256_unpackhi_epi32(c, d);
    const __m256i pairs[RBEE_FOURS / 2] = {
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    };
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    for (int i = 0; i < RBEE_FOURS / 2; i++) {
        to->fours[i] = _mm256_and_si256(pairs[i], nibble);
        to->fours[i + RBEE_FOURS / 2] = _mm256_and_si256(_mm256_srli_epi16(pairs[i], 4), nibble);
    }
    const __m256i factors = _mm256_setr_epi32(
        rbee_factors(from), rbee_factors(from + stride), rbee_factors(from + stride * 2),
        rbee_factors(from + stride * 3), rbee_factors(from + stride * 4), rbee_factors(from + stride * 5),
        rbee_factors(from + stride * 6), rbee_factors(from + stride * 7));
    const __m256i scales = _mm256_and_si256(factors, _mm256_set1_epi32(0xffff));
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(scales, _mm256_srli_epi32(factors, 16)), 0xd8);
    to->scales = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    to->least = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}

// Adds one block of eight rows times one block of a column.
RBEE_FORCED void rbee_add_block(const struct rbee_weights * weights, const block_q8_1 * from, struct rbee_sums * sums) {
    int factors;
    memcpy(&factors, from, sizeof(factors));
    // Scale and sum of the column, in turns.
    const __m256 both = _mm256_cvtph_ps(_mm_set1_epi32(factors));
    const __m256 scales = _mm256_mul_ps(weights->scales, _mm256_moveldup_ps(both));
    sums->least = _mm256_fmadd_ps(weights->least, _mm256_movehdup_ps(both), sums->least);
    for (int i = 0; i < RBEE_FOURS; i++) {
        int four;
        memcpy(&four, from->qs + 4 * i, sizeof(four));
        const __m256i pairs = _mm256_maddubs_epi16(weights->fours[i], _mm256_set1_epi32(four));
        const __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        sums->fours[i] = _mm256_fmadd_ps(scales, product, sums->fours[i]);
    }
}

// In the order in which llama.cpp adds up a register.
RBEE_FORCED __m256 rbee_total(const struct rbee_sums * sums) {
    const __m256 * f = sums->fours;
    const __m256 even = _mm256_add_ps(_mm256_add_ps(f[0], f[4]), _mm256_add_ps(f[2], f[6]));
    const __m256 odd = _mm256_add_ps(_mm256_add_ps(f[1], f[5]), _mm256_add_ps(f[3], f[7]));
    return _mm256_add_ps(_mm256_add_ps(even, odd), sums->least);
}

RBEE_FORCED void rbee_multiply_few(const int columns, const struct rbee_product * p, int64_t row) {
    struct rbee_sums sums[RBEE_FEW];
    memset(sums, 0, sizeof(sums));
    const block_q4_1 * from = p->weights + row * p->weights_stride;
    for (int64_t b = 0; b < p->blocks; b++) {
        struct rbee_weights weights;
        rbee_ask_ahead(p, row, b);
        rbee_unpack(from + b, p->weights_stride, &weights);
        for (int c = 0; c < columns; c++) {
            rbee_add_block(&weights, p->columns + c * p->columns_stride + b, sums + c);
        }
    }
    for (int c = 0; c < columns; c++) {
        _mm256_storeu_ps(p->to + c * p->to_stride + row, rbee_total(sums + c));
    }
}

static void rbee_multiply_many(const struct rbee_product * p, int64_t column, int64_t columns, int64_t row) {
    struct rbee_weights weights[RBEE_SLICE];
    // Used between slices alone, of which most matrices of small models are one.
    struct rbee_sums all[RBEE_COLUMNS];
    for (int64_t first = 0; first < p->blocks; first += RBEE_SLICE) {
        const int64_t blocks = MIN(RBEE_SLICE, p->blocks - first);
        const block_q4_1 * from = p->weights + row * p->weights_stride + first;
        for (int64_t b = 0; b < blocks; b++) {
            rbee_ask_ahead(p, row, first + b);
            rbee_unpack(from + b, p->weights_stride, weights + b);
        }
        for (int64_t c = 0; c < columns; c++) {
            const block_q8_1 * of = p->columns + (column + c) * p->columns_stride + first;
            struct rbee_sums sums;
            if (first == 0) {
                memset(&sums, 0, sizeof(sums));
            } else {
                sums = all[c];
            }
            for (int64_t b = 0; b < blocks; b++) {
                rbee_add_block(weights + b, of + b, &sums);
            }
            if (first + blocks < p->blocks) {
                all[c] = sums;
            } else {
                _mm256_storeu_ps(p->to + (column + c) * p->to_stride + row, rbee_total(&sums));
            }
        }
    }
}

static void rbee_multiply_panel(const struct rbee_product * p, int64_t columns, int64_t row) {
    switch (columns) {
        case 1: rbee_multiply_few(1, p, row); break;
        case 2: rbee_multiply_few(2, p, row); break;
        default:
            for (int64_t column = 0; column < columns; column += RBEE_COLUMNS) {
                rbee_multiply_many(p, column, MIN(RBEE_COLUMNS, columns - column), row);
            }
    }
}

static bool rbee_sgemm(const struct ggml_compute_params * params, int64_t rows, int64_t columns, int64_t blocks,
                       const void * weights, int64_t weights_stride, const void * from, int64_t columns_stride,
                       void * to, int64_t to_stride, int weights_type, int columns_type, int to_type) {
    if (weights_type != GGML_TYPE_Q4_1 || columns_type != GGML_TYPE_Q8_1 || to_type != GGML_TYPE_F32 ||
        rows % RBEE_PANEL != 0) {
        return llamafile_sgemm(params, rows, columns, blocks, weights, weights_stride, from, columns_stride, to,
                               to_stride, weights_type, columns_type, to_type);
    }
    const struct rbee_product p = {
        (const block_q4_1 *) weights, weights_stride, (const block_q8_1 *) from, columns_stride, (float *) to,
        to_stride, blocks,
    };
    const int64_t panels = rows / RBEE_PANEL;
    // Panels that a thread takes at once: eight turns for each, should one be kept from working.
    const int64_t turns = 8 * params->nth;
    const int64_t share = (panels + turns - 1) / turns;
    // The caller has set the counter of turns for the first matrix.
    if (from != params->wdata) {
        ggml_barrier(params->threadpool);
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
    }
    for (int64_t turn = params->ith; turn * share < panels; turn = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t end = MIN((turn + 1) * share, panels);
        for (int64_t panel = turn * share; panel < end; panel++) {
            rbee_multiply_panel(&p, columns, panel * RBEE_PANEL);
        }
    }
    return true;
}

#define llamafile_sgemm rbee_sgemm

#endif
