"""How long a server computes on for a client that has left: while a reply is being written, and in the
middle of a long prompt. What a client cannot see, the servers' own status routes tell: a worker's
status counts the requests that run, llama-server's list of slots says which are busy. Both are asked
again and again, as fast as they answer, so the figure includes one answer's time.
"""

import http.client
import json
import socket
import statistics
import time
import urllib.parse

from servers import ALIAS, WORKER

PROMPT_WORDS = 1500
# How long a long prompt has been computed when its client leaves.
PREFILL_SECONDS = 0.15
PATIENCE_SECONDS = 120
# Seconds, beside one step for replies that are being written.
BARS = {"decoding": 0.05, "prefill": 0.25}


def connect(server):
    address = urllib.parse.urlsplit(server.url)
    return http.client.HTTPConnection(address.hostname, address.port, timeout=PATIENCE_SECONDS)


def open_stream(server, token, prompt):
    """Sends a request for an endless reply and returns its connection before anything has been read."""
    body = {"model": ALIAS, "prompt": prompt, "max_tokens": 2000, "ignore_eos": True, "stream": True, "temperature": 0}
    connection = connect(server)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    # The reply takes the socket over, so that the connection itself would not end it.
    connection.stream = connection.sock
    return connection


def busy(server, token, status):
    """How many requests have a slot."""
    path = "/api/v1/status" if server.name == WORKER else "/slots"
    status.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    reply = json.load(status.getresponse())
    return reply["requests_running"] if server.name == WORKER else sum(slot["is_processing"] for slot in reply)


def wait_for(server, token, status, wanted):
    """Waits until so many requests have a slot and returns how long that took."""
    began = time.perf_counter()
    while busy(server, token, status) != wanted:
        if time.perf_counter() - began > PATIENCE_SECONDS:
            raise TimeoutError(f"{server.name} never has {wanted} busy slots")
    return time.perf_counter() - began


def leave(connection):
    """Ends a connection for good, whoever still could read from it."""
    connection.stream.shutdown(socket.SHUT_RDWR)
    connection.close()


def one(server, token, status, phase, number):
    """Lets one client leave and returns the seconds until its slot is free."""
    if phase == "decoding":
        connection = open_stream(server, token, f"Tale {number}: once upon a time")
        # The first piece of the reply: from here on it is written token by token.
        connection.getresponse().read1(1)
    else:
        # New from its first word on, so that no cache knows it.
        words = f"{number} reports. " + "the cat sat on a mat and saw a dog " * (PROMPT_WORDS // 10)
        connection = open_stream(server, token, words)
        wait_for(server, token, status, 1)
        time.sleep(PREFILL_SECONDS)
    leave(connection)
    return wait_for(server, token, status, 0)


def percentiles(seconds):
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"count": len(seconds), "p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000, "max_ms": max(seconds) * 1000}


def step_seconds(server, token):
    """What one token of a lone stream takes, the median of its gaps."""
    connection = open_stream(server, token, "Count: one, two, three")
    response, at = connection.getresponse(), []
    while len(at) < 40 and response.readline():
        at.append(time.perf_counter())
    leave(connection)
    # Each piece ends with an empty line, which comes with it.
    gaps = [later - earlier for earlier, later in zip(at[::2], at[2::2])]
    return statistics.median(gaps)


def measure(server, token, samples):
    """Returns the figures of both phases, in milliseconds."""
    status, figures = connect(server), {}
    for phase in BARS:
        seconds = [one(server, token, status, phase, number) for number in range(samples)]
        figures[phase] = percentiles(seconds)
    step = step_seconds(server, token)
    wait_for(server, token, status, 0)
    figures["step_ms"] = step * 1000
    for phase, bar in BARS.items():
        figures[phase]["bar_ms"] = (bar + step * (phase == "decoding")) * 1000
    return figures


def lines_of(results):
    """The table's lines: the worker against its bars, and beside it what the peers take."""
    for phase in BARS:
        ours = results[WORKER][phase]
        met = "yes" if ours["p99_ms"] <= ours["bar_ms"] else "no"
        peers = ", ".join(f"{name} {figures[phase]['p50_ms']:.1f} / {figures[phase]['p99_ms']:.1f}"
                          for name, figures in results.items() if name != WORKER)
        yield (f"| client gone, {phase} | 1 stream | slot free, p50 / p99 ms | p99 <= {ours['bar_ms']:.0f} "
               f"| {ours['p50_ms']:.1f} / {ours['p99_ms']:.1f} ({ours['count']} samples) | {peers} | {met} |")
