"""The servers that are measured and compared, on the starter model and a free port each: starts them,
waits until they answer, ends them. Sends nothing to them but a question for their health.
"""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.path.join(ROOT, "target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf")
ALIAS = "smollm2:135m"
WORKER = "worker"
PEERS = {"llama-server": ["--no-kv-unified"], "llama-server-unified": ["--kv-unified"]}
# With as many slots as it chooses itself, and a cache in memory for conversations that have none.
PEER_OF_ITS_OWN_CHOICE = "llama-server-default"


@dataclass
class Server:
    name: str
    url: str
    process: subprocess.Popen


def free_socket():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def start_worker(options, engine, layout, token, *more):
    """Starts a worker alone, as a hive would: a bound socket and secrets on standard input."""
    listener = free_socket()
    arguments = [
        os.path.join(options.bin, "llm-worker-rbee"), "--worker-id", "w-bench", "--engine", engine,
        "--model", MODEL, "--model-name", ALIAS, "--hive-url", "http://127.0.0.1:9",
        "--slots", str(layout[0]), "--context", str(layout[1]), "--threads", str(options.threads),
        "--lease-seconds", "86400", *more,
    ]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={"LISTEN_FDS": "1", "PATH": os.environ["PATH"], "GOMP_SPINCOUNT": "1000"}, pass_fds=(3,),
        preexec_fn=lambda: os.dup2(listener.fileno(), 3, inheritable=True),
    )
    process.stdin.write(json.dumps({"token": token, "callback_token": token}).encode())
    process.stdin.close()
    port = listener.getsockname()[1]
    listener.close()
    return Server(WORKER, f"http://127.0.0.1:{port}", process)


def start_peer(options, name, layout, *more):
    with free_socket() as listener:
        port = listener.getsockname()[1]
    slots = [] if name == PEER_OF_ITS_OWN_CHOICE else ["-np", str(layout[0]), *PEERS[name]]
    arguments = [
        options.peer, "-m", MODEL, "--port", str(port), "-c", str(layout[0] * layout[1]),
        "-t", str(options.threads), "-tb", str(options.threads), *slots, *more,
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Server(name, f"http://127.0.0.1:{port}", process)


def wait_ready(server):
    port = int(server.url.rsplit(":", 1)[1])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit(f"error: {server.name} does not become ready")


def stop(server):
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def machine(options):
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "threads": options.threads,
            "system": platform.platform(), "commit": git.stdout.strip() or "unknown"}
