# The one door. `make` alone says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
PROFILE ?= dev
SCRIPT ?= tests/vm/scripts/smoke.sh
export CARGO
# What a cluster and its benchmark are made of. Always built with the workspace's features, so that
# the demo, the benchmark and the VM use the same files.
PROGRAMS = metad storaged clientd ubsctl ubs-bench

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r t d; do printf '  make %-8s %s\n' "$$t" "$$d"; done

.PHONY: deps
deps: ## Install the Debian packages that are missing (root or sudo)
	@tools/deps.sh

.PHONY: build
build: deps ## Build all programs (PROFILE=release for the real ones)
	$(CARGO) build --workspace --bins --profile $(PROFILE)

.PHONY: test
test: deps ## Everything CI runs, VM included
	@tools/test.sh all

.PHONY: verify
verify: ## The checks that need no VM; changes nothing
	@tools/test.sh verify

.PHONY: fix
fix: ## Format, and mend what clippy can
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

.PHONY: vm
vm: deps ## Boot a real kernel and run SCRIPT= in it
	$(CARGO) run -q -p vmtest -- run --script $(SCRIPT)

.PHONY: vm-long
vm-long: deps ## The scripts of tests/vm/long, one after the other (half an hour)
	@failed=; for script in tests/vm/long/*.sh; do \
	    $(CARGO) run -q -p vmtest -- run --script $$script || failed="$$failed $$script"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

SEEDS ?= 2000
FIRST ?= 1
.PHONY: sim
sim: deps ## Simulate SEEDS= clusters under faults, from seed FIRST=
	$(CARGO) run -q --profile sim -p ubs-sim -- run --seeds $(SEEDS) --first $(FIRST) --file tools/ubs-sim/seeds.txt

.PHONY: sim-canary
sim-canary: deps ## Switch single mechanisms off: the simulator must catch each (NAME= for one)
	$(CARGO) run -q --profile sim -p ubs-sim --features canary -- canary $(or $(NAME),--all) --known tools/ubs-sim/canaries.txt

.PHONY: bench-store
bench-store: deps ## Measure snapshots, generations and opening of one store into target/bench/store.json
	$(CARGO) build --release --workspace --bin ubs-bench
	$(or $(CARGO_TARGET_DIR),target)/release/ubs-bench store $(if $(QUICK),--quick)

STATES ?= 1000000
.PHONY: crash
crash: deps ## Cut the power of the store's core in STATES= ways (FIRST= history)
	UBS_CRASH_STATES=$(STATES) UBS_CRASH_FIRST=$(FIRST) $(CARGO) test -q --profile sim -p store --lib \
	    every_crash_state -- --nocapture

.PHONY: demo
demo: deps ## A cluster, a volume, a server killed under load: the tour (PROFILE=release)
	@PROFILE=$(if $(filter dev,$(PROFILE)),release,$(PROFILE)) tests/demo/run.sh

.PHONY: tla
tla: deps ## Check the models with TLC, small sizes; what must fail must (minutes)
	@$(CARGO) xtask tla

.PHONY: tla-long
tla-long: deps ## The larger sizes (LIMIT= seconds for each)
	@$(CARGO) xtask tla --long $(if $(LIMIT),--limit-s $(LIMIT))

.PHONY: trace
trace: deps ## Follow runs of the real machines in the models; broken runs must be refused
	@$(CARGO) xtask trace

.PHONY: bench
bench: deps ## Measure the budgets into target/bench/report.json (QUICK=1: under two minutes)
	$(CARGO) build --release --workspace $(PROGRAMS:%=--bin %)
	$(CARGO) build -q -p vmtest
	$(or $(CARGO_TARGET_DIR),target)/release/ubs-bench suite $(if $(QUICK),--quick)
