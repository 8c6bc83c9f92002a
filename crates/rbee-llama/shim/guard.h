// Turns C++ exceptions into messages at the border to Rust.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

namespace rbee {

// Copies text into memory that rbee_string_free releases; null when there is none left.
inline char * copy_string(const std::string & text) noexcept {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy != nullptr) {
        std::memcpy(copy, text.c_str(), text.size() + 1);
    }
    return copy;
}

inline void set_error(char ** error, const char * message) noexcept {
    if (error != nullptr) {
        *error = strdup(message);
    }
}

// Runs body and returns its result, or failure after storing what it threw.
template <typename Result, typename Body>
Result guarded(char ** error, Result failure, Body && body) noexcept {
    try {
        return body();
    } catch (const std::exception & caught) {
        set_error(error, caught.what());
    } catch (...) {
        set_error(error, "unknown C++ exception");
    }
    return failure;
}

}
