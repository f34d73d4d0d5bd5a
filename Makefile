# The one door. `make` alone says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
SCRIPT ?= tests/vm/scripts/smoke.sh

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r t d; do printf '  make %-8s %s\n' "$$t" "$$d"; done

.PHONY: vm
vm: ## Boot a real kernel and run SCRIPT= in it
	$(CARGO) run -q -p vmtest -- run --script $(SCRIPT)
