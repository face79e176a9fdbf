# What a developer says. Everything here makes the machine ready by itself (Debian 12, root, rustup's stable toolchain) and
# is cheap when there is nothing to do. One cargo profile throughout, `dev`: what has to be fast runs in the kernel.
.PHONY: help setup build install lint test fuzz cures bench chaos demo clean-lab

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## Install what is missing: system packages, eBPF toolchain, guest image
	@scripts/setup.sh

build: setup ## All programs, and what the lab preloads
	cargo build --workspace

install: ## Place release programs, units and settings below DESTDIR (docs/install.md); they are built before, by anybody
	@scripts/install.sh

lint: setup ## Formatting, clippy (warnings being errors), which crate may import which, and what others' code comes in
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --quiet --workspace --test import_graph
	@scripts/deny.sh

# Programs, too, are built with what tests ask of crates, so that all is compiled once.
test: lint ## Lint, then all tests (root: namespaces, BPF, QEMU)
	cargo build --workspace --all-targets
	cargo test --workspace

fuzz: ## Look for bytes that a decoder does not come back from; TARGET=qmp SECONDS=60, TARGET= for a list
	@scripts/fuzz.sh $(if $(TARGET),"$(TARGET)" "$(or $(SECONDS),60)")

cures: setup ## Prove that each cure is one: without it its test fails (RUNS=10 of each; nothing of it stays)
	@scripts/cures.sh $(RUNS)

demo: build ## Move a guest there and back under traffic; ARGS="--runs 20 --pps 2000 --json out.json", or "--idle"
	target/debug/throughline-lab demo $(ARGS)

bench: build ## Measure into bench/results.md, 40 minutes; ARGS="--rounds 2 --only continuity"
	@scripts/bench-setup.sh
	target/debug/throughline-lab bench $(ARGS)

chaos: build ## Break each part at each moment of a move, into docs/faults.md; ARGS="--only source-agent/kill"
	target/debug/throughline-lab chaos $(ARGS)

clean-lab: build ## Take down a lab that was left up
	target/debug/throughline-lab down
