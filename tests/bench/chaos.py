#!/usr/bin/env python3
"""What clients see while workers die: a chaos benchmark against a running ROCmForge server on this host.

    rocmforge serve --workers 4 &
    tests/bench/chaos.py --url http://127.0.0.1:8000 --requests 2000 --kill-every 2

Sends the same requests twice from --clients streaming clients: undisturbed, then while every --kill-every seconds a
worker chosen by chance gets --signal (its process id is in `/health`). Reports failed and wrong requests (another text
than undisturbed), tokens per second, time between chunks (p50, p99, longest), restarts and migrations. Needs nothing
but Python, and the right to signal the server's workers. Ends with 1 if anything failed or was wrong.
"""

import argparse
import http.client
import json
import os
import random
import signal
import threading
import time
from urllib.parse import urlparse

WORDS = "red blue one two seven Paris cats water world time".split()


def get(url, path):
    """The body of a GET."""
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    connection.request("GET", path)
    body = connection.getresponse().read().decode()
    connection.close()
    return body


def metric(url, name):
    """The sum of a metric over its labels."""
    lines = [line for line in get(url, "/metrics").splitlines() if line.startswith((name + " ", name + "{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def restarts(url):
    """Times any worker was started again."""
    return sum(worker["restarts"] for worker in json.loads(get(url, "/health"))["workers"])


def request(model, index, max_tokens):
    """The index-th request; half of them greedy, half sampled with a seed."""
    rng = random.Random(index)
    prompt = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 60)))
    return {"model": model, "prompt": prompt, "max_tokens": rng.randint(max_tokens // 4, max_tokens),
            "ignore_eos": True, "temperature": rng.choice([0, 0.9]), "seed": index, "stream": True,
            "stream_options": {"include_usage": True}}


def visit(url, body):
    """One stream to its end: text, tokens by the server's own count, times between chunks. Raises when it breaks."""
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=600)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read()[:200]}")
        text, tokens, gaps, last, done = [], 0, [], None, 0
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                done += 1
                continue
            now = time.perf_counter()
            if last is not None:
                gaps.append(now - last)
            last = now
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"])[:200])
            text += [choice.get("text", "") for choice in chunk["choices"]]
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if done != 1 or tokens != body["max_tokens"]:
            raise RuntimeError(f"{done} [DONE], {tokens} tokens of {body['max_tokens']}")
        return "".join(text), tokens, gaps
    finally:
        connection.close()


def strike(url, signal_number, every, over, strikes):
    """Signals a serving worker chosen by chance at every tick until `over`; notes whether it had requests."""
    while not over.wait(every):
        workers = json.loads(get(url, "/health"))["workers"]
        serving = [worker for worker in workers if worker["state"] == "ready"]
        if serving:
            target = random.choice(serving)
            os.kill(target["pid"], signal_number)
            # The runtime's handler of SIGSEGV takes the first one and removes itself.
            deadline = time.perf_counter() + 1
            while signal_number == signal.SIGSEGV and time.perf_counter() < deadline:
                try:
                    os.kill(target["pid"], signal_number)
                except ProcessLookupError:
                    break
            strikes.append(target["in_flight"] > 0)


def storm(url, bodies, clients):
    """Runs all requests; what each gave (an exception where it failed), and the seconds in all."""
    results, todo, lock = [None] * len(bodies), iter(range(len(bodies))), threading.Lock()

    def work():
        while True:
            with lock:
                index = next(todo, None)
            if index is None:
                return
            try:
                results[index] = visit(url, bodies[index])
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                results[index] = error

    start = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - start


def figures(results, seconds):
    """What clients felt."""
    good = [result for result in results if not isinstance(result, Exception)]
    gaps = sorted(gap for _, _, times in good for gap in times) or [float("nan")]
    at = lambda share: round(1000 * gaps[min(len(gaps) - 1, int(share * len(gaps)))], 1)
    return {"seconds": round(seconds, 1), "tokens_per_s": round(sum(tokens for _, tokens, _ in good) / seconds),
            "gap_p50_ms": at(0.5), "gap_p99_ms": at(0.99), "gap_longest_ms": at(1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--kill-every", type=float, default=2, help="seconds")
    parser.add_argument("--signal", default="KILL", choices=["KILL", "SEGV", "ABRT", "STOP", "TERM"])
    args = parser.parse_args()
    url = urlparse(args.url)
    model = json.loads(get(url, "/v1/models"))["data"][0]["id"]
    bodies = [request(model, index, args.max_tokens) for index in range(args.requests)]
    expected, seconds = storm(url, bodies, args.clients)
    print(json.dumps({"undisturbed": figures(expected, seconds)}), flush=True)
    before = restarts(url), metric(url, "rocmforge_requests_resumed_total")
    over, strikes = threading.Event(), []
    number = getattr(signal, "SIG" + args.signal)
    striker = threading.Thread(target=strike, args=(url, number, args.kill_every, over, strikes))
    striker.start()
    results, seconds = storm(url, bodies, args.clients)
    over.set()
    striker.join()
    pairs = list(zip(results, expected))
    failed = [got for got, _ in pairs if isinstance(got, Exception)]
    wrong = [1 for got, want in pairs if not isinstance(got, Exception) and
             (isinstance(want, Exception) or got[:2] != want[:2])]
    print(json.dumps({"requests": len(bodies), "failed": len(failed), "wrong": len(wrong), "strikes": len(strikes), "strikes_at_work": sum(strikes),
                      "restarts": restarts(url) - before[0],
                      "migrations": round(metric(url, "rocmforge_requests_resumed_total") - before[1]),
                      "disturbed": figures(results, seconds)}))
    for error in failed[:5]:
        print("failed:", error)
    raise SystemExit(1 if failed or wrong else 0)


if __name__ == "__main__":
    main()
