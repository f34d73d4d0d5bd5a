#!/bin/sh
# The kernel's own target meets every claim of tests/conform/host.sh: the measure itself is right.
# vm: file=tests/conform/host.sh:/usr/lib/ubs/host.sh file=tests/conform/nvmet.sh:/usr/lib/ubs/nvmet.sh
# vm: limit=600
ADDRESS=127.0.0.1 PORT=4420 NQN=nqn.2026-01.io.example:peer
. /usr/lib/ubs/host.sh
. /usr/lib/ubs/nvmet.sh

modprobe -a loop nvme-tcp
truncate -s 256M /tmp/backing
loop=$(losetup --show --sector-size 4096 -f /tmp/backing)
nvmet_export "$NQN" "$loop" "$PORT"
stop() { nvmet_stop "$NQN" "$PORT"; }
start() { nvmet_start "$NQN" "$PORT"; }

conforms
survives_restart stop start
disconnected
CONNECT='-g -G'
connected
keeps_data
disconnected

nvmet_remove "$NQN" "$PORT"
losetup -d "$loop"
rm /tmp/backing
say 'all claims hold'
