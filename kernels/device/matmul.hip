// The quantized products as kernels: one per weight type and number of token rows.
//
// `matmul_vector_<type>_<n>` takes up to n token rows, grid [outputs / matmul_vector's outputs]; `matmul_tile_<type>`
// any number, grid [outputs / 64, tokens / 64], both rounded up. Argument: MatmulArgs.
#include "matmul_tile.h"
#include "matmul_vector.h"

// Two outputs a thread where registers and shared memory allow: half the reads of token rows.
#define RF_MATMUL(TYPE, name)                                                                             \
  RF_KERNEL(matmul_vector_##name##_1, rf::MatmulArgs, a) { rf::matmul_vector<rf::TYPE, 1, 2>(a); }    \
  RF_EXPORT(matmul_vector_##name##_1, rf::MatmulArgs)                                                     \
  RF_KERNEL(matmul_vector_##name##_2, rf::MatmulArgs, a) { rf::matmul_vector<rf::TYPE, 2, 2>(a); }    \
  RF_EXPORT(matmul_vector_##name##_2, rf::MatmulArgs)                                                     \
  RF_KERNEL(matmul_vector_##name##_4, rf::MatmulArgs, a) { rf::matmul_vector<rf::TYPE, 4, 2>(a); }    \
  RF_EXPORT(matmul_vector_##name##_4, rf::MatmulArgs)                                                     \
  RF_KERNEL(matmul_vector_##name##_8, rf::MatmulArgs, a) { rf::matmul_vector<rf::TYPE, 8, 1>(a); }    \
  RF_EXPORT(matmul_vector_##name##_8, rf::MatmulArgs)                                                     \
  RF_KERNEL(matmul_tile_##name, rf::MatmulArgs, a) { rf::matmul_tile<rf::TYPE>(a); }                    \
  RF_EXPORT(matmul_tile_##name, rf::MatmulArgs)

RF_MATMUL(Q8_0, q8_0)
RF_MATMUL(Q4_0, q4_0)
RF_MATMUL(Q4_1, q4_1)
RF_MATMUL(Q5_0, q5_0)
RF_MATMUL(Q5_1, q5_1)
RF_MATMUL(Q4_K, q4_k)
RF_MATMUL(Q5_K, q5_k)
RF_MATMUL(Q6_K, q6_k)
