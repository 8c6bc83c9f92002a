// A grammar and how far a text has come in it. llama.cpp ends the process when
// a grammar goes on after a token that it does not allow, so nothing reaches it
// here before it has been asked.
#include "guard.h"
#include "shim.h"

#include "common.h"

#include <cmath>
#include <memory>
#include <vector>

struct rbee_grammar {
    llama_sampler * sampler = nullptr;
    // Set when nothing more may be asked of the sampler.
    bool broken = false;
    // Reused between filterings.
    std::vector<llama_token_data> candidates;

    ~rbee_grammar() {
        if (sampler != nullptr) {
            llama_sampler_free(sampler);
        }
    }
};

namespace {

bool may_come(rbee_grammar & grammar, llama_token token) {
    if (grammar.broken) {
        return false;
    }
    llama_token_data       candidate  = { token, 1.0f, 0.0f };
    llama_token_data_array candidates = { &candidate, 1, -1, false };
    llama_sampler_apply(grammar.sampler, &candidates);
    return !std::isinf(candidate.logit);
}

}

rbee_grammar * rbee_grammar_new(
        const llama_vocab * vocab,
        const char        * source,
        const char        * trigger,
        char             ** error) {
    return rbee::guarded<rbee_grammar *>(error, nullptr, [&]() -> rbee_grammar * {
        // llama.cpp takes an empty source for one that allows everything.
        if (*source == '\0') {
            rbee::set_error(error, "the grammar is empty");
            return nullptr;
        }
        auto grammar = std::make_unique<rbee_grammar>();
        if (trigger == nullptr) {
            grammar->sampler = llama_sampler_init_grammar(vocab, source, "root");
        } else {
            const std::string pattern  = regex_escape(trigger);
            const char *      patterns = pattern.c_str();
            grammar->sampler =
                llama_sampler_init_grammar_lazy_patterns(vocab, source, "root", &patterns, 1, nullptr, 0);
        }
        if (grammar->sampler == nullptr) {
            rbee::set_error(error, "the grammar does not parse");
            return nullptr;
        }
        return grammar.release();
    });
}

rbee_grammar * rbee_grammar_clone(const rbee_grammar * grammar, char ** error) {
    return rbee::guarded<rbee_grammar *>(error, nullptr, [&]() -> rbee_grammar * {
        auto copy = std::make_unique<rbee_grammar>();
        copy->sampler = llama_sampler_clone(grammar->sampler);
        copy->broken  = grammar->broken;
        if (copy->sampler == nullptr) {
            rbee::set_error(error, "the grammar cannot be copied");
            return nullptr;
        }
        return copy.release();
    });
}

void rbee_grammar_free(rbee_grammar * grammar) {
    delete grammar;
}

int32_t rbee_grammar_filter(rbee_grammar * grammar, llama_token * ids, int32_t n_ids, char ** error) {
    return rbee::guarded(error, -1, [&] {
        if (grammar->broken) {
            rbee::set_error(error, "the text has left the grammar");
            return -1;
        }
        auto & candidates = grammar->candidates;
        candidates.resize(n_ids);
        for (int32_t i = 0; i < n_ids; ++i) {
            candidates[i] = { ids[i], 1.0f, 0.0f };
        }
        llama_token_data_array array = { candidates.data(), candidates.size(), -1, false };
        llama_sampler_apply(grammar->sampler, &array);
        int32_t n_kept = 0;
        for (const auto & candidate : candidates) {
            if (!std::isinf(candidate.logit)) {
                ids[n_kept++] = candidate.id;
            }
        }
        return n_kept;
    });
}

bool rbee_grammar_allows(rbee_grammar * grammar, llama_token token) {
    return rbee::guarded(nullptr, false, [&] { return may_come(*grammar, token); });
}

bool rbee_grammar_accept(rbee_grammar * grammar, llama_token token) {
    const bool accepted = rbee::guarded(nullptr, false, [&] {
        if (!may_come(*grammar, token)) {
            return false;
        }
        llama_sampler_accept(grammar->sampler, token);
        return true;
    });
    grammar->broken = grammar->broken || !accepted;
    return accepted;
}
