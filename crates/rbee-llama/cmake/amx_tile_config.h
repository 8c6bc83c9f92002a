// Replaces GCC's _tile_loadconfig by one that names all 64 bytes it reads. See
// llama.cmake. Does nothing where the target has no AMX.
#pragma once

#ifdef __AMX_TILE__
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char (*)[64])(config)))
#endif
