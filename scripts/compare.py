#!/usr/bin/env python3
"""Whether the worker says what llama-server says: greedy replies to the same prompts from the same
model file, one request at a time, with the same threads and context.

  compare.py --peer PATH/llama-server [--bin target/release] [--threads N] [--out target/compare]

The worker is asked twice: with nothing shared or guessed and without flash attention, which computes
the same pieces in the same way as the peer, and at its defaults. Where replies differ, both are asked for the log probabilities there.
Exit code 1 says that a difference remains which they do not explain.
"""

import argparse
import json
import os
import signal
import sys
import time
import urllib.request

from prompts import PROMPTS
from servers import ALIAS, ROOT, machine, start_peer, start_worker, stop, wait_ready

TOKENS = 64
CONTEXT_TOKENS = 4096
# Where the two best tokens are nearer than this, the order of summing may decide between them.
TIE = 0.05
# By so much logits were seen to move when a prompt is cut into other pieces (decision 010).
PIECES = 0.6
# The longest prompt that a worker computes in one step.
STEP_TOKENS = 512
MODES = {"alone": ["--speculation", "off", "--cache-ram", "0", "--flash-attention", "off"], "defaults": []}


def ask(server, token, prompt, fields):
    """Returns the reply's only choice, and the tokens of its prompt."""
    path = "/v1/chat/completions" if "messages" in prompt else "/v1/completions"
    body = {"model": ALIAS, "temperature": 0, "max_tokens": TOKENS, **prompt, **fields}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        reply = json.load(response)
    return reply["choices"][0], reply["usage"]["prompt_tokens"]


def text_of(choice):
    return choice["message"]["content"] if "message" in choice else choice["text"]


def said(choice):
    """The text without a last character that was cut in two: the worker marks it, llama-server leaves it out."""
    text = text_of(choice)
    return text.removesuffix("\N{REPLACEMENT CHARACTER}") if choice["finish_reason"] == "length" else text


def bytes_of(token):
    """The bytes of a token of a completion: such as are no whole characters are written as numbers."""
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes(int(number, 16) for number in token.removeprefix("bytes:").split("\\x")[1:])


def steps_of(choice):
    """The reply's tokens as (bytes, best tokens with their log probabilities)."""
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        for step in logprobs["content"]:
            yield bytes(step["bytes"]), [(bytes(one["bytes"]), one["logprob"]) for one in step["top_logprobs"]]
    else:
        for token, others in zip(logprobs["tokens"], logprobs["top_logprobs"]):
            best = sorted(others.items(), key=lambda one: -one[1])
            yield bytes_of(token), [(bytes_of(one), logprob) for one, logprob in best]


def steps_again(server, token, prompt, fields, text):
    """The tokens of the same reply; None if it is not the same again."""
    wanted = {"logprobs": True, "top_logprobs": 5} if "messages" in prompt else {"logprobs": 5}
    choice, _ = ask(server, token, prompt, {**fields, **wanted})
    return list(steps_of(choice)) if text_of(choice) == text else None


def characters(steps):
    """The tokens as (where their text begins, tokens), in groups that are whole characters together."""
    begin, end, group = 0, 0, []
    for name, best in steps:
        group.append((name, best))
        end += len(name)
        try:
            b"".join(name for name, _ in group).decode()
        except UnicodeDecodeError:
            continue
        yield begin, group
        begin, group = end, []


def parting(name, best, other, place):
    """The token said at a place and the likeliest one with which the other text could go on there, with their log
    probabilities; None where the other's token is not among the best."""
    own = [one for one in best if one[0] == name]
    rivals = [one for one in best if one[0] != name and other.startswith(one[0], place)]
    return [own[0], rivals[0]] if own and rivals else None


def parting_within(group, place, other):
    """The same of the first token of a group of which the other text may have another one: a token that agrees with
    it byte by byte may still not be the other's, where a longer one says the whole character."""
    for name, best in group:
        if (found := parting(name, best, other, place)) or not other.startswith(name, place):
            return found
        place += len(name)
    return None


def parting_at(steps, offset, other):
    """The same of the character that holds a text's byte `offset`."""
    for begin, group in characters(steps):
        if begin + sum(len(name) for name, _ in group) > offset:
            return parting_within(group, begin, other)
    return None


def partings(ours, theirs, offset, our_text, their_text):
    """What both chose between where they first said different tokens; None where that is not known. Where one did not
    say the same again, the other tells what it chose between after `offset` bytes."""
    if ours is None or theirs is None:
        return [ours and parting_at(ours, offset, their_text), theirs and parting_at(theirs, offset, our_text)]
    # llama-server tells a whole character at a time, and of its last token what that was chosen from.
    for number, (begin, group) in enumerate(characters(ours)):
        end = theirs[number] if number < len(theirs) else None
        if end is None or end[0] != b"".join(name for name, _ in group):
            # Of a character of several tokens, it does not tell the first.
            return [parting_within(group, begin, their_text), end and parting(*end, our_text, begin)]
    # The worker ended where llama-server went on.
    return [None, None]


def gap(pair):
    return pair and pair[0][1] - pair[1][1]


def judge(mode, prompt_tokens, gaps):
    known = [value for value in gaps if value is not None]
    if known and min(known) <= TIE:
        return "tie"
    cut_elsewhere = mode == "defaults" or prompt_tokens > STEP_TOKENS
    return "pieces" if known and min(known) <= PIECES and cut_elsewhere else "unexplained"


def compare(mode, worker, peer, token, number, prompt):
    # A user of its own has nothing to share with; its prompt is computed as a whole.
    fields = {"user": f"prompt {number}"} if mode == "alone" else {}
    ours, prompt_tokens = ask(worker, token, prompt, fields)
    theirs, their_tokens = ask(peer, token, prompt, {})
    row = {"prompt": number, "mode": mode, "prompt_tokens": prompt_tokens, "worker": text_of(ours), "peer": text_of(theirs)}
    if prompt_tokens != their_tokens:
        return {**row, "verdict": "unexplained", "note": f"{prompt_tokens} and {their_tokens} prompt tokens"}
    if said(ours) == said(theirs) and ours["finish_reason"] == theirs["finish_reason"]:
        return {**row, "verdict": "equal"}
    offset = len(os.path.commonprefix([row["worker"], row["peer"]]))
    if mode == "alone":
        fields = {"user": f"prompt {number} again"}
    steps = [steps_again(worker, token, prompt, fields, row["worker"]), steps_again(peer, token, prompt, {}, row["peer"])]
    pairs = partings(*steps, len(row["worker"][:offset].encode()), row["worker"].encode(), row["peer"].encode())
    gaps = [gap(pair) for pair in pairs]
    return {**row, "verdict": judge(mode, prompt_tokens, gaps), "offset": offset, "gaps": gaps,
            "pairs": [pair and [(name.decode(errors="backslashreplace"), logprob) for name, logprob in pair] for pair in pairs]}


def line_of(row):
    if row["verdict"] == "equal":
        return f"{row['mode']:9} {row['prompt']:3} equal"
    if "note" in row:
        return f"{row['mode']:9} {row['prompt']:3} {row['verdict']}: {row['note']}"
    show = lambda pair: "no figures" if pair is None else ", ".join(f"{t!r} {p:.3f}" for t, p in pair)
    worker, peer = map(show, row["pairs"])
    return (f"{row['mode']:9} {row['prompt']:3} {row['verdict']} after {row['offset']} characters, "
            f"{row['prompt_tokens']} prompt tokens: worker {worker}; llama-server {peer}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="llama-server")
    parser.add_argument("--bin", default=os.path.join(ROOT, "target/release"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompts", default="", help="only these, by number, such as 3,17")
    parser.add_argument("--out", default=os.path.join(ROOT, "target/compare"))
    options = parser.parse_args()
    chosen = [int(number) for number in options.prompts.split(",") if number] or range(len(PROMPTS))
    # Ends what was started before this program itself ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    token, layout, rows = os.urandom(24).hex(), (1, CONTEXT_TOKENS), []
    # As a worker computes that does without flash attention: in pieces of 256 tokens.
    peer = start_peer(options, "llama-server", layout, "--no-cache-prompt", "--flash-attn", "off", "-ub", "256")
    servers = [peer]
    try:
        wait_ready(peer)
        for mode, flags in MODES.items():
            worker = start_worker(options, "llama", layout, token, *flags)
            servers.append(worker)
            wait_ready(worker)
            for number in chosen:
                rows.append(compare(mode, worker, peer, token, number, PROMPTS[number]))
                print(line_of(rows[-1]), flush=True)
            stop(servers.pop())
    finally:
        for server in servers:
            stop(server)
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "results.json"), "w") as file:
        json.dump({"date": time.strftime("%Y-%m-%d"), "machine": machine(options), "rows": rows}, file, indent=1)
    verdicts = ("equal", "tie", "pieces", "unexplained")
    print("\n| worker | prompts |", " | ".join(verdicts), "|\n|---|---|" + "---|" * len(verdicts))
    for mode in MODES:
        found = [row["verdict"] for row in rows if row["mode"] == mode]
        print(f"| {mode} | {len(found)} |", " | ".join(str(found.count(verdict)) for verdict in verdicts), "|")
    sys.exit(any(row["verdict"] == "unexplained" for row in rows))


if __name__ == "__main__":
    main()
