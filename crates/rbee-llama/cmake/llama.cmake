# Read by the cmake build of llama.cpp after project(), because
# .cargo/config.toml names it in CMAKE_PROJECT_INCLUDE.
include_guard(GLOBAL)

# GCC's ldtilecfg intrinsic tells the compiler that it reads 8 bytes of its 64.
# The rest of llama.cpp's tile configuration is then optimised away, and the
# first AMX instruction ends the process with SIGILL.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    add_compile_options("SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\"")
endif()

# Let a processor attend to few tokens, and multiply matrices of type Q4_1, fast.
set_property(
    GLOBAL PROPERTY rbee_processor_headers
    "${CMAKE_CURRENT_LIST_DIR}/attend_rows.h" "${CMAKE_CURRENT_LIST_DIR}/multiply_q4_1.h")
function(rbee_adjust_processor)
    get_property(headers GLOBAL PROPERTY rbee_processor_headers)
    foreach (header IN LISTS headers)
        if (MSVC)
            list(APPEND options "/FI${header}")
        else()
            list(APPEND options "-include${header}")
        endif()
    endforeach()
    # One target, or one for each kind of processor; all are made in that directory.
    set_property(
        SOURCE "${CMAKE_SOURCE_DIR}/ggml/src/ggml-cpu/ggml-cpu.c" DIRECTORY "${CMAKE_SOURCE_DIR}/ggml/src"
        APPEND PROPERTY COMPILE_OPTIONS ${options})
endfunction()
# The directory does not exist before the end of the top one.
cmake_language(DEFER CALL rbee_adjust_processor)
