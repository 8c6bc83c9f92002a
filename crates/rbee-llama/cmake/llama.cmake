# Read by the cmake build of llama.cpp after project(), because
# .cargo/config.toml names it in CMAKE_PROJECT_INCLUDE.
include_guard(GLOBAL)

# GCC's ldtilecfg intrinsic tells the compiler that it reads 8 bytes of its 64.
# The rest of llama.cpp's tile configuration is then optimised away, and the
# first AMX instruction ends the process with SIGILL.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    add_compile_options("SHELL:-include \"${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h\"")
endif()

# Lets one context attend to prompts in tiles and decode in the plain way.
set_property(GLOBAL PROPERTY rbee_values_in_rows "${CMAKE_CURRENT_LIST_DIR}/values_in_rows.h")
function(rbee_adjust_graphs)
    get_property(header GLOBAL PROPERTY rbee_values_in_rows)
    if (MSVC)
        set(option "/FI${header}")
    else()
        set(option "-include${header}")
    endif()
    set_property(
        SOURCE "${CMAKE_SOURCE_DIR}/src/llama-graph.cpp" TARGET_DIRECTORY llama
        APPEND PROPERTY COMPILE_OPTIONS "${option}")
endfunction()
# The target does not exist before the end of the top directory.
cmake_language(DEFER CALL rbee_adjust_graphs)
