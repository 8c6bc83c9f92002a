# Read by the cmake build of llama.cpp after project(), because
# .cargo/config.toml names it in CMAKE_PROJECT_INCLUDE.
include_guard(GLOBAL)

# GCC's ldtilecfg intrinsic tells the compiler that it reads 8 bytes of its 64.
# The rest of llama.cpp's tile configuration is then optimised away, and the
# first AMX instruction ends the process with SIGILL.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    add_compile_options("SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\"")
endif()

# Lets a processor attend to few tokens fast.
set_property(GLOBAL PROPERTY rbee_attend_rows "${CMAKE_CURRENT_LIST_DIR}/attend_rows.h")
function(rbee_adjust_attention)
    get_property(header GLOBAL PROPERTY rbee_attend_rows)
    if (MSVC)
        set(option "/FI${header}")
    else()
        set(option "-include${header}")
    endif()
    # One target, or one for each kind of processor; all are made in that directory.
    set_property(
        SOURCE "${CMAKE_SOURCE_DIR}/ggml/src/ggml-cpu/ggml-cpu.c" DIRECTORY "${CMAKE_SOURCE_DIR}/ggml/src"
        APPEND PROPERTY COMPILE_OPTIONS "${option}")
endfunction()
# The directory does not exist before the end of the top one.
cmake_language(DEFER CALL rbee_adjust_attention)
