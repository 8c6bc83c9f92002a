// Guarded forms of the llama.cpp calls that can throw.
#include "guard.h"
#include "shim.h"

#include "log.h"

#include <vector>

void rbee_string_free(char * text) {
    std::free(text);
}

void rbee_common_log_off(void) {
    rbee::guarded(nullptr, 0, [] {
        common_log_pause(common_log_main());
        return 0;
    });
}

int32_t rbee_decode(
        llama_context      * ctx,
        int32_t              n_tokens,
        const llama_token  * tokens,
        const llama_pos    * positions,
        const llama_seq_id * sequences,
        const int8_t       * outputs,
        char              ** error) {
    return rbee::guarded(error, RBEE_EXCEPTION, [&] {
        // llama_batch is an input that is declared mutable; llama_decode copies it.
        auto * sequence = const_cast<llama_seq_id *>(sequences);
        std::vector<int32_t>        n_seq_id(n_tokens, 1);
        std::vector<llama_seq_id *> seq_id(n_tokens);
        for (int32_t i = 0; i < n_tokens; ++i) {
            seq_id[i] = sequence + i;
        }

        llama_batch batch = {};
        batch.n_tokens = n_tokens;
        batch.token    = const_cast<llama_token *>(tokens);
        batch.pos      = const_cast<llama_pos *>(positions);
        batch.n_seq_id = n_seq_id.data();
        batch.seq_id   = seq_id.data();
        batch.logits   = const_cast<int8_t *>(outputs);
        return llama_decode(ctx, batch);
    });
}

int32_t rbee_tokenize(
        const llama_vocab * vocab,
        const char        * text,
        int32_t             text_len,
        llama_token       * tokens,
        int32_t             n_tokens_max,
        bool                add_special,
        bool                parse_special,
        char             ** error) {
    return rbee::guarded(error, RBEE_EXCEPTION, [&] {
        return llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special);
    });
}
