#!/bin/sh
# The power of everything is cut under load: the machine is killed as it is, its disks are kept.
# After the next boot the cluster comes up by itself, and by the journal, which was kept on the host,
# everything flushed is there; what was read stays; in the end the replicas are the same.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify mem=3G limit=300 disk=2G,serial=cluster
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh stream=journal
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

new_cluster
ubsctl volume create v1 --size 64MiB --replicas 3 --wait
attach v1 dev
sync
ubs-verify write $dev --journal /dev/virtio-ports/journal --fresh --rate 400 --depth 8 > /tmp/verify.out 2>&1 &
writes() { awk '{print $5}' /sys/block/${dev##*/}/stat; }
enough() { [ "$(writes)" -gt 1500 ]; }
wait_for 60 "load" enough
cut_the_power
# vm: cut
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

cp /streams/journal /tmp/j
mount_cluster
cluster_up
device() { dev=$(ubsctl volume show v1 -o json | field device); [ -b "$dev" ]; }
wait_for 90 "the device" device
ubs-verify check $dev --journal /tmp/j --since unclean > /tmp/verify.out || { cat /tmp/verify.out; lose "flushed data is gone"; }
cat /tmp/verify.out
ubs-verify run $dev --journal /tmp/j --depth 8 --seed 2 --ops 300 > /tmp/verify.out || { cat /tmp/verify.out; lose "after the reconciliation"; }
ubsctl volume detach v1 --wait || lose "detach"
same_replicas v1
cluster_down
