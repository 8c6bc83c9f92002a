// Put in front of llama-graph.cpp by llama.cmake.
//
// A context for plain attention stores its values by columns, and llama.cpp's
// flash attention reads them by rows. Here they are put in rows before it reads
// them, so that a context can take the faster of both ways for each batch.
#pragma once

#include "ggml.h"

static inline struct ggml_tensor * rbee_in_rows(struct ggml_context * ctx, struct ggml_tensor * values) {
    return values->nb[0] == ggml_type_size(values->type) ? values : ggml_cont(ctx, values);
}

#define ggml_flash_attn_ext(ctx, q, k, v, ...) \
    ggml_flash_attn_ext(ctx, q, k, rbee_in_rows(ctx, v), __VA_ARGS__)

// The shim refers to it, so that a build without this header does not link.
extern "C" {
extern const int rbee_values_in_rows;
const int rbee_values_in_rows = 1;
}
