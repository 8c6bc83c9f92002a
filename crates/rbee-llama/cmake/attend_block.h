// Rows that share keys and values, for attend_rows.h.
#pragma once

#include "attend_registers.h"

// Rows that are computed together.
#define RBEE_ROWS 4
// Keys whose scores are weighed together.
#define RBEE_BLOCK 64
// Numbers of a head.
#define RBEE_DIMS_MAX 576
// So many keys ahead they are asked for: those of one head stand apart in memory.
#define RBEE_AHEAD 32

// The tensors of the operation, and how its rows stand in them.
struct rbee_attention {
    const struct ggml_tensor * q;
    const struct ggml_tensor * k;
    const struct ggml_tensor * v;
    const struct ggml_tensor * mask;
    const struct ggml_tensor * sinks;
    struct ggml_tensor * to;
    float scale;
    // The bound that scores are bent to stay below; 0 for none.
    float softcap;
    // How steeply heads lose sight of what is far away (ALiBi); 0 for not at all.
    float max_bias;
    // Heads that share keys and values.
    int64_t heads;
    // Blocks of rows that share keys and values.
    int64_t blocks;
};

// A block of rows.
struct rbee_block {
    int rows;
    int64_t stream;
    int64_t kv_head;
    int64_t query[RBEE_ROWS];
    int64_t head[RBEE_ROWS];
    const ggml_fp16_t * mask[RBEE_ROWS];
    float slope[RBEE_ROWS];
    float q[RBEE_ROWS][RBEE_DIMS_MAX];
};

// What rows come to over some of the keys.
struct rbee_state {
    float most[RBEE_ROWS];
    float sum[RBEE_ROWS];
    float values[RBEE_ROWS][RBEE_DIMS_MAX];
};

RBEE_INLINE void rbee_scores(const int rows, const int keys, const struct rbee_block * block, const int first,
                             const char * k, size_t stride, int64_t dims, int n, float (*scores)[RBEE_BLOCK]) {
    for (int j = 0; j < n; j += keys) {
        for (int i = 0; i < keys; i++) {
            rbee_fetch(k + (j + i + RBEE_AHEAD) * stride, dims);
        }
        rbee_f32 sums[RBEE_ROWS][RBEE_LANES] = { 0 };
        for (int64_t d = 0; d < dims; d += RBEE_LANES) {
            rbee_f32 key[RBEE_LANES];
            RBEE_UNROLL for (int i = 0; i < keys; i++) {
                key[i] = rbee_load_f16((const ggml_fp16_t *) (k + (j + i) * stride) + d);
            }
            RBEE_UNROLL for (int r = 0; r < rows; r++) {
                const rbee_f32 query = rbee_load(block->q[first + r] + d);
                RBEE_UNROLL for (int i = 0; i < keys; i++) {
                    sums[r][i] += query * key[i];
                }
            }
        }
        RBEE_UNROLL for (int r = 0; r < rows; r++) {
            RBEE_UNROLL for (int i = 0; i < keys; i += 4) {
                const rbee_quad quad = rbee_sums(sums[r] + i);
                memcpy(scores[first + r] + j + i, &quad, sizeof(quad));
            }
        }
    }
}

// Adds the values of `n` keys, each times its weight, to what there is, times `keep`.
RBEE_INLINE void rbee_add_values(const int rows, const int registers, struct rbee_state * state, const float * keep,
                                 const char * v, size_t stride, int64_t dims, int n,
                                 float (*weights)[RBEE_BLOCK]) {
    for (int64_t d = 0; d < dims; d += registers * RBEE_LANES) {
        rbee_f32 sums[RBEE_ROWS][RBEE_LANES];
        RBEE_UNROLL for (int r = 0; r < rows; r++) {
            RBEE_UNROLL for (int i = 0; i < registers; i++) {
                sums[r][i] = rbee_load(state->values[r] + d + i * RBEE_LANES) * keep[r];
            }
        }
        for (int j = 0; j < n; j++) {
            const ggml_fp16_t * from = (const ggml_fp16_t *) (v + j * stride) + d;
            __builtin_prefetch(from + RBEE_AHEAD * stride / sizeof(*from));
            RBEE_UNROLL for (int i = 0; i < registers; i++) {
                const rbee_f32 value = rbee_load_f16(from + i * RBEE_LANES);
                RBEE_UNROLL for (int r = 0; r < rows; r++) {
                    sums[r][i] += value * weights[r][j];
                }
            }
        }
        RBEE_UNROLL for (int r = 0; r < rows; r++) {
            RBEE_UNROLL for (int i = 0; i < registers; i++) {
                rbee_store(state->values[r] + d + i * RBEE_LANES, sums[r][i]);
            }
        }
    }
}

// The keys that one of the rows sees, rounded up to whole registers.
static int rbee_seen(const struct rbee_block * block, int64_t from, int n) {
    const uint16_t unseen = 0xfc00; // minus infinity
    for (int last = n; last > 0; last -= RBEE_LANES) {
        for (int r = 0; r < block->rows; r++) {
            for (int i = 0; i < RBEE_LANES; i++) {
                if (block->mask[r][from + last - RBEE_LANES + i] != unseen) {
                    return last;
                }
            }
        }
    }
    return 0;
}

// Turns scores into weights, and says how much what there was still counts.
static void rbee_weigh(const struct rbee_attention * a, const struct rbee_block * block, int64_t from, int n,
                       struct rbee_state * state, float (*scores)[RBEE_BLOCK], float * keep) {
    for (int r = 0; r < block->rows; r++) {
        if (a->softcap != 0.0f) {
            for (int j = 0; j < n; j++) {
                scores[r][j] = a->softcap * tanhf(scores[r][j]);
            }
        }
        rbee_f32 most = rbee_spread(state->most[r]);
        for (int j = 0; j < n; j += RBEE_LANES) {
            const rbee_f32 mask = rbee_load_f16(block->mask[r] + from + j) * block->slope[r];
            const rbee_f32 score = rbee_load(scores[r] + j) + mask;
            rbee_store(scores[r] + j, score);
            most = rbee_max(most, score);
        }
        const float before = state->most[r];
        const float now = rbee_max_of(most);
        state->most[r] = now;
        // Nothing seen so far leaves nothing to keep, and weights that are all 0.
        const float base = now == -INFINITY ? 0.0f : now;
        keep[r] = expf(before - base);
        rbee_f32 sum = { 0 };
        for (int j = 0; j < n; j += RBEE_LANES) {
            const rbee_f32 weight = rbee_exp(rbee_load(scores[r] + j) - base);
            rbee_store(scores[r] + j, weight);
            sum += weight;
        }
        state->sum[r] = state->sum[r] * keep[r] + rbee_sum(sum);
    }
}

// Computes a block of rows over the keys from `from` to `until`.
static void rbee_attend(const struct rbee_attention * a, const struct rbee_block * block, int64_t from, int64_t until,
                        struct rbee_state * state) {
    const int64_t dims = a->v->ne[0];
    for (int r = 0; r < block->rows; r++) {
        state->most[r] = -INFINITY;
        state->sum[r] = 0.0f;
        memset(state->values[r], 0, dims * sizeof(float));
    }
    const char * keys = (const char *) a->k->data + block->kv_head * a->k->nb[2] + block->stream * a->k->nb[3];
    const char * values = (const char *) a->v->data + block->kv_head * a->v->nb[2] + block->stream * a->v->nb[3];
    const size_t k_stride = a->k->nb[1];
    const size_t v_stride = a->v->nb[1];
    for (; from < until; from += RBEE_BLOCK) {
        const int n = rbee_seen(block, from, (int) MIN(until - from, RBEE_BLOCK));
        if (n == 0) {
            continue;
        }
        float scores[RBEE_ROWS][RBEE_BLOCK];
        float keep[RBEE_ROWS];
        const char * k = keys + from * k_stride;
        const char * v = values + from * v_stride;
        const int64_t k_dims = a->k->ne[0];
        switch (block->rows) {
            case 1: rbee_scores(1, 8, block, 0, k, k_stride, k_dims, n, scores); break;
            case 2: rbee_scores(2, 4, block, 0, k, k_stride, k_dims, n, scores); break;
            case 3: rbee_scores(3, 4, block, 0, k, k_stride, k_dims, n, scores); break;
            default:
                rbee_scores(2, 4, block, 0, k, k_stride, k_dims, n, scores);
                rbee_scores(2, 4, block, 2, k, k_stride, k_dims, n, scores);
        }
        rbee_weigh(a, block, from, n, state, scores, keep);
        switch (block->rows) {
            case 1: rbee_add_values(1, 2, state, keep, v, v_stride, dims, n, scores); break;
            case 2: rbee_add_values(2, 2, state, keep, v, v_stride, dims, n, scores); break;
            case 3: rbee_add_values(3, 2, state, keep, v, v_stride, dims, n, scores); break;
            default: rbee_add_values(4, 2, state, keep, v, v_stride, dims, n, scores);
        }
    }
}
