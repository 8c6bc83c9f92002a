// How much memory a context and its model take, on each device.
#include "guard.h"
#include "shim.h"

// Only the staging header of llama.cpp has the sizes by buffer type.
#include "../src/llama-ext.h"

int32_t rbee_memory_use(
        const llama_context     * ctx,
        struct rbee_memory_part * parts,
        int32_t                   n_parts_max,
        char                   ** error) {
    return rbee::guarded<int32_t>(error, INT32_MIN, [&]() -> int32_t {
        int32_t n_parts = 0;
        for (const auto & [type, sizes] : llama_get_memory_breakdown(ctx)) {
            if (n_parts < n_parts_max) {
                // Memory that the processor can read is in its own, whoever asked for it.
                const bool host = ggml_backend_buft_is_host(type);
                parts[n_parts]  = {
                    host ? nullptr : ggml_backend_buft_get_device(type),
                    sizes.model,
                    sizes.context,
                    sizes.compute,
                };
            }
            n_parts++;
        }
        return n_parts;
    });
}
