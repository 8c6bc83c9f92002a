# Two commands matter: `make run` and `make test`. Both install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PROMPT ?= What is the capital of France? Answer in one sentence.
MODEL := smollm2:135m
BIN := target/release
SOAK_SECONDS ?= 3600
FUZZ_RUNS ?= 100000000
FUZZ_SECONDS ?= 0
export CARGO_TERM_COLOR ?= auto

.PHONY: help run test build model check unit e2e openapi fuzz timing faults soak bench overload compare clean-home

help: ## Shows this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## Builds, fetches the starter model, and answers PROMPT="…" through all four programs
	@scripts/system-packages build
	@scripts/build
	@scripts/starter-model
	@scripts/import-starter-model $(BIN)/rbee $(MODEL)
	@$(BIN)/rbee run -m $(MODEL) --temperature 0 -p "$$PROMPT"
	@scripts/say "the daemons keep running for the next prompt; '$(BIN)/rbee queen stop' stops them"
run: export PROMPT := $(PROMPT)

test: ## Installs what it needs and runs every check and test
	@scripts/system-packages build test
	@$(MAKE) --no-print-directory check build model unit e2e

build: ## Builds the four programs; FEATURES=vulkan (cuda, rocm, metal) builds the worker for GPUs
	@scripts/build $(FEATURES)

model: ## Fetches the starter model into target/rbee-test/models
	@scripts/starter-model

check: ## Format and lints
	cargo fmt --all --check
	@scripts/adjusted-llama
	@python3 -c 'import ast, glob; [ast.parse(open(f).read(), f) for f in glob.glob("scripts/*.py")]'
	cargo clippy --release --workspace --all-targets -- -D warnings

unit: ## Unit and integration tests of all crates, and the repository rules
	cargo test --release --workspace --exclude e2e
	cargo test --release -p e2e --test tidy

e2e: ## Real programs end to end, with echo and with the real model, and the official OpenAI clients
	@scripts/conformance-clients
	cargo test --release -p e2e --test cluster
	cargo test --release -p e2e --test faults

openapi: ## Writes docs/openapi anew, as the programs print it
	@scripts/build
	for daemon in queen-rbee rbee-hive llm-worker-rbee; do $(BIN)/$$daemon --print-openapi >docs/openapi/$$daemon.json; done

fuzz: ## Every target of fuzz/ with libFuzzer: make fuzz FUZZ_RUNS=1000000 FUZZ_SECONDS=600
	@scripts/system-packages build
	FUZZ_RUNS="$(FUZZ_RUNS)" FUZZ_SECONDS="$(FUZZ_SECONDS)" scripts/fuzz

timing: ## Whether the time a comparison of tokens takes tells anything; needs a quiet machine
	cargo run --release -p auth-min --example timing

faults: ## Every fault of docs/FAULTS.md in full; as root, or some rows are not run
	@scripts/system-packages build test
	@scripts/build
	RBEE_FAULTS=full cargo test --release -p e2e --test faults

soak: ## Random faults for an hour: make soak SOAK_SECONDS=600
	@scripts/system-packages build test
	@scripts/build
	RBEE_SOAK_SECONDS=$(SOAK_SECONDS) cargo test --release -p e2e --test faults soak

bench: ## Every row of docs/BENCHMARKS.md: make bench PEER=/path/to/llama-server
	@test -n "$(PEER)" || { echo 'usage: make bench PEER=/path/to/llama-server [BATCHED_BENCH=/path/to/llama-batched-bench] [BENCH_OPTIONS="--rows unique --rounds 7"]' >&2; exit 2; }
	@scripts/build
	@scripts/starter-model
	python3 scripts/bench.py --peer "$(PEER)" --bin $(BIN) $(if $(BATCHED_BENCH),--batched-bench "$(BATCHED_BENCH)") $(BENCH_OPTIONS)

overload: ## Goodput and latency at up to five times the load that a cluster can serve
	@scripts/build
	@scripts/starter-model
	python3 scripts/overload.py --bin $(BIN) $(OVERLOAD_OPTIONS)

compare: ## Greedy replies held to llama-server's: make compare PEER=/path/to/llama-server
	@test -n "$(PEER)" || { echo 'usage: make compare PEER=/path/to/llama-server [COMPARE_OPTIONS="--threads 1"]' >&2; exit 2; }
	@scripts/build
	@scripts/starter-model
	python3 scripts/compare.py --peer "$(PEER)" --bin $(BIN) $(COMPARE_OPTIONS)
