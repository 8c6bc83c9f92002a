# Read by the cmake build of llama.cpp after project(), because
# .cargo/config.toml names it in CMAKE_PROJECT_INCLUDE.
include_guard(GLOBAL)

# GCC's ldtilecfg intrinsic tells the compiler that it reads 8 bytes of its 64.
# The rest of llama.cpp's tile configuration is then optimised away, and the
# first AMX instruction ends the process with SIGILL.
if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    add_compile_options(-include "${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h")
endif()
