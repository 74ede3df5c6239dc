#!/usr/bin/env python3
"""Runs kernels instruction by instruction on an emulator of AMD's ISA and compares with the HIP stand-in, bit by bit.

    ISA_TOOLS=<folder with run_hsaco.py> TINYGRAD_SRC=<checkout> kernels/device/isa_agree.py STANDIN ARCH

The stand-in (emulator/build.sh) runs the same sources compiled for the host and is itself held to the CPU backend's
bits by kernels/tests/hip_*.rs; so what agrees here agrees with the CPU backend. For development, not for CI: the
emulator is in no package registry. Needs numpy.
"""

import ctypes
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

standin, arch = Path(sys.argv[1]), sys.argv[2]
os.environ["ROCMFORGE_EMULATOR_ARCH"] = arch
sys.path.append(os.environ["ISA_TOOLS"])

import numpy as np  # noqa: E402
import run_hsaco  # noqa: E402

from code_objects import CLANG, FLAGS, SUFFIX  # noqa: E402

hip = ctypes.CDLL(str(standin / "lib/libamdhip64.so"))
random = np.random.default_rng(5)
doubtful = set()


def call(name, *arguments):
    status = getattr(hip, name)(*arguments)
    if status:
        raise RuntimeError(f"{name} failed with {status}")


def on_standin(image, kernel, grid, fields):
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("hipModuleLoadData", ctypes.byref(module), image)
    call("hipModuleGetFunction", ctypes.byref(function), module, kernel.encode())
    packed, copies = b"", []
    for field in fields:
        if isinstance(field, np.ndarray):
            pointer = ctypes.c_void_p()
            call("hipMalloc", ctypes.byref(pointer), ctypes.c_size_t(field.nbytes))
            call("hipMemcpy", pointer, ctypes.c_void_p(field.ctypes.data), ctypes.c_size_t(field.nbytes), 1)
            copies.append((pointer, field.copy()))
            packed += struct.pack("<Q", pointer.value)
        else:
            packed += scalar(field)
    parameters = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.create_string_buffer(packed), ctypes.c_void_p))
    call("hipModuleLaunchKernel", function, *grid, 1, 256, 1, 1, 0, None, parameters, None)
    call("hipDeviceSynchronize")
    for pointer, copy in copies:
        call("hipMemcpy", ctypes.c_void_p(copy.ctypes.data), pointer, ctypes.c_size_t(copy.nbytes), 2)
    return [copy for _, copy in copies]


def scalar(field):
    if field is None:
        return bytes(8)
    return struct.pack("<f", field) if isinstance(field, float) else struct.pack("<I", field)


class SplitArguments(run_hsaco.CodeObject):
    """The one argument struct as a list of its fields, which the emulator's launcher takes arrays for."""

    fields = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for kernel in self.kernels.values():
            at, split = 0, []
            for field in SplitArguments.fields:
                size = 8 if field is None or isinstance(field, np.ndarray) else 4
                kind = "global_buffer" if size == 8 else "by_value"
                split.append({".offset": at, ".size": size, ".value_kind": kind})
                at += size
            hidden = [a for a in kernel.args if a[".value_kind"].startswith("hidden_")]
            kernel.args[:] = split + hidden


run_hsaco.CodeObject = SplitArguments


def beyond_emulator(path):
    """Kernels with an instruction that the emulator reads wrongly on GCN and CDNA: a half from a register past v127,
    which it takes for the upper half of a lower one, as it would be on RDNA 3."""
    if not arch.startswith("gfx9"):
        return set()
    text = subprocess.run(["llvm-objdump" + SUFFIX, "-d", "--no-show-raw-insn", path], check=True, capture_output=True,
                          text=True).stdout
    kernels, name = set(), ""
    for line in text.splitlines():
        found = re.match(r"[0-9a-f]+ <(\w+)>:", line)
        name = found[1] if found else name
        if re.search(r"v_cvt_f32_f16_e32 v\d+, v(12[89]|1[3-9]\d|2\d\d)\b", line):
            kernels.add(name)
    return kernels


def agree(image, kernel, grid, fields):
    expected = on_standin(image, kernel, grid, fields)
    SplitArguments.fields = fields
    arrays = [field.copy() if isinstance(field, np.ndarray) else field for field in fields]
    result = run_hsaco.launch(image, kernel, (*grid, 1), (256, 1, 1), arrays, arch)
    for index, (actual, wanted) in enumerate(zip(result.arrays, expected, strict=True)):
        different = np.flatnonzero(actual.view(np.uint8) != wanted.view(np.uint8))
        if len(different) and kernel in doubtful:
            print(f"{arch} {kernel}: NOT PROVED, it has instructions that the emulator reads wrongly", flush=True)
            return
        if len(different):
            raise SystemExit(f"{arch} {kernel}: array {index} differs in {len(different)} bytes, from {different[0]} on")
    print(f"{arch} {kernel}: agrees", flush=True)


def floats(*shape):
    return random.standard_normal(shape, dtype=np.float32)


def zeros(kind, *shape):
    return np.zeros(shape, kind)


def quantized(image, x, block):
    rows, cols = x.shape
    codes, scales, sums = zeros(np.int8, rows, cols), zeros(np.float32, rows, cols // block), zeros(np.uint32, rows, cols // 32)
    out = [codes, scales, sums, None, None, None] if block == 32 else [None, None, None, codes, scales, sums]
    fields = [x, *out, cols, rows]
    agree(image, "quantize_rows", (rows, -(-cols // 1024)), fields)
    return on_standin(image, "quantize_rows", (rows, -(-cols // 1024)), fields)[1:]


def products(image):
    """Records are random bytes: any bits are codes, and halves below 2^-2 come of clearing the upper exponent."""
    outputs, cols = 70, 768
    units = cols // 32
    sizes = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q4_k": 18, "q5_k": 22, "q6_k": 26}
    heads = {"q8_0": 2, "q4_0": 2, "q4_1": 4, "q5_0": 2, "q5_1": 4, "q4_k": 4, "q5_k": 4, "q6_k": 2}
    for name, unit_bytes in sizes.items():
        per_block = 8 if name.endswith("k") else 1
        body = units * (unit_bytes - (heads[name] if per_block == 1 else 0))
        used = body + units // per_block * heads[name]
        weights = random.integers(0, 256, (outputs, -(-used // 16) * 16), dtype=np.uint8)
        weights[:, body + 1:used:2] &= 0xAF
        for tokens, kernel in [(1, "vector_{}_1"), (3, "vector_{}_4"), (8, "vector_{}_8"), (66, "tile_{}")]:
            codes, scales, sums = quantized(image, floats(tokens, cols), 256 if per_block == 8 else 32)
            per_group = {"vector_{}_8": 4, "tile_{}": 64}.get(kernel, 8)
            grid = (-(-outputs // per_group), -(-tokens // 64))
            fields = [weights, codes, scales, sums, floats(outputs), floats(tokens, outputs), outputs, units, tokens, 1]
            agree(image, "matmul_" + kernel.format(name), grid, fields)


def rows(image):
    x, gain, addend, out = floats(3, 1100), floats(1100), floats(3, 1100), zeros(np.float32, 3, 1100)
    agree(image, "rms_norm", (3, 1), [x, addend, gain, out, *[None] * 6, 1100, 3, 1e-5, 0])
    agree(image, "gated_activation", (3, 2), [x * 10, addend, out, *[None] * 6, 1100, 3, 0, 0])


def attention(image):
    """A prompt of 20 tokens after 600 cached ones, in shuffled blocks: two partitions."""
    heads, kv_heads, dim, first, count = 4, 2, 64, 600, 20
    blocks = -(-(first + count) // 16)
    table = random.permutation(blocks).astype(np.uint32)
    cache = (floats(blocks, kv_heads, 2 * dim * 16) * 0.5).astype(np.float16)
    slots = np.array([[table[p // 16], p % 16] for p in range(first, first + count)], np.uint32)
    angles = floats(count, dim // 2)
    q, k, v = floats(count, heads * dim), floats(count, kv_heads * dim), floats(count, kv_heads * dim)
    fields = [q, k, v, np.cos(angles), np.sin(angles), slots, cache, count, heads, kv_heads, dim, dim, 1]
    agree(image, "rope_and_store_kv_f16", (count, heads + kv_heads), fields)
    q, cache = (on_standin(image, "rope_and_store_kv_f16", (count, heads + kv_heads), fields)[i] for i in (0, 6))
    for pairs in (4, 16):
        tiles, units = [], []
        for start in range(0, count * 2, pairs):
            here = min(pairs, count * 2 - start)
            tiles.append([0, first, start, here, 0, len(units), 2, 0])
            units += [[len(tiles) - 1, 0], [len(tiles) - 1, 1]]
        tiles, units = np.array(tiles, np.uint32), np.array(units, np.uint32)
        records, out = zeros(np.float32, len(units), kv_heads, pairs, dim + 2), zeros(np.float32, count, heads * dim)
        fields = [q, cache, table, tiles, units, records, out, heads, kv_heads, dim, 0, 0.125, 0.0]
        name = f"paged_attention_p{pairs}_d128_f16"
        agree(image, name, (len(units), kv_heads), fields)
        fields[5] = on_standin(image, name, (len(units), kv_heads), fields)[5]
        agree(image, f"merge_attention_p{pairs}", (len(tiles), kv_heads), fields)


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kernels.hsaco"
        source = Path(__file__).with_name("all.hip")
        # The emulator knows no sub-dword selections; without them the compiler uses one instruction more.
        flags = [*FLAGS, "-mllvm", "-amdgpu-sdwa-peephole=0", f"--offload-arch={arch}"]
        subprocess.run([CLANG, *flags, str(source), "-o", path], check=True)
        image = Path(path).read_bytes()
        doubtful.update(beyond_emulator(path))
    rows(image)
    attention(image)
    products(image)


if __name__ == "__main__":
    main()
