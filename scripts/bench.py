#!/usr/bin/env python3
"""Every row of docs/BENCHMARKS.md, measured in one go: starts the servers, has `rbee bench`
put load on them in turns, and writes one JSON file and one table.

  bench.py --peer PATH/llama-server [--batched-bench PATH/llama-batched-bench] [--bin target/release]
           [--threads N] [--rounds N] [--rows NAME,…] [--out target/bench]

Rows can be measured one after the other: what an earlier run of the same commit has measured is kept.

llama-server runs twice, with its KV cache split by slot and with --kv-unified, and for each
figure the better of the two is the one that counts.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass

import cancel
from servers import ALIAS, MODEL, PEER_OF_ITS_OWN_CHOICE, PEERS, ROOT, WORKER, machine, start_peer, start_worker, stop, wait_ready


@dataclass
class Row:
    """One call of `rbee bench`. A bar is (phase, metric, ">=" or "<=", bound); a bound on "own" is
    against another phase of the worker itself instead of a peer."""

    name: str
    title: str
    layout: tuple  # slots, context tokens of each
    arguments: list
    bars: list
    own_bars: tuple = ()


def shared(words, requests, bars):
    return Row(
        f"shared-{words}-{requests}",
        f"sharing {words} words, {requests} requests each",
        (16, 4096),
        ["--scenario", "shared-prefix", "--streams", "8,16", "--requests", str(requests),
         "--shared-prefix-words", str(words), "--timeout", "900"],
        bars,
    )


def second_turn(name, words):
    return Row(
        name, f"second turn, 8 chats alive, {words:,} words each", CHATS,
        ["--scenario", "second-turn", "--chats", "8", "--prompt-words", str(words)],
        [("turn-two", TTFT50, "<=", 0.5)], (("turn-two", TTFT50, "<=", 0.15),),
    )


# Slots, and tokens of each, for the chats.
CHATS = (8, 2048)
RATE, TTFT50, TTFT99 = "output_tokens_per_second", "ttft_p50", "ttft_p99"
TOGETHER = [("load", RATE, ">=", 3.0), ("load", TTFT50, "<=", 0.30), ("load", TTFT99, "<=", 0.30)]
REPEATED = [("load", RATE, ">=", 1.5), ("load", TTFT99, "<=", 0.35)]
ROWS = [
    Row("unique", "unique prompts", (16, 1024),
        ["--scenario", "unique", "--streams", "1,4,8,16", "--prompt-words", "16", "--output-tokens", "64",
         "--requests", "2"],
        [("load", RATE, ">=", 1.0)]),
    Row("copy", "copy-heavy output", (16, 1024), ["--scenario", "copy"], [("load", RATE, ">=", 1.25)]),
    Row("json", "JSON-schema output", (16, 1024), ["--scenario", "json-schema"], [("schema", RATE, ">=", 1.0)],
        (("schema", RATE, ">=", 0.90),)),
    shared(400, 1, TOGETHER),
    shared(2000, 1, TOGETHER),
    shared(400, 4, REPEATED),
    shared(2000, 4, REPEATED),
    Row("long-prompt", "gap while 1,500 words arrive", (16, 4096), ["--scenario", "long-prompt-arrives"],
        [("running", "itl_max", "<=", 0.1)]),
    second_turn("second-turn", 200),
    second_turn("second-turn-long", 1000),
]
# Against a worker that does not guess, instead of a peer.
UNGUESSED = Row("guessing", "text that cannot be guessed", (8, 1024),
                ["--scenario", "unique", "--streams", "1", "--prompt-words", "16", "--output-tokens", "64", "--requests", "8"],
                [("load", RATE, ">=", 0.98)])


@contextlib.contextmanager
def cluster(options, engine, layout, queen=""):
    """Queen (with these settings), hive and worker, started through the keeper; yields the environment
    that finds them."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "HOME": home, "RBEE_HOME": os.path.join(home, "rbee"), "PATH": os.environ["PATH"],
            "RBEE_QUEEN_BIND": "127.0.0.1:0", "RBEE_HIVE_BIND": "127.0.0.1:0",
            "RBEE_HIVE_WORKER_PORT_FIRST": "0", "RBEE_HIVE_WORKER_ENGINE": engine,
        }
        os.makedirs(os.path.join(home, ".config/rbee"))
        with open(os.path.join(home, ".config/rbee/rbee-hive.toml"), "w") as file:
            file.write(f"[worker]\nslots = {layout[0]}\ncontext_tokens = {layout[1]}\nthreads = {options.threads}\n")

        with open(os.path.join(home, ".config/rbee/queen-rbee.toml"), "w") as file:
            file.write(queen)

        def rbee(*arguments):
            subprocess.run([os.path.join(options.bin, "rbee"), *arguments], env=environment, check=True,
                           stdout=subprocess.DEVNULL)

        try:
            rbee("pull", MODEL, "--name", ALIAS, "-q")
            rbee("run", ALIAS, "hi", "--max-tokens", "1", "-q")
            yield environment
        finally:
            rbee("queen", "stop", "-q")


def bench(options, arguments, environment=None):
    """Calls `rbee bench` and returns its report."""
    environment = environment or {"HOME": options.work, "PATH": os.environ["PATH"]}
    with tempfile.NamedTemporaryFile(dir=options.work) as file:
        command = [os.path.join(options.bin, "rbee"), "bench", "-m", ALIAS, "--json-file", file.name,
                   "--allow-errors", *arguments]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.load(file)


def memory_bytes(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024


def programs(home):
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


def against_peers(options, rows, results):
    """Measures the rows of one layout; three servers run, of which one at a time has work."""
    layout = rows[0].layout
    servers = []
    try:
        servers.append(start_worker(options, "llama", layout, options.token))
        names = [*PEERS, PEER_OF_ITS_OWN_CHOICE] if layout == CHATS else PEERS
        servers.extend(start_peer(options, name, layout) for name in names)
        for server in servers:
            wait_ready(server)
        worker, peers = servers[0], servers[1:]
        for row in rows:
            arguments = ["--url", f"{WORKER}={worker.url}", "--key-file", options.key_file,
                         "--rounds", str(options.rounds), *row.arguments]
            for peer in peers:
                arguments += ["--peer", f"{peer.name}={peer.url}"]
            measured = {"name": row.name, "title": row.title, "slots": layout[0], "context_tokens": layout[1],
                        "report": bench(options, arguments)}
            keep(options, results, measured)
        results["rss_bytes"] = [rss for rss in results["rss_bytes"] if rss["slots"] * rss["context_tokens"] != layout[0] * layout[1]]
        results["rss_bytes"].append({"slots": layout[0], "context_tokens": layout[1], **{
            server.name: memory_bytes(server.process.pid) for server in servers}})
        write(options, results)
    finally:
        for server in servers:
            stop(server)


def keep(options, results, measured):
    order = [row.name for row in (*ROWS, UNGUESSED)]
    rows = [entry for entry in results["rows"] if entry["name"] != measured["name"]] + [measured]
    results["rows"] = sorted(rows, key=lambda entry: order.index(entry["name"]))
    write(options, results)


def guessing(options, results):
    """What it costs to guess where nothing can be guessed."""
    row, servers = UNGUESSED, []
    try:
        for more in ([], ["--speculation", "off"]):
            servers.append(start_worker(options, "llama", row.layout, options.token, *more))
        for server in servers:
            wait_ready(server)
        report = bench(options, ["--url", f"{WORKER}={servers[0].url}", "--key-file", options.key_file,
                                 "--peer", f"unguessed={servers[1].url}", "--peer-key-file", options.key_file,
                                 "--rounds", str(options.rounds), *row.arguments])
        keep(options, results, {"name": row.name, "title": row.title, "slots": row.layout[0],
                                "context_tokens": row.layout[1], "report": report})
    finally:
        for server in servers:
            stop(server)


def through_cluster(options, results):
    """What queen and hive cost: under the model's load, and on the echo engine in time to first token."""
    results["cluster"] = []
    for engine, layout, arguments in [
        ("llama", (8, 1024), ["--streams", "1,4,8", "--rounds", str(options.rounds)]),
        ("echo", (8, 1024), ["--streams", "1", "--requests", "10", "--rounds", "30", "--output-tokens", "4"]),
    ]:
        with cluster(options, engine, layout) as environment:
            worker = start_worker(options, engine, layout, options.token)
            try:
                wait_ready(worker)
                report = bench(options, [*arguments, "--peer", f"{WORKER}={worker.url}",
                                         "--peer-key-file", options.key_file], environment)
                home = environment["RBEE_HOME"]
                sizes = {name: memory_bytes(pid) for name, pid in programs(home).items()}
                results["cluster"].append({"engine": engine, "report": report, "rss_bytes": sizes})
            finally:
                stop(worker)


def when_clients_leave(options, results):
    """How soon a slot is free whose client has left."""
    for name in (WORKER, *PEERS):
        layout = (8, 4096)
        server = (start_worker(options, "llama", layout, options.token) if name == WORKER
                  else start_peer(options, name, layout, "--slots"))
        try:
            wait_ready(server)
            # A peer computes a long prompt to its end, which takes seconds each time.
            samples = options.cancels if name == WORKER else max(options.cancels // 10, 2)
            results["cancel"][name] = cancel.measure(server, options.token, samples)
        finally:
            stop(server)


def metrics(server, token):
    """The figures of a worker that have no labels."""
    request = urllib.request.Request(server.url + "/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if "#" not in name and value}


def around_the_kernels(options, results):
    """What the engine thread does for a token besides computing: planning, choosing, sending."""
    worker = start_worker(options, "llama", (8, 1024), options.token)
    try:
        wait_ready(worker)
        for streams in (1, 8):
            before = metrics(worker, options.token)
            bench(options, ["--url", f"{WORKER}={worker.url}", "--key-file", options.key_file, "--streams", str(streams),
                            "--rounds", str(options.rounds), "--scenario", "unique"])
            after = metrics(worker, options.token)
            took, tokens = (after[name] - before[name] for name in (
                "rbee_worker_step_overhead_seconds_sum", "rbee_worker_generated_tokens_total"))
            results["overhead_us_per_token"][str(streams)] = took / tokens * 1e6
    finally:
        stop(worker)


def front(options, results):
    """What name, credential, validation and audit log add to a request in a daemon."""
    command = ["cargo", "run", "--release", "--quiet", "-p", "rbee-http", "--example", "front_cost"]
    results["front_us"] = json.loads(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout)


def audit(options, results):
    """How many entries of an audit log are verified a second."""
    command = ["cargo", "run", "--release", "--quiet", "-p", "audit-logging", "--example", "verify_speed"]
    results["audit"] = json.loads(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout)


def kernels(options, results):
    """What llama.cpp's own kernels can do at the shape of the row `unique`: tokens out per second, prefill included."""
    rates = {}
    command = [options.batched_bench, "-m", MODEL, "-c", "16384", "-npp", "40", "-ntg", "64", "-npl", "1,4,8,16",
               "-t", str(options.threads), "-tb", str(options.threads), "--output-format", "jsonl"]
    for _ in range(3):
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        for line in filter(lambda line: line.startswith(b"{"), lines.splitlines()):
            shape = json.loads(line)
            rates.setdefault(shape["pl"], []).append(shape["pl"] * shape["tg"] / shape["t"])
    results["kernel_output_tokens_per_second"] = {str(pl): statistics.median(seen) for pl, seen in rates.items()}


def level_text(level):
    return f"{level['streams']} stream{'s' * (level['streams'] != 1)}"


def lines_of(row, entry):
    """The table's lines of one row: each bar at each level, against the peer that does better."""
    report = entry["report"]
    levels = report["settings"]["levels"]
    for bars, own in ((row.bars, False), (row.own_bars, True)):
        for phase, metric, relation, bound in bars:
            for level in levels:
                ratios = [
                    ratio for ratio in report["ratios"]
                    if ratio["level"] == level and ratio["metric"] == metric
                    and ratio["numerator"] == {"endpoint": WORKER, "phase": phase}
                    and (ratio["denominator"]["endpoint"] == WORKER) == own
                ]
                if not ratios:
                    yield f"| {row.title} | {level_text(level)} | {metric} | {relation} {bound:.2f} | none | | no |"
                    continue
                hardest = (min if relation == ">=" else max)(ratios, key=lambda ratio: ratio["median"])
                met = hardest["median"] >= bound if relation == ">=" else hardest["median"] <= bound
                other = hardest["denominator"]["phase"] if own else hardest["denominator"]["endpoint"]
                yield (
                    f"| {row.title} | {level_text(level)} | {metric} | {relation} {bound:.2f} "
                    f"| {hardest['median']:.2f} ({hardest['min']:.2f}–{hardest['max']:.2f}) | {other} "
                    f"| {'yes' if met else 'no'} |"
                )


def figures_of(entry):
    value = lambda spread, part: f"{spread[part]:.1f}" if spread else "-"
    for total in entry["report"]["totals"]:
        if total["phase"] == "turn-one":
            continue
        ttft, itl = total["ttft_ms"], total["itl_ms"]
        yield (
            f"| {entry.get('title', entry.get('engine'))}, {total['phase']} | {level_text(total['level'])} | {total['endpoint']} "
            f"| {total['output_tokens_per_second']:.1f} | {value(ttft, 'p50')} / {value(ttft, 'p99')} "
            f"| {value(itl, 'p50')} / {value(itl, 'p99')} / {value(itl, 'max')} | {total['failed']} |"
        )


def table(results):
    settings = results["machine"]
    yield (f"Commit {settings['commit']}, {results['date']}, {settings['cpu']}, {settings['cores']} cores, "
           f"{settings['threads']} threads, medians of {settings['rounds']} rounds.\n")
    by_name = {row.name: row for row in (*ROWS, UNGUESSED)}
    yield "| case | load | figure | bar | worker / other (min–max) | other | met |\n|---|---|---|---|---|---|---|"
    for entry in results["rows"]:
        yield from lines_of(by_name[entry["name"]], entry)
    for entry in results["rows"]:
        if entry["name"] == "unique" and results["kernel_output_tokens_per_second"]:
            for total in entry["report"]["totals"]:
                streams = total["level"]["streams"]
                if total["endpoint"] == WORKER:
                    ratio = total["output_tokens_per_second"] / results["kernel_output_tokens_per_second"][str(streams)]
                    yield (f"| unique prompts | {level_text(total['level'])} | {RATE} | >= 0.95 | {ratio:.2f} "
                           f"| llama-batched-bench | {'yes' if ratio >= 0.95 else 'no'} |")
    for rss in results["rss_bytes"]:
        if (rss["slots"], rss["context_tokens"]) == (8, 2048):
            ratio = rss[WORKER] / min(rss[name] for name in PEERS)
            yield (f"| RSS after the load | 8 slots, 16 k context | rss | <= 1.00 | {ratio:.2f} | the smaller "
                   f"| {'yes' if ratio <= 1 else 'no'} |")
    if results["front_us"]:
        for load, words in (("busy", "one request after the other"), ("idle", "each after an idle millisecond")):
            for part, bound in (("p50_us", 20), ("p99_us", 200)):
                took = results["front_us"][load][part]
                yield (f"| credential, validation and audit log | {words} | added, {part[:3]}, µs | <= {bound} "
                       f"| {took:.1f} | none | {'yes' if took <= bound else 'no'} |")
    if results["audit"]:
        rate = results["audit"]["entries_per_second"]
        yield (f"| audit log | {results['audit']['entries']} entries | verified a second | >= 500000 "
               f"| {rate:.0f} | none | {'yes' if rate >= 500_000 else 'no'} |")
    if results["cancel"]:
        yield from cancel.lines_of(results["cancel"])
    yield "\n| case | load | server | tokens/s | TTFT p50 / p99 ms | ITL p50 / p99 / max ms | failed |"
    yield "|---|---|---|---|---|---|---|"
    for entry in results["rows"] + results["cluster"]:
        yield from figures_of(entry)
    for entry in results["cluster"]:
        if entry["engine"] == "echo":
            p50 = {total["endpoint"]: total["ttft_ms"]["p50"] for total in entry["report"]["totals"]}
            added = p50["rbee"] - p50[WORKER]
            yield f"\nTTFT added by queen and hive, echo engine: {added:.2f} ms."
        sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sorted(entry["rss_bytes"].items()))
        yield f"\nRSS of the cluster, {entry['engine']}: {sizes}."
    for streams, took in results["overhead_us_per_token"].items():
        yield f"\nWorker around the kernels, {level_text({'streams': int(streams)})}: {took:.0f} µs a token."
    for rss in results["rss_bytes"]:
        sizes = ", ".join(f"{name} {rss[name] / 1e6:.0f} MB" for name in (WORKER, *PEERS))
        yield f"\nRSS after the load, {rss['slots']} slots of {rss['context_tokens']} tokens: {sizes}."


def begin(options):
    """What earlier runs of the same commit, machine and number of rounds have measured, or nothing yet."""
    setting = {**machine(options), "rounds": options.rounds}
    try:
        with open(os.path.join(options.out, "results.json")) as file:
            results = json.load(file)
        if results["machine"] == setting:
            return results
    except (OSError, ValueError, KeyError):
        pass
    return {"date": time.strftime("%Y-%m-%d"), "machine": setting, "rows": [], "cluster": [], "cancel": {}, "front_us": {}, "audit": {},
            "overhead_us_per_token": {}, "rss_bytes": [], "kernel_output_tokens_per_second": {}}


def write(options, results):
    """Writes down what there is: the rows take an hour and more together."""
    for name, text in (("results.json", json.dumps(results)), ("table.md", "\n".join(table(results)) + "\n")):
        path = os.path.join(options.out, name)
        with open(path + ".part", "w") as file:
            file.write(text)
        os.replace(path + ".part", path)


def main():
    names = [row.name for row in ROWS] + ["guessing", "cluster", "cancel", "overhead", "front", "audit"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="llama-server")
    parser.add_argument("--batched-bench", help="llama-batched-bench, for what the kernels can do")
    parser.add_argument("--bin", default=os.path.join(ROOT, "target/release"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--cancels", type=int, default=200, help="clients that leave a worker, of each kind")
    parser.add_argument("--out", default=os.path.join(ROOT, "target/bench"))
    options = parser.parse_args()
    wanted = options.rows.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    # Ends what was started before this program itself ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.makedirs(options.out, exist_ok=True)
    results = begin(options)
    with tempfile.TemporaryDirectory() as options.work:
        options.token = os.urandom(24).hex()
        options.key_file = os.path.join(options.work, "key")
        with os.fdopen(os.open(options.key_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(options.token)
        if options.batched_bench:
            kernels(options, results)
        rows = [row for row in ROWS if row.name in wanted]
        for layout in dict.fromkeys(row.layout for row in rows):
            against_peers(options, [row for row in rows if row.layout == layout], results)
        for name, measure in (("guessing", guessing), ("cluster", through_cluster), ("cancel", when_clients_leave), ("overhead", around_the_kernels), ("front", front),
                              ("audit", audit)):
            if name in wanted:
                measure(options, results)
                write(options, results)
    print("\n".join(table(results)))
    print(f"{options.out}/results.json has every request, {options.out}/table.md this table")


if __name__ == "__main__":
    main()
