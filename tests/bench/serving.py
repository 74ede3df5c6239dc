#!/usr/bin/env python3
"""Concurrent streams over HTTP against a running OpenAI-compatible server.

    tests/bench/serving.py --url http://127.0.0.1:8000 --streams 16 --prompt-words 100 --max-tokens 128

Opens all streams at once, each with its own prompt, and reports tokens per second over all of them, time to first
token and time between tokens (p50, p99). With --shared-prefix-words every prompt begins with the same text; the
first request is then sent alone, and its time to first token is compared with the second's. Tokens are counted by
the server's own `usage`. Works against ROCmForge and llama-server alike; needs nothing but Python.
"""

import argparse
import http.client
import json
import random
import threading
import time
from urllib.parse import urlparse

WORDS = ("time year people way day man thing woman life child world school state family student group country "
         "problem hand part place case week company system program question work government number night point home "
         "water room mother area money story fact month lot right study book eye job word business issue side kind").split()


def prompt(words, seed):
    """Some text; which words they are does not change the work."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


class Result:
    """What one stream showed."""

    def __init__(self):
        self.times = []
        self.tokens = 0
        self.error = None
        self.start = self.end = 0.0


def stream(url, model, text, args, result, barrier):
    """Runs one completion stream and records when its chunks came."""
    body = {"model": model, "prompt": text, "max_tokens": args.max_tokens, "temperature": 0, "stream": True,
            "ignore_eos": True, "stream_options": {"include_usage": True}}
    try:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=args.timeout)
        barrier.wait()
        result.start = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read()[:200]}")
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"])[:200])
            if chunk.get("choices") and chunk["choices"][0].get("text"):
                result.times.append(time.perf_counter())
            if chunk.get("usage"):
                result.tokens = chunk["usage"]["completion_tokens"]
        result.end = time.perf_counter()
    except (OSError, RuntimeError, ValueError, threading.BrokenBarrierError) as error:
        result.error = error


def run(url, model, prompts, args):
    """Runs one stream for each prompt, all at once."""
    barrier = threading.Barrier(len(prompts))
    results = [Result() for _ in prompts]
    threads = [threading.Thread(target=stream, args=(url, model, text, args, result, barrier))
               for text, result in zip(prompts, results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if result.error:
            raise SystemExit(f"a stream failed: {result.error}")
    return results


def percentile(values, share):
    """The value below which `share` of all lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--shared-prefix-words", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    url = urlparse(args.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    connection.request("GET", "/v1/models")
    model = json.loads(connection.getresponse().read())["data"][0]["id"]
    prefix = prompt(args.shared_prefix_words, args.seed - 1) + " " if args.shared_prefix_words else ""
    prompts = [prefix + prompt(args.prompt_words, args.seed * 1000 + index) for index in range(args.streams)]
    report = {"streams": args.streams, "max_tokens": args.max_tokens}
    if prefix:
        alone = [prefix + prompt(args.prompt_words, args.seed * 1000 - 1 - index) for index in range(2)]
        first, second = (run(url, model, [text], args)[0] for text in alone)
        report["ttft_first_s"] = round(first.times[0] - first.start, 4)
        report["ttft_shared_prefix_s"] = round(second.times[0] - second.start, 4)
    results = run(url, model, prompts, args)
    wall = max(result.end for result in results) - min(result.start for result in results)
    gaps = [after - before for result in results for before, after in zip(result.times, result.times[1:])]
    ttft = [result.times[0] - result.start for result in results]
    report.update({
        "tokens_per_s": round(sum(result.tokens for result in results) / wall, 1),
        "ttft_p50_s": round(percentile(ttft, 0.5), 3), "ttft_p99_s": round(percentile(ttft, 0.99), 3),
        "gap_p50_ms": round(1000 * percentile(gaps, 0.5), 2), "gap_p99_ms": round(1000 * percentile(gaps, 0.99), 2),
        "wall_s": round(wall, 2),
    })
    print(json.dumps(report))


if __name__ == "__main__":
    main()
