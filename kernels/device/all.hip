// Every kernel in one translation unit: what the code object of a target is made of.
#include "embed.hip"
#include "float_matmul.hip"
#include "matmul.hip"
#include "paged_attention.hip"
#include "rope_and_store_kv.hip"
#include "rows.hip"
