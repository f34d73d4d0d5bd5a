#!/bin/sh
# The Linux host finds every claim of tests/conform/host.sh true of our target over memory, with
# and without digests.
# vm: build=nvmf/ram_target
# vm: file=tests/conform/host.sh:/usr/lib/ubs/host.sh
# vm: limit=240
ADDRESS=127.0.0.1 PORT=4421 NQN=nqn.2026-01.io.ublkstor:storaged:ram
. /usr/lib/ubs/host.sh

modprobe nvme-tcp
start() {
    ram_target "$ADDRESS:$PORT" 256 > /tmp/ram_target.out 2>&1 &
    TARGET=$!
    wait_for 10 'the target to listen' grep -q '^listening' /tmp/ram_target.out
}
stop() { kill -9 "$TARGET"; wait "$TARGET" 2> /dev/null || true; }

start
conforms
survives_restart stop start
disconnected
for CONNECT in -g -G '-g -G'; do
    connected
    keeps_data
    disconnected
done
stop
say 'all claims hold'
