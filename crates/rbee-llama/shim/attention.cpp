// Lets a context attend in another way in each batch.
#include "guard.h"
#include "shim.h"

// llama.cpp fixes the way when a context is made; only its own headers show where.
#include "../src/llama-context.h"

// Defined where cmake/values_in_rows.h is in front of llama.cpp's graphs.
extern "C" const int rbee_values_in_rows;

// Has a term in its scores that flash attention leaves out; llama.cpp never uses that for it.
static const std::string PLAIN_ONLY = "grok";

void rbee_attend_in_tiles(llama_context * ctx, bool in_tiles) {
    // The values stay as the context was made to store them: by columns.
    const_cast<llama_cparams &>(ctx->get_cparams()).flash_attn = in_tiles && rbee_values_in_rows != 0;
}

int32_t rbee_plan_tiles(llama_context * ctx, char ** error) {
    return rbee::guarded(error, RBEE_EXCEPTION, [&] {
        char architecture[64] = "";
        llama_model_meta_val_str(llama_get_model(ctx), "general.architecture", architecture, sizeof(architecture));
        if (architecture == PLAIN_ONLY) {
            return 0;
        }
        rbee_attend_in_tiles(ctx, true);
        // There are no adapters to set, but after this the buffers are planned anew.
        llama_set_adapter_cvec(ctx, nullptr, 0, 0, 0, 0);
        ctx->sched_reserve();
        return 1;
    });
}
