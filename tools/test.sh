#!/usr/bin/env bash
# What CI runs. Every step runs even if one before it failed; the end says what passed, failed and
# was skipped, and why.
#   tools/test.sh all     everything
#   tools/test.sh verify  the read-only checks that need no VM
set -uo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
wanted=${1:-all}
passed=() failed=() skipped=()

step() { # step NAME COMMAND...
    local name=$1 began=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@"; then passed+=("$name ($((SECONDS - began)) s)"); else failed+=("$name"); fi
}
skip() { # skip NAME WHY
    printf '\n== %s skipped: %s\n' "$1" "$2"
    skipped+=("$1: $2")
}
has() { command -v "$1" > /dev/null; }

# Built with the features of the whole workspace, as the tests are, so that no crate is built once more for it.
xtask() {
    "$cargo" build -q --workspace --bin xtask && "${CARGO_TARGET_DIR:-target}/debug/xtask" "$@"
}

rust_tests() {
    if has cargo-nextest; then
        "$cargo" nextest run --workspace --no-fail-fast -E 'not binary(vm)'
    else
        "$cargo" test --workspace --exclude vmtest --lib --bins --tests --no-fail-fast &&
            "$cargo" test -p vmtest --lib --bins
    fi
}
units() {
    tests/deploy/units.sh
    case $? in
        0) passed+=("units") ;;
        77) skipped+=("units: systemd-analyze is not installed") ;;
        *) failed+=("units") ;;
    esac
}
# The regression seeds, and fresh ones from a range that the commit names, so that every change meets
# others and the same commit the same. UBS_SIM_FIRST and UBS_SIM_SEEDS choose; on a slow machine it
# ends after UBS_SIM_SECONDS with fewer seeds.
simulate() {
    local commit
    commit=$(git rev-parse HEAD 2> /dev/null) || commit=1
    local first=${UBS_SIM_FIRST:-$((16#${commit:0:8}))000} seeds=${UBS_SIM_SEEDS:-300} seconds=${UBS_SIM_SECONDS:-240}
    printf 'tools/ubs-sim/seeds.txt and seeds [%d, %d); again: UBS_SIM_FIRST=%d\n' \
        "$first" $((first + seeds)) "$first"
    "$cargo" run -q --profile sim -p ubs-sim -- run --file tools/ubs-sim/seeds.txt \
        --first "$first" --seeds "$seeds" --seconds "$seconds"
}
canaries() {
    "$cargo" run -q --profile sim -p ubs-sim --features canary -- \
        canary --all --known tools/ubs-sim/canaries.txt
}
# 100 000 states, the first histories: enough to find what a change breaks. `make crash` tries millions.
crash_states() {
    UBS_CRASH_STATES=100000 "$cargo" test --profile sim -p store --lib every_crash_state -- --nocapture
}
vm_tests() {
    local log
    log=$(mktemp)
    "$cargo" test --workspace --test vm 2>&1 | tee "$log"
    local status=${PIPESTATUS[0]} why
    why=$(sed -n 's/^vm: .* scripts skipped: //p' "$log")
    rm -f "$log"
    if [ "$status" != 0 ]; then failed+=("vm"); elif [ -n "$why" ]; then skipped+=("vm: $why"); else passed+=("vm"); fi
}

if has cargo-fmt; then step fmt "$cargo" fmt --all --check; else skip fmt "rustfmt is not installed"; fi
if has cargo-clippy; then
    step clippy "$cargo" clippy --workspace --all-targets -- -D warnings
else
    skip clippy "clippy is not installed"
fi
step tests rust_tests
step layers xtask layers
step doctests "$cargo" test --workspace --doc --no-fail-fast
printf '\n== units\n'
units
if [ "$wanted" = verify ]; then
    step docs env RUSTDOCFLAGS="-D warnings" "$cargo" doc --workspace --no-deps --document-private-items
else
    if has java; then
        step tla xtask tla
        step trace xtask trace
    else
        skip "tla, trace" "java is not installed"
    fi
    step crash crash_states
    step sim simulate
    step sim-canary canaries
    printf '\n== vm\n'
    vm_tests
fi

printf '\n-- %d passed, %d failed, %d skipped\n' ${#passed[@]} ${#failed[@]} ${#skipped[@]}
for one in "${passed[@]}"; do printf '   passed   %s\n' "$one"; done
for one in "${skipped[@]}"; do printf '   skipped  %s\n' "$one"; done
for one in "${failed[@]}"; do printf '   FAILED   %s\n' "$one"; done
[ ${#failed[@]} = 0 ]
