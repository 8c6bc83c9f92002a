// The C face of the shim: everything rbee-llama needs from llama.cpp that can
// throw, or that only exists in C++. No exception leaves a function declared
// here. A function that fails stores a message in *error, allocated with
// malloc; the caller frees it, and every other returned string, with
// rbee_string_free.
#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>

// The return value of a call that ended in a C++ exception.
#define RBEE_EXCEPTION INT32_MIN

// A parsed chat template.
struct rbee_chat_template;

extern "C" {

void rbee_string_free(char * text);

// Silences the logger of llama.cpp's `common` library, which would otherwise
// start a thread of its own and write to the terminal.
void rbee_common_log_off(void);

// llama_decode on a batch in which every token belongs to one sequence. All
// arrays hold n_tokens entries.
int32_t rbee_decode(
    llama_context      * ctx,
    int32_t              n_tokens,
    const llama_token  * tokens,
    const llama_pos    * positions,
    const llama_seq_id * sequences,
    const int8_t       * outputs,
    char              ** error);

// llama_tokenize; returns what it returns, or RBEE_EXCEPTION.
int32_t rbee_tokenize(
    const llama_vocab * vocab,
    const char        * text,
    int32_t             text_len,
    llama_token       * tokens,
    int32_t             n_tokens_max,
    bool                add_special,
    bool                parse_special,
    char             ** error);

// Parses override_source, or the model's own template when that is null, or
// ChatML when the model has none. Returns null on failure.
rbee_chat_template * rbee_chat_template_new(
    const llama_model * model,
    const char        * override_source,
    char             ** error);

void rbee_chat_template_free(rbee_chat_template * tmpl);

// True when the template came from the model or from the caller; false for the
// ChatML fallback.
bool rbee_chat_template_is_explicit(const rbee_chat_template * tmpl);

// Renders {"messages": [...], "add_generation_prompt": bool,
// "enable_thinking": bool} to {"prompt": string, "stops": [string]}. Returns
// null on failure.
char * rbee_chat_template_render(
    const rbee_chat_template * tmpl,
    const char               * request_json,
    char                    ** error);

}
