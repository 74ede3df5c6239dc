#!/usr/bin/env bash
# Builds the stand-in for the HIP runtime: kernels/emulator/build.sh OUT [plain|sanitize]
# OUT then works as HIP_PATH (OUT/include, OUT/lib). Needs clang 19 or newer; CLANG names another one.
set -euo pipefail
out=$(realpath -m "${1:?where to put it}")
cd "$(dirname "$0")"
kind=${2:-plain}
clang=${CLANG:-clang++-19}

flags=(-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Werror)
# Fused multiply-adds and half floats in hardware; without them the C library computes the same bits, slowly.
case $(uname -m) in x86_64) flags+=(-march=x86-64-v3) ;; esac
link=()
case $kind in
  plain) ;;
  sanitize)
    flags+=(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -shared-libsan)
    link+=(-fsanitize=address,undefined -shared-libsan)
    ;;
  *) echo "kind is $kind, not plain or sanitize" >&2; exit 2 ;;
esac

mkdir -p "$out/lib" "$out/include/hip" "$out/obj"
cp include/hip/hip_runtime_api.h "$out/include/hip/"
compile() { "$clang" "${flags[@]}" "$@"; }
objects=()
for source in fiber block device runtime; do
  compile -c "$source.cpp" -o "$out/obj/$source.o"
  objects+=("$out/obj/$source.o")
done
for wave in 32 64; do
  compile -DRF_WAVE=$wave -x c++ -c ../device/all.hip -o "$out/obj/kernels$wave.o"
  objects+=("$out/obj/kernels$wave.o")
done
"$clang" -shared -o "$out/lib/libamdhip64.so" "${objects[@]}" "${link[@]}" -lpthread
# For run.sh, which must load it first.
if [ "$kind" = sanitize ]; then
  cp "$("$clang" -print-file-name=libclang_rt.asan-"$(uname -m)".so)" "$out/libclang_rt.asan.so"
fi
# The names that binaries linked with ROCm 5, 6 and 7 ask for.
for version in 5 6 7; do ln -sf libamdhip64.so "$out/lib/libamdhip64.so.$version"; done
# What the kernel driver would list, so that the architecture is found where it is on a real host.
for arch in gfx906:90006 gfx90a:90010 gfx942:90402 gfx1030:100300 gfx1100:110000 gfx1101:110001 gfx1102:110002 \
  gfx1151:110501 gfx1200:120000 gfx1201:120001; do
  for device in 0 1; do
    node="$out/topology/${arch%:*}/$((device + 1))"
    mkdir -p "$node"
    printf 'simd_count 192\nsimd_per_cu 2\nwave_front_size 32\ngfx_target_version %s\nlocation_id %s\ndomain 0\n' \
      "${arch#*:}" "$(((device + 3) << 8))" >"$node/properties"
  done
done
