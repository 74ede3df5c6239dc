#!/usr/bin/env python3
"""Compiles the kernels for every architecture and checks what came out; prints the table of docs/KERNELS.md.

    kernels/device/code_objects.py [--arch gfx1100,gfx942] [--table]

Fails where a kernel uses scratch memory, spills a register, addresses memory without knowing where it lies (flat), or
lacks the instructions it is meant to have: four-way integer dot products and 16-byte loads in quantized products.
Needs clang 19 with lld and LLVM's tools ($CLANG and $LLVM_SUFFIX name others), and nothing but Python itself.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = "gfx906 gfx90a gfx942 gfx1030 gfx1100 gfx1101 gfx1102 gfx1151 gfx1200 gfx1201".split()
CLANG = os.environ.get("CLANG", "clang++-19")
SUFFIX = os.environ.get("LLVM_SUFFIX", "-19")
# As in build.rs.
FLAGS = ("-x hip --cuda-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -O3 -std=c++20 "
         "-mcode-object-version=5 -ffp-contract=off -Wall -Wextra -Werror").split()
BLOCK_THREADS = 256

# Vector registers of a SIMD for one lane, their granularity, most waves, SIMDs that share 64 KiB of LDS.
# Source: LLVM's AMDGPU usage guide and AMD's ISA documents of the families.
RDNA_LARGE = (1536, 24, 16, 2)
REGISTERS = {
    "gfx906": (256, 4, 10, 4), "gfx90a": (512, 8, 8, 4), "gfx942": (512, 8, 8, 4), "gfx1030": (1024, 16, 16, 2),
    "gfx1100": RDNA_LARGE, "gfx1101": RDNA_LARGE, "gfx1102": (1024, 16, 16, 2), "gfx1151": RDNA_LARGE,
    "gfx1200": RDNA_LARGE, "gfx1201": RDNA_LARGE,
}
LDS_BYTES = 65536

# What a kernel must contain, by its name: instruction pattern and how often at least.
EXPECTED = [
    (r"matmul_(vector|tile)_", r"v_dot4c?_i32_i(u)?8", 8),
    (r"matmul_vector_", r"global_load_(b128|dwordx4)", 3),
    (r"matmul_tile_", r"ds_(load|read)(_2addr(_stride64)?)?_(b128|b64)", 2),
    (r"float_matmul_", r"v_(dual_)?(fma|fmac|pk_fma)_f32", 4),
    (r"paged_attention_", r"v_(dual_)?(fma|fmac|pk_fma)_f32", 16),
    (r"paged_attention_", r"global_load_(b128|dwordx4)", 2),
]
SHOWN = ["matmul_vector_q4_k_1", "matmul_vector_q4_k_8", "matmul_vector_q8_0_1", "matmul_tile_q4_k", "matmul_tile_q8_0",
         "float_matmul_f16_1", "rms_norm", "rope_and_store_kv_f16", "paged_attention_p4_d128_f16",
         "paged_attention_p16_d128_f16", "merge_attention_p4", "gated_activation", "quantize_rows"]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def metadata(path):
    """Kernel name to what its metadata says, from the notes that llvm-readelf prints as YAML."""
    kernels, current = {}, {}
    for line in run("llvm-readelf" + SUFFIX, "--notes", path).splitlines():
        if re.match(r"  - ", line):
            current = {}
        found = re.match(r"(?:  - |    )\.(\w+): +(\S+)", line)
        if found:
            current[found[1]] = int(found[2]) if found[2].isdigit() else found[2]
            if found[1] == "name":
                kernels[found[2]] = current
    return kernels


def instructions(path):
    bodies, body = {}, []
    for line in run("llvm-objdump" + SUFFIX, "-d", "--no-show-raw-insn", path).splitlines():
        found = re.match(r"[0-9a-f]+ <(\w+)>:", line)
        if found:
            body = bodies.setdefault(found[1], [])
        elif line.startswith("\t"):
            body.extend(re.findall(r"(?:^\t|:: )(\w+)", line.split("//")[0]))
    return bodies


def occupancy(arch, vgprs, lds):
    """Waves of a SIMD that registers and shared memory allow at once."""
    registers, granularity, most, simds = REGISTERS[arch]
    wave = 64 if arch.startswith("gfx9") else 32
    waves = min(most, registers // max(granularity, -(-vgprs // granularity) * granularity))
    if lds:
        waves = min(waves, LDS_BYTES // lds * (BLOCK_THREADS // wave) // simds)
    return waves


def check(arch, kernels, bodies):
    faults = []
    for name, info in kernels.items():
        for field in ("private_segment_fixed_size", "vgpr_spill_count", "sgpr_spill_count"):
            if info.get(field):
                faults.append(f"{arch} {name}: {field} is {info[field]}")
        body = bodies[name]
        for pattern in (r"flat_", r"scratch_"):
            if any(re.match(pattern, op) for op in body):
                faults.append(f"{arch} {name}: has {pattern}* instructions")
        for kernel, pattern, least in EXPECTED:
            if re.match(kernel, name) and sum(bool(re.match(pattern, op)) for op in body) < least:
                faults.append(f"{arch} {name}: fewer than {least} of {pattern}")
    if len(kernels) < 60:
        faults.append(f"{arch}: only {len(kernels)} kernels found")
    return faults


def mix(body):
    """Instructions by what they occupy, not weighted by how often they run."""
    counts = {"dot": r"v_dot", "fma": r"v_(dual_)?(pk_)?fma", "other vector": r"v_", "scalar": r"s_", "lds": r"ds_",
              "memory": r"global_"}
    found = dict.fromkeys(counts, 0)
    for op in body:
        found[next((key for key, pattern in counts.items() if re.match(pattern, op)), "scalar")] += 1
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--table", action="store_true", help="print the table of docs/KERNELS.md")
    options = parser.parse_args()
    source = Path(__file__).with_name("all.hip")
    faults, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for arch in options.arch.split(","):
            path = f"{folder}/{arch}.hsaco"
            run(CLANG, *FLAGS, f"--offload-arch={arch}", str(source), "-o", path)
            kernels, bodies = metadata(path), instructions(path)
            faults += check(arch, kernels, bodies)
            for name in SHOWN:
                info, ops = kernels[name], mix(bodies[name])
                lds = info["group_segment_fixed_size"]
                rows.append((name, arch, info["vgpr_count"], info["sgpr_count"], lds,
                             occupancy(arch, info["vgpr_count"], lds), ops))
            print(f"{arch}: {len(kernels)} kernels, {Path(path).stat().st_size} bytes", file=sys.stderr)
    if options.table:
        print("| kernel | target | VGPR | SGPR | LDS | waves per SIMD | dot | fma | other vector | scalar | LDS ops | memory |")
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for name, arch, vgprs, sgprs, lds, waves, ops in sorted(rows, key=lambda row: SHOWN.index(row[0])):
            print(f"| `{name}` | {arch} | {vgprs} | {sgprs} | {lds} | {waves} | {ops['dot']} | {ops['fma']} | "
                  f"{ops['other vector']} | {ops['scalar']} | {ops['lds']} | {ops['memory']} |")
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
