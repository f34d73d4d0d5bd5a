#!/bin/sh
# The Linux host finds every claim of tests/conform/host.sh true of our target over memory, with
# each digest, both and none, over kill -9 and restart of the target, and with one short queue.
# vm: build=nvmf/ram_target
# vm: file=tests/conform/host.sh:/usr/lib/ubs/host.sh
# vm: limit=600
ADDRESS=127.0.0.1 PORT=4421 NQN=nqn.2026-01.io.ublkstor:storaged:ram
. /usr/lib/ubs/host.sh

modprobe nvme-tcp
out=/tmp/ram_target.out
start() {
    ram_target "$ADDRESS:$PORT" 256 > $out 2>&1 &
    TARGET=$!
    wait_for 30 'the target to listen' grep -q '^listening' $out
}
stop() { kill -9 "$TARGET"; wait "$TARGET" 2> /dev/null || true; }

start
same 'what the target says' "listening on $ADDRESS:$PORT nqn $NQN" "$(head -n 1 $out)"
conforms
survives_restart stop start
disconnected
for CONNECT in -g -G '-g -G'; do
    connected
    say "digests: $CONNECT"
    keeps_data
    zeroes_and_discards
    refuses_nonsense
    disconnected
done

connected
say "a restart with digests: $CONNECT"
survives_restart stop start
disconnected

CONNECT='--hdr-digest --nr-io-queues=1 --queue-size=16'
connected
say "one short queue: $CONNECT"
fio_verify "$DEV" 4M --iodepth=64
disconnected

kill -0 "$TARGET" || fail "the target died: $(cat $out)"
stop
say 'all claims hold'
