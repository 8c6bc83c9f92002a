// Put in front of ggml-cpu.c by llama.cmake.
//
// On a processor, llama.cpp's flash attention has a fast way for tiles of 64
// queries of one sequence. Fewer, which is what decoding brings, it computes one
// query and one key after the other, with an exponential function for each, and
// reads keys and values again for every head. Here, rows (a query of one head)
// that share keys and values are computed together, a block of keys at a time.
//
// A row is computed in the same order whatever stands beside it in the batch.
#pragma once

#if defined(__GNUC__) && ((defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)) || defined(__aarch64__))

#include "attend_block.h"

// Queries of one sequence from which llama.cpp has its tiles.
#define RBEE_TILE GGML_FA_TILE_Q
// Keys whose values are summed up apart, so that threads can share a row.
#define RBEE_PART 256

// Adds what a row comes to over further keys to what it came to before.
static void rbee_merge(float * most, float * sum, float * values, float part_most, float part_sum,
                       const float * part_values, int64_t dims) {
    if (part_sum == 0.0f) {
        return;
    }
    const float now = MAX(*most, part_most);
    const float keep = expf(*most - now);
    const float take = expf(part_most - now);
    *most = now;
    *sum = *sum * keep + part_sum * take;
    for (int64_t d = 0; d < dims; d++) {
        values[d] = values[d] * keep + part_values[d] * take;
    }
}

// What a row begins with: the sink of its head, which weighs and has no values.
static void rbee_begin(const struct rbee_attention * a, int64_t head, float * most, float * sum) {
    *most = a->sinks ? ((const float *) a->sinks->data)[head] : -INFINITY;
    *sum = a->sinks ? 1.0f : 0.0f;
}

static void rbee_write(const struct rbee_attention * a, const struct rbee_block * block, int r, float sum,
                       const float * values) {
    const struct ggml_tensor * to = a->to;
    float * out = (float *) ((char *) to->data + block->head[r] * to->nb[1] + block->query[r] * to->nb[2] +
                             block->stream * to->nb[3]);
    const float share = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int64_t d = 0; d < to->ne[0]; d++) {
        out[d] = values[d] * share;
    }
}

static float rbee_slope(const struct rbee_attention * a, int64_t head) {
    if (a->max_bias <= 0.0f) {
        return 1.0f;
    }
    const int64_t heads = (int64_t) 1 << (int) floor(log2((double) a->q->ne[2]));
    return head < heads ? powf(powf(2.0f, -a->max_bias / heads), head + 1) :
                          powf(powf(2.0f, -a->max_bias / 2.0f / heads), 2 * (head - heads) + 1);
}

static void rbee_find_block(const struct rbee_attention * a, int64_t index, struct rbee_block * block) {
    const int64_t rows = a->heads * a->q->ne[1];
    const int64_t place = index % a->blocks;
    const int64_t first = rows * place / a->blocks;
    block->rows = (int) (rows * (place + 1) / a->blocks - first);
    block->kv_head = index / a->blocks % a->k->ne[2];
    block->stream = index / a->blocks / a->k->ne[2];
    for (int r = 0; r < block->rows; r++) {
        const int64_t query = (first + r) / a->heads;
        const int64_t head = block->kv_head * a->heads + (first + r) % a->heads;
        block->query[r] = query;
        block->head[r] = head;
        block->slope[r] = rbee_slope(a, head);
        block->mask[r] = (const ggml_fp16_t *) ((const char *) a->mask->data + query * a->mask->nb[1] +
                                                block->stream % a->mask->ne[3] * a->mask->nb[3]);
        const float * q = (const float *) ((const char *) a->q->data + query * a->q->nb[1] + head * a->q->nb[2] +
                                           block->stream * a->q->nb[3]);
        for (int64_t d = 0; d < a->q->ne[0]; d++) {
            block->q[r][d] = q[d] * a->scale;
        }
    }
}

static bool rbee_attends(const struct ggml_compute_params * params, struct ggml_tensor * to,
                         struct rbee_attention * a) {
    float scale, max_bias, softcap;
    memcpy(&scale, (float *) to->op_params + 0, sizeof(float));
    memcpy(&max_bias, (float *) to->op_params + 1, sizeof(float));
    memcpy(&softcap, (float *) to->op_params + 2, sizeof(float));
    const struct ggml_tensor * q = to->src[0];
    const struct ggml_tensor * k = to->src[1];
    const struct ggml_tensor * v = to->src[2];
    const struct ggml_tensor * mask = to->src[3];
    const bool is_few = !params->use_ref && q->ne[1] < RBEE_TILE;
    const bool has_types = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 &&
                           mask != NULL && mask->type == GGML_TYPE_F16;
    const bool has_sizes = k->ne[0] % RBEE_LANES == 0 && v->ne[0] % (2 * RBEE_LANES) == 0 &&
                           k->ne[0] <= RBEE_DIMS_MAX && v->ne[0] <= RBEE_DIMS_MAX && k->ne[1] % RBEE_LANES == 0 &&
                           q->ne[2] % k->ne[2] == 0 && v->ne[2] == k->ne[2] && q->ne[3] == k->ne[3] &&
                           q->ne[3] == v->ne[3];
    const bool is_dense = q->nb[0] == sizeof(float) && k->nb[0] == sizeof(ggml_fp16_t) &&
                          v->nb[0] == sizeof(ggml_fp16_t);
    if (!is_few || !has_types || !has_sizes || !is_dense || mask->ne[2] != 1) {
        return false;
    }
    const int64_t heads = q->ne[2] / k->ne[2];
    const int64_t blocks = (heads * q->ne[1] + RBEE_ROWS - 1) / RBEE_ROWS;
    scale = softcap == 0.0f ? scale : scale / softcap;
    *a = (struct rbee_attention) { q, k, v, mask, to->src[4], to, scale, softcap, max_bias, heads, blocks };
    return true;
}

// Whole rows for each thread.
static void rbee_attend_apart(const struct ggml_compute_params * params, const struct rbee_attention * a,
                              int64_t blocks) {
    const int64_t keys = a->k->ne[1];
    const int64_t dims = a->v->ne[0];
    struct rbee_block block;
    struct rbee_state part;
    struct rbee_state whole;
    for (int64_t index = params->ith; index < blocks; index += params->nth) {
        rbee_find_block(a, index, &block);
        for (int r = 0; r < block.rows; r++) {
            rbee_begin(a, block.head[r], &whole.most[r], &whole.sum[r]);
            memset(whole.values[r], 0, dims * sizeof(float));
        }
        for (int64_t from = 0; from < keys; from += RBEE_PART) {
            rbee_attend(a, &block, from, MIN(from + RBEE_PART, keys), &part);
            for (int r = 0; r < block.rows; r++) {
                rbee_merge(&whole.most[r], &whole.sum[r], whole.values[r], part.most[r], part.sum[r], part.values[r],
                           dims);
            }
        }
        for (int r = 0; r < block.rows; r++) {
            rbee_write(a, &block, r, whole.sum[r], whole.values[r]);
        }
    }
}

// Parts of rows for each thread, which are merged at the end.
static void rbee_attend_shared(const struct ggml_compute_params * params, const struct rbee_attention * a,
                               int64_t blocks, int64_t parts) {
    const int64_t keys = a->k->ne[1];
    const int64_t dims = a->v->ne[0];
    const int64_t size = dims + 2;
    float * states = (float *) params->wdata;
    struct rbee_block block;
    struct rbee_state part;
    for (int64_t item = params->ith; item < blocks * parts; item += params->nth) {
        const int64_t from = item / blocks * RBEE_PART;
        rbee_find_block(a, item % blocks, &block);
        rbee_attend(a, &block, from, MIN(from + RBEE_PART, keys), &part);
        for (int r = 0; r < block.rows; r++) {
            float * state = states + (item * RBEE_ROWS + r) * size;
            state[0] = part.most[r];
            state[1] = part.sum[r];
            memcpy(state + 2, part.values[r], dims * sizeof(float));
        }
    }
    ggml_barrier(params->threadpool);
    for (int64_t index = params->ith; index < blocks; index += params->nth) {
        rbee_find_block(a, index, &block);
        for (int r = 0; r < block.rows; r++) {
            float most, sum;
            float values[RBEE_DIMS_MAX] = { 0 };
            rbee_begin(a, block.head[r], &most, &sum);
            for (int64_t p = 0; p < parts; p++) {
                const float * state = states + ((p * blocks + index) * RBEE_ROWS + r) * size;
                rbee_merge(&most, &sum, values, state[0], state[1], state + 2, dims);
            }
            rbee_write(a, &block, r, sum, values);
        }
    }
}

static void rbee_flash_attn_ext(const struct ggml_compute_params * params, struct ggml_tensor * to) {
    struct rbee_attention a;
    if (!rbee_attends(params, to, &a)) {
        ggml_compute_forward_flash_attn_ext(params, to);
        return;
    }
    const int64_t blocks = a.blocks * a.k->ne[2] * a.k->ne[3];
    const int64_t parts = (a.k->ne[1] + RBEE_PART - 1) / RBEE_PART;
    const size_t states = blocks * parts * RBEE_ROWS * (a.v->ne[0] + 2) * sizeof(float);
    if (parts > 1 && blocks < 4 * params->nth && states <= params->wsize) {
        rbee_attend_shared(params, &a, blocks, parts);
    } else {
        rbee_attend_apart(params, &a, blocks);
    }
}

#define ggml_compute_forward_flash_attn_ext rbee_flash_attn_ext

#endif
