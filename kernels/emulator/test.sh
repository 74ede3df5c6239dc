#!/usr/bin/env bash
# Everything about GPUs that needs none: checks every code object, then runs the kernel tests and the golden models on
# the stand-in, with waves of 32 and 64, and the kernel tests once more under AddressSanitizer and UBSan.
# Needs clang 19 with lld, LLVM's tools and the sanitizers' runtime (Debian: clang-19 lld-19 llvm-19
# libclang-rt-19-dev).
set -euo pipefail
cd "$(dirname "$0")/../.."
standins=${CARGO_TARGET_DIR:-$PWD/target}/hip-stand-in

# The stand-in serves as HIP to build against; kernels for one architecture of each wave size are enough to run on it.
export HIP_PATH=$standins/plain ROCMFORGE_GPU_TARGETS=gfx1100,gfx942

# Stand-in, architecture, then what to test.
on() {
  cargo test --locked --quiet \
    --config "target.'cfg(unix)'.runner = ['$PWD/kernels/emulator/run.sh', '$standins/$1', '$2']" "${@:3}"
}

kernel_tests=(-p rocmforge-kernels --features hip --test hip_rows --test hip_attention)

kernels/device/code_objects.py
kernels/emulator/build.sh "$standins/plain" plain
kernels/emulator/build.sh "$standins/sanitize" sanitize
cargo clippy --locked --quiet -p rocmforge-kernels -p rocmforge-worker \
  --features rocmforge-kernels/hip,rocmforge-worker/hip --all-targets -- -D warnings
for arch in gfx1100 gfx942; do
  on plain "$arch" "${kernel_tests[@]}" --test hip_matmul --test hip_device
done
on plain gfx1100 -p rocmforge-worker --features hip --test golden_hip
on sanitize gfx942 "${kernel_tests[@]}"
on sanitize gfx1100 -p rocmforge-kernels --features hip --test hip_matmul -- odd_shapes
