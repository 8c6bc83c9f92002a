// The C face of the shim: everything rbee-llama needs from llama.cpp that can
// throw, or that only exists in C++. No exception leaves a function declared
// here. A function that fails stores a message in *error, allocated with
// malloc; the caller frees it, and every other returned string, with
// rbee_string_free.
#pragma once

#include "ggml-backend.h"
#include "llama.h"

#include <cstddef>
#include <cstdint>

// The return value of a call that ended in a C++ exception.
#define RBEE_EXCEPTION INT32_MIN

// A parsed chat template.
struct rbee_chat_template;

// Reads the text that a model wrote under a chat template.
struct rbee_reply_parser;

// A grammar and how far a text has come in it.
struct rbee_grammar;

extern "C" {

// Bytes in one type of buffer.
struct rbee_memory_part {
    ggml_backend_dev_t device; // null for memory of the processor
    size_t             weights;
    size_t             context;
    size_t             compute;
};

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
// ChatML when the model has none. The model may be null when a source is
// given. Returns null on failure.
rbee_chat_template * rbee_chat_template_new(
    const llama_model * model,
    const char        * override_source,
    char             ** error);

void rbee_chat_template_free(rbee_chat_template * tmpl);

// True when the template came from the model or from the caller; false for the
// ChatML fallback.
bool rbee_chat_template_is_explicit(const rbee_chat_template * tmpl);

// {"tools", "tool_calls", "parallel", "special", "thinking"}, each a bool:
// whether the template describes tools, shows calls of them, shows several at
// once, whether llama.cpp has a handler of its own for it, and whether its
// model may think. Returns null on failure.
char * rbee_chat_template_traits(const rbee_chat_template * tmpl, char ** error);

// Renders a conversation in OpenAI's shape: {"messages", "tools",
// "tool_choice", "parallel_tool_calls", "enable_thinking", "arguments",
// "add_generation_prompt", "text_only"}; "arguments" holds further variables of
// the template, and "text_only" leaves away all that serves to read the reply.
// Returns {"prompt", "stops", "generation_prompt", "parser", "format",
// "grammar", "lazy", "triggers", "patterns", "preserved", "thinking_start",
// "thinking_end"}, or null on failure.
char * rbee_chat_template_render(
    const rbee_chat_template * tmpl,
    const char               * request_json,
    char                    ** error);

// A parser from what rendering returned. Returns null on failure.
rbee_reply_parser * rbee_reply_parser_new(
    const char  * parser,
    int32_t       format,
    const char  * generation_prompt,
    char       ** error);

void rbee_reply_parser_free(rbee_reply_parser * parser);

// Reads a whole or a begun reply into {"content", "reasoning_content",
// "tool_calls": [{"name", "arguments", "id"}]}. Returns null when the text is
// none that the template's model should write, however it may go on.
char * rbee_reply_parser_parse(
    const rbee_reply_parser * parser,
    const char              * text,
    size_t                    text_len,
    char                   ** error);

// A GBNF grammar with a rule `root`. With a trigger it allows everything until
// the text holds the trigger, and that is where it begins. Returns null on
// failure.
rbee_grammar * rbee_grammar_new(
    const llama_vocab * vocab,
    const char        * source,
    const char        * trigger,
    char             ** error);

// Copies a grammar with how far the text has come in it. Returns null on failure.
rbee_grammar * rbee_grammar_clone(const rbee_grammar * grammar, char ** error);

void rbee_grammar_free(rbee_grammar * grammar);

// Keeps of the n_ids tokens those that may come next and returns how many they
// are; -1 on failure.
int32_t rbee_grammar_filter(
    rbee_grammar * grammar,
    llama_token  * ids,
    int32_t        n_ids,
    char        ** error);

// Whether a token may come next.
bool rbee_grammar_allows(rbee_grammar * grammar, llama_token token);

// Goes on by a token that may come next. False when it may not, and for good
// once that has happened.
bool rbee_grammar_accept(rbee_grammar * grammar, llama_token token);

// Fills in what a context and its model take, by type of buffer, and returns
// how many types there are; only the first n_parts_max are filled in.
int32_t rbee_memory_use(
    const llama_context     * ctx,
    struct rbee_memory_part * parts,
    int32_t                   n_parts_max,
    char                   ** error);

}
