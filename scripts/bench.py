#!/usr/bin/env python3
"""Speed of rbee against a llama-server, both on this machine, in one run.

Rounds are interleaved (peer, worker, peer, worker, …), so that a machine whose
speed drifts does not favour one side; medians over the rounds are printed, and
ratios are formed round by round. Prompts are unique, so that nothing is cached.

  bench.py --peer PATH/llama-server [--bin target/release] [--threads N] [--rounds N] [--json FILE]
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

MODEL = "target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf"
ALIAS = "smollm2:135m"
SLOTS, CONTEXT, TOKENS = 8, 2048, 96
TOPICS = "rivers bridges clocks bread gardens maps violins lighthouses trains glaciers".split()
counter = itertools.count(random.randrange(10**6))


class Target:
    """One endpoint: a name, an address, a credential."""

    def __init__(self, name, port, token):
        self.name, self.port, self.token = name, port, token

    async def stream(self, body):
        """Sends one chat and returns (ttft, gaps, tokens), times in seconds."""
        payload = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        start = time.perf_counter()
        writer.write(head.encode() + payload)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{self.name}: {status!r} {await reader.read(2000)!r}")
        times, tokens = [], 0
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if b'"usage":{' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
            if b'"content":"' in line and b'"content":""' not in line:
                times.append(now)
        writer.close()
        if not times or not tokens:
            raise RuntimeError(f"{self.name}: a stream without tokens")
        gaps = [b - a for a, b in zip(times, times[1:])]
        return times[0] - start, gaps, tokens


def prompt(tokens=TOKENS, said=None):
    number = next(counter)
    topic = TOPICS[number % len(TOPICS)]
    text = said or f"{number} is your number. Write a long and detailed essay about {topic} and how people use them."
    return {
        "model": ALIAS,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": tokens,
    }


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


async def load(target, streams):
    """Runs `streams` chats at once; returns tokens per second, TTFTs and gaps."""
    start = time.perf_counter()
    results = await asyncio.gather(*(target.stream(prompt()) for _ in range(streams)))
    wall = time.perf_counter() - start
    gaps = [gap for _, stream_gaps, _ in results for gap in stream_gaps]
    return sum(tokens for _, _, tokens in results) / wall, [r[0] for r in results], gaps


def free_socket():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def start_worker(binary, engine, model, threads):
    """Starts a worker alone, as a hive would: a bound socket and secrets on standard input."""
    listener = free_socket()
    token = "bench-token-of-good-length"

    def hand_over():
        os.dup2(listener.fileno(), 3, inheritable=True)

    arguments = [
        binary, "--worker-id", "w-bench", "--engine", engine, "--model", model,
        "--model-name", ALIAS, "--hive-url", "http://127.0.0.1:9",
        "--slots", str(SLOTS), "--context", str(CONTEXT), "--threads", str(threads),
    ]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={"LISTEN_FDS": "1", "PATH": os.environ["PATH"]}, pass_fds=(3,), preexec_fn=hand_over,
    )
    process.stdin.write(json.dumps({"token": token, "callback_token": token}).encode())
    process.stdin.close()
    port = listener.getsockname()[1]
    listener.close()
    return process, Target("worker", port, token)


def start_peer(binary, threads):
    with free_socket() as listener:
        port = listener.getsockname()[1]
    arguments = [
        binary, "-m", MODEL, "--port", str(port), "-c", str(SLOTS * CONTEXT), "-np", str(SLOTS),
        "-t", str(threads), "-tb", str(threads), "--no-webui",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, Target("llama-server", port, "none")


def start_cluster(binaries, home, engine, threads):
    """Starts queen, hive and worker through the keeper; returns the queen as a target."""
    config = os.path.join(home, "hive.toml")
    environment = {
        "HOME": home, "RBEE_HOME": os.path.join(home, "rbee"), "PATH": os.environ["PATH"],
        "RBEE_QUEEN_BIND": "127.0.0.1:0", "RBEE_HIVE_BIND": "127.0.0.1:0",
        "RBEE_HIVE_WORKER_PORT_FIRST": "0", "RBEE_HIVE_WORKER_ENGINE": engine,
    }
    os.makedirs(os.path.join(home, ".config/rbee"))
    with open(os.path.join(home, ".config/rbee/rbee-hive.toml"), "w") as file:
        file.write(f"[worker]\nslots = {SLOTS}\ncontext_tokens = {CONTEXT}\nthreads = {threads}\n")
    rbee = os.path.join(binaries, "rbee")

    def run(*arguments):
        subprocess.run([rbee, *arguments], env=environment, check=True, capture_output=True)

    run("pull", os.path.abspath(MODEL), "--name", ALIAS)
    run("run", "-m", ALIAS, "-p", "hi", "--max-tokens", "1")
    with open(os.path.join(home, "rbee/run/queen.json")) as file:
        port = int(json.load(file)["url"].rsplit(":", 1)[1])
    with open(os.path.join(home, "rbee/secrets/client.token")) as file:
        token = file.read().strip()
    return lambda: run("queen", "stop"), Target("rbee", port, token), os.path.join(home, "rbee")


def wait_ready(target):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", target.port), 1) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit(f"{target.name} does not become ready")


def memory_mb(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def program_pids(home):
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if home.encode() not in file.read():
                    continue
            with open(f"/proc/{pid}/comm") as file:
                found[file.read().strip()] = int(pid)
        except OSError:
            continue
    return found


async def throughput(targets, rounds):
    rows = {}
    for streams in (1, 4, 8):
        seen = {target.name: ([], [], []) for target in targets}
        for target in targets:
            await load(target, streams)  # warm-up
        for _ in range(rounds):
            for target in targets:
                rate, ttfts, gaps = await load(target, streams)
                seen[target.name][0].append(rate)
                seen[target.name][1].extend(ttfts)
                seen[target.name][2].extend(gaps)
        rows[streams] = seen
        for name, (rates, ttfts, gaps) in seen.items():
            print(
                f"{streams} streams  {name:<13} {statistics.median(rates):7.1f} tok/s"
                f"   TTFT p50 {1e3 * quantile(ttfts, 0.5):7.1f} p99 {1e3 * quantile(ttfts, 0.99):7.1f} ms"
                f"   inter-token p50 {1e3 * quantile(gaps, 0.5):6.2f} p99 {1e3 * quantile(gaps, 0.99):6.2f} ms",
                flush=True,
            )
        peer = seen["llama-server"][0]
        for name in seen:
            if name != "llama-server":
                ratio = statistics.median(a / b for a, b in zip(seen[name][0], peer))
                print(f"{streams} streams  {name} / llama-server = {ratio:.3f}", flush=True)
    return rows


async def added_ttft(direct, chain, requests):
    """What queen and hive add, on the echo engine, where the worker itself costs next to nothing."""
    differences, base, through = [], [], []
    body = lambda: prompt(said="one two three")
    for _ in range(requests // 10):
        await direct.stream(body())
        await chain.stream(body())
    for _ in range(requests):
        a, _, _ = await direct.stream(body())
        b, _, _ = await chain.stream(body())
        base.append(a)
        through.append(b)
        differences.append(b - a)
    print(
        f"TTFT on echo   worker {1e3 * statistics.median(base):.3f} ms   through queen and hive"
        f" {1e3 * statistics.median(through):.3f} ms   added {1e3 * statistics.median(differences):.3f} ms"
        f" (median of {requests} pairs; p99 {1e3 * quantile(differences, 0.99):.3f} ms)"
    )
    return statistics.median(differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300)
    options = parser.parse_args()
    worker_binary = os.path.join(options.bin, "llm-worker-rbee")
    processes, stops = [], []
    with tempfile.TemporaryDirectory() as llama_home, tempfile.TemporaryDirectory() as echo_home:
        try:
            peer, peer_target = start_peer(options.peer, options.threads)
            processes.append(peer)
            worker, worker_target = start_worker(worker_binary, "llama", MODEL, options.threads)
            processes.append(worker)
            stop, chain, home = start_cluster(options.bin, llama_home, "llama", options.threads)
            stops.append(stop)
            for target in (peer_target, worker_target):
                wait_ready(target)
            print(f"{options.threads} threads, {SLOTS} slots of {CONTEXT} tokens, {TOKENS} tokens out, medians of {options.rounds} rounds")
            asyncio.run(throughput([peer_target, worker_target, chain], options.rounds))
            pids = program_pids(home)
            print(f"RSS after the load   llama-server {memory_mb(peer.pid):.0f} MB   worker {memory_mb(worker.pid):.0f} MB")
            print("RSS   " + "   ".join(f"{name} {memory_mb(pid):.1f} MB" for name, pid in sorted(pids.items()) if not name.startswith("llm")))
            stops.pop()()
            for process in (peer, worker):
                process.terminate()
                process.wait(20)
            echo, echo_target = start_worker(worker_binary, "echo", MODEL, options.threads)
            processes.append(echo)
            stop, chain, _ = start_cluster(options.bin, echo_home, "echo", options.threads)
            stops.append(stop)
            wait_ready(echo_target)
            asyncio.run(added_ttft(echo_target, chain, options.requests))
        finally:
            for stop in stops:
                stop()
            for process in processes:
                if process.poll() is None:
                    process.kill()


if __name__ == "__main__":
    main()
