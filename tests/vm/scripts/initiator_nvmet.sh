#!/bin/sh
# Our initiator against the kernel's own target: content, digests, queue depths, a target killed
# under load, a namespace that changes.
# vm: build=nvmf/initiator_verify file=tests/conform/nvmet.sh:/usr/lib/ubs/nvmet.sh
# vm: limit=180
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/nvmet.sh

NQN=nqn.2026-01.io.example:peer PORT=4420
modprobe -a loop
truncate -s 256M /tmp/backing
loop=$(losetup --show --sector-size 4096 -f /tmp/backing)
nvmet_export "$NQN" "$loop" "$PORT"

verify() {
    say "verify $*"
    initiator_verify "127.0.0.1:$PORT" "$NQN" 1 "$@" > /tmp/verify.out 2> /tmp/verify.err \
        || { cat /tmp/verify.out /tmp/verify.err; fail "initiator_verify $*"; }
    cat /tmp/verify.out
}

verify seconds=3 seed=1 blocks=4096
verify seconds=1 seed=2 blocks=2048 depth=2
verify seconds=1 seed=3 blocks=16384 depth=128
verify seconds=1 seed=4 blocks=2048 hdgst
verify seconds=1 seed=5 blocks=2048 ddgst
verify seconds=2 seed=6 blocks=2048 hdgst ddgst

say 'a target that goes away returns every request'
initiator_verify "127.0.0.1:$PORT" "$NQN" 1 seconds=30 loss > /tmp/loss.out 2> /tmp/loss.err &
loss=$!
wait_for 10 'the initiator to be ready' grep -q '^ready' /tmp/loss.err
sleep 1
nvmet_stop "$NQN" "$PORT"
wait "$loss" || { cat /tmp/loss.out /tmp/loss.err; fail 'requests were lost with the target'; }
cat /tmp/loss.out /tmp/loss.err
nvmet_start "$NQN" "$PORT"
verify seconds=1 seed=7 blocks=2048

say 'a namespace that changes is announced'
initiator_verify "127.0.0.1:$PORT" "$NQN" 1 seconds=4 blocks=2048 > /tmp/aen.out 2> /tmp/aen.err &
watch=$!
wait_for 10 'the initiator to be ready' grep -q '^ready' /tmp/aen.err
truncate -s 300M /tmp/backing
losetup -c "$loop"
echo 1 > "/sys/kernel/config/nvmet/subsystems/$NQN/namespaces/1/revalidate_size"
wait_for 10 'the announcement' grep -q '^namespaces changed' /tmp/aen.err
wait "$watch" || { cat /tmp/aen.out /tmp/aen.err; fail 'the announcement disturbed the work'; }

say 'what cannot be is refused with a reason'
refuses 'a subsystem nobody exports' \
    initiator_verify "127.0.0.1:$PORT" nqn.2026-01.io.example:nobody 1 seconds=1
cat /tmp/refuses.out
grep -q 'Connecting' /tmp/refuses.out || fail 'the refusal does not name the step'
refuses 'a port nobody listens on' initiator_verify 127.0.0.1:4 "$NQN" 1 seconds=1
refuses 'a namespace nobody has' initiator_verify "127.0.0.1:$PORT" "$NQN" 9 seconds=1

nvmet_remove "$NQN" "$PORT"
losetup -d "$loop"
rm /tmp/backing
say 'all holds'
