# Read by the cmake build of llama.cpp after project(), because
# .cargo/config.toml names it in CMAKE_PROJECT_INCLUDE.
include_guard(GLOBAL)

# GCC's ldtilecfg intrinsic tells the compiler that it reads 8 bytes of its 64.
# The rest of llama.cpp's tile configuration is then optimised away, and the
# first AMX instruction ends the process with SIGILL.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    add_compile_options("SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\"")
endif()

# Compiles a source with headers of this directory in front of it. The directory
# that makes its target does not exist before the end of the top one.
set_property(GLOBAL PROPERTY rbee_headers "${CMAKE_CURRENT_LIST_DIR}")
function(rbee_put_in_front source directory)
    get_property(headers GLOBAL PROPERTY rbee_headers)
    foreach (name IN LISTS ARGN)
        if (MSVC)
            list(APPEND options "/FI${headers}/${name}")
        else()
            list(APPEND options "-include${headers}/${name}")
        endif()
    endforeach()
    set_property(
        SOURCE "${CMAKE_SOURCE_DIR}/${source}" DIRECTORY "${CMAKE_SOURCE_DIR}/${directory}"
        APPEND PROPERTY COMPILE_OPTIONS ${options})
endfunction()

# Let a processor attend to few tokens, and multiply matrices of type Q4_1,
# fast. One target, or one for each kind of processor; all are made there.
cmake_language(
    DEFER CALL rbee_put_in_front ggml/src/ggml-cpu/ggml-cpu.c ggml/src
    attend_rows.h multiply_q4_1.h)

# Keep what a request says out of standard error.
cmake_language(
    DEFER CALL rbee_put_in_front common/json-schema-to-grammar.cpp common
    quiet_schemas.h)
