#!/usr/bin/env bash
# Runs a command on the stand-in: kernels/emulator/run.sh OUT ARCH COMMAND... (OUT as build.sh made it).
# Faults and other settings of the stand-in come from the environment, see device.h.
set -euo pipefail
out=$(realpath "${1:?where build.sh put it}")
arch=${2:?architecture, such as gfx1100}
shift 2
export LD_LIBRARY_PATH="$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ROCMFORGE_EMULATOR_ARCH=$arch ROCMFORGE_KFD_TOPOLOGY="$out/topology/$arch" ROCMFORGE_REQUIRE_GPU=1
if [ -e "$out/libclang_rt.asan.so" ]; then
  # The sanitizer must come before everything else. Rust keeps some memory to the end on purpose.
  export LD_PRELOAD="$out/libclang_rt.asan.so" ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}"
fi
exec "$@"
