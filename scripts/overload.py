#!/usr/bin/env python3
"""What a cluster still does when it is asked for more than it can: `rbee bench` sends requests in an
open loop at rates below, at and far above what an echo worker of a known pace can serve.

  overload.py [--bin target/release] [--duration 60] [--out target/overload.json]

Each reply takes TOKENS * DELAY; SLOTS run at once; a request has TIME seconds. Every request counts that
ended well, and so in its time. Bars: at five times the load that can be served, at least 0.95 of the peak
is still served, and the p99 of what is served is at most twice that of the peak.
"""

import argparse
import json
import os
import signal
import sys
import tempfile

import bench
from servers import ROOT

SLOTS, TOKENS, DELAY_MS, TIME_SECONDS = 8, 51, 20, 2
CAPACITY = SLOTS * 1000 / ((TOKENS - 1) * DELAY_MS)
UP_TO_FULL, OVERLOAD = (0.5, 0.7, 0.8, 0.9, 1.0), (2.0, 5.0)


def measure(options):
    rates = ",".join(f"{CAPACITY * factor:g}" for factor in (*UP_TO_FULL, *OVERLOAD))
    queen = f"request_timeout_seconds = {TIME_SECONDS}\n"
    with bench.cluster(options, "echo", (SLOTS, 1024), queen) as environment:
        return bench.bench(options, [
            "--rate", rates, "--duration", str(options.duration), "--timeout", str(10 * TIME_SECONDS),
            "--prompt-start", f"[[tokens={TOKENS} delay_ms={DELAY_MS}]]", "--output-tokens", str(TOKENS),
        ], environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "target/release"))
    parser.add_argument("--duration", type=int, default=60, help="seconds of each level")
    parser.add_argument("--out", default=os.path.join(ROOT, "target/overload.json"), help="every request")
    options = parser.parse_args()
    options.threads = 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as options.work:
        report = measure(options)
    with open(options.out, "w") as file:
        json.dump(report, file)
    levels = []
    print("| load | offered/s | served/s | served | p50 ms | p99 ms | failures |\n|---|---|---|---|---|---|---|")
    for factor, total in zip((*UP_TO_FULL, *OVERLOAD), report["totals"], strict=True):
        served = total["requests"] - total["failed"]
        # Those that come last end after the time in which requests come; the rate is taken over that time.
        level = {"factor": factor, "rate": served / options.duration, "p99": (total["e2e_ms"] or {"p99": float("inf")})["p99"]}
        levels.append(level)
        failures = ", ".join(f"{failure['class']} {failure['count']}" for failure in total["failures"]) or "none"
        p50 = (total["e2e_ms"] or {"p50": float("inf")})["p50"]
        print(f"| {factor:g} | {total['level']['rate_per_second']:g} | {level['rate']:.2f} "
              f"| {served} of {total['requests']} | {p50:.0f} | {level['p99']:.0f} | {failures} |")
    peak = max((level for level in levels if level["factor"] in UP_TO_FULL), key=lambda level: level["rate"])
    worst = levels[-1]
    goodput, slower = worst["rate"] / peak["rate"], worst["p99"] / peak["p99"]
    kept = goodput >= 0.95 and slower <= 2
    print(f"\nAt five times the load: {goodput:.2f} of the peak is served (bar 0.95), its p99 is {slower:.2f} times "
          f"that of the peak (bar 2): {'met' if kept else 'not met'}.")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
