#!/usr/bin/env python3
"""Prefill and decode of ROCmForge and llama.cpp side by side: same files, same threads, one run.

    tests/bench/vs_llama_cpp.py --llama-bin DIR --threads 2 MODEL.gguf [MODEL.gguf ...]

DIR holds llama-bench and llama-batched-bench (build llama.cpp with clang and -DGGML_NATIVE=ON). Each round runs
both programs after each other, so that a slow minute of the machine hits both; the best of the rounds counts on
both sides. GB/s is the file's size times tokens per second: what decoding one sequence reads. The machine's own
limit to hold it against is printed by the kernels' example `matmul_speed`. Needs nothing but Python and an idle
machine. Source of the names pp/tg: llama-bench.
"""

import argparse
import json
import os
import re
import subprocess
import sys


def run(command):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def ours(binary, model, args):
    """Rates of one run of `rocmforge bench`, by test name."""
    command = [binary, "bench", "--model", model, "--prompt", str(args.prompt), "--gen", str(args.gen)]
    command += ["--batch", args.batch, "--threads", str(args.threads), "--repeat", "1", "--json"]
    return {result["test"]: result["tok_s"] for result in json.loads(run(command))}


def llama(directory, model, args):
    """Rates of one run of llama-bench and llama-batched-bench, by our test names."""
    command = [os.path.join(directory, "llama-bench"), "-m", model, "-t", str(args.threads), "-r", "1", "-o", "json"]
    results = json.loads(run(command + ["-p", str(args.prompt), "-n", str(args.gen)]))
    rates = {}
    for result in results:
        name = f"pp{result['n_prompt']}" if result["n_prompt"] else f"tg{result['n_gen']}"
        rates[name] = result["avg_ts"]
    several = [batch for batch in args.batch.split(",") if batch != "1"]
    if several:
        positions = max(int(batch) for batch in several) * (args.gen + 8)
        command = [os.path.join(directory, "llama-batched-bench"), "-m", model, "-c", str(positions)]
        command += ["-t", str(args.threads), "-tb", str(args.threads), "-npp", "1", "-ntg", str(args.gen)]
        text = run(command + ["-npl", ",".join(several)])
        # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | ...
        for row in re.findall(r"^\|\s*\d+ \|.*$", text, re.MULTILINE):
            fields = [field.strip() for field in row.strip("|").split("|")]
            rates[f"tg{fields[1]}@{fields[2]}"] = float(fields[7])
    return rates


def best(rounds):
    """For each test the highest rate of all rounds."""
    names = rounds[0].keys()
    return {name: max(rates[name] for rates in rounds if name in rates) for name in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--llama-bin", required=True, help="folder with llama-bench and llama-batched-bench")
    parser.add_argument("--rocmforge", default="target/release/rocmforge")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--batch", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"load average before: {os.getloadavg()[0]:.2f}")
    for model in args.models:
        gigabytes = os.path.getsize(model) / 1e9
        mine, theirs = [], []
        for _ in range(args.rounds):
            mine.append(ours(args.rocmforge, model, args))
            theirs.append(llama(args.llama_bin, model, args))
        mine, theirs = best(mine), best(theirs)
        print(f"\n{os.path.basename(model)} ({gigabytes:.2f} GB), {args.threads} threads")
        print(f"| {'test':<10} | {'rocmforge tok/s':>15} | {'llama.cpp tok/s':>15} | {'ratio':>5} | {'GB/s':>5} |")
        print(f"|{'-' * 12}|{'-' * 16}:|{'-' * 16}:|{'-' * 6}:|{'-' * 6}:|")
        for name, rate in mine.items():
            peer = theirs.get(name)
            ratio = f"{rate / peer:5.2f}" if peer else "    -"
            shown = f"{peer:15.1f}" if peer else f"{'-':>15}"
            # A single sequence reads the whole file for each token.
            stream = f"{rate * gigabytes:5.1f}" if name.startswith("tg") and "@" not in name else "    -"
            print(f"| {name:<10} | {rate:15.1f} | {shown} | {ratio} | {stream} |")
    print(f"\nload average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
