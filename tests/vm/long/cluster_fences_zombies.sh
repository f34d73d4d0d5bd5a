#!/bin/sh
# A client host that is stopped in mid-write loses its volume to another host and is woken up: nothing
# it writes counts any more, its device fails, the new holder's data stands. Then the holder is killed
# in mid-write and never asked again: the next one finds everything that was flushed, and after it has
# gone, the replicas are the same, block by block. Two clientds of one machine play the two hosts.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify mem=3G limit=600 disk=2G,serial=cluster
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

new_cluster
mkdir $dir/other
sed -e 's/^name = .*/name = "other"/' -e "s|^data_dir = .*|data_dir = \"$dir/other\"|" -e "s|^runtime_dir = .*|runtime_dir = \"$dir/other/run\"|" \
    -e '/^metrics_listen/d' $dir/clientd.toml > $dir/other.toml
clientd --config $dir/other.toml > $dir/other.log 2>&1 &
other=$!
wait_for 60 "the second host" sh -c "ubsctl host ls | grep -q other"
ubsctl volume create v1 --size 64MiB --replicas 3 --wait

attach v1 dev
zombie_dev=$dev
zombie=$(pid_of clientd)
ubs-verify run $dev --journal /tmp/j --fresh --depth 8 --rate 500 --errors-max 40 > /tmp/verify-zombie.out 2>&1 &
zombie_load=$!
writes() { awk '{print $5}' /sys/block/${1##*/}/stat; }
some_writes() { [ "$(writes "$1")" -gt "$2" ]; }
wait_for 60 "load" some_writes $dev 300

say "the host is stopped under load, its volume goes to another"
kill -STOP "$zombie"
ubsctl volume force-detach v1 --yes
attach v1 other
new_dev=$dev
[ "$new_dev" != "$zombie_dev" ] || fail "the same device: $new_dev"
ubs-verify run $new_dev --journal /tmp/j --since unclean --depth 8 --rate 500 --seed 2 --ops 1500 > /tmp/verify-holder.out 2>&1 &
holder_load=$!
wait_for 60 "load of the new holder" some_writes $new_dev 100

say "the zombie wakes up"
kill -CONT "$zombie"
ends $zombie_load 3 "the zombie's load: IO errors, no wrong data"
cat /tmp/verify-zombie.out
ends $holder_load 0 "the new holder's load"
cat /tmp/verify-holder.out
ubs-verify check $new_dev --journal /tmp/j > /tmp/verify-check.out || { cat /tmp/verify-check.out; lose "the new holder's data does not stand"; }

say "the holder is killed in mid-write and its volume goes back"
ubs-verify write $new_dev --journal /tmp/j --depth 8 --rate 500 --seed 3 --flush-every 40 > /tmp/verify-killed.out 2>&1 &
killed_load=$!
before=$(writes $new_dev)
wait_for 60 "load" some_writes $new_dev $((before + 300))
kill -9 $other
wait $other 2> /dev/null || true
ubsctl volume force-detach v1 --yes
attach v1 dev
ubs-verify check $dev --journal /tmp/j --since unclean > /tmp/verify-check.out || { cat /tmp/verify-check.out; lose "flushed data is gone"; }
cat /tmp/verify-check.out
ubs-verify run $dev --journal /tmp/j --ops 300 --seed 4 > /tmp/verify-after.out || { cat /tmp/verify-after.out; lose "after the reconciliation"; }
ubsctl volume detach v1 --wait || lose "detach"
same_replicas v1

say "the killed host comes back and clears away what it left"
for one in 1 2 3; do ubsctl dev start --dir $dir storaged$one > /dev/null; done
clientd --config $dir/other.toml >> $dir/other.log 2>&1 &
other=$!
ends $killed_load 3 "the load on the killed host's device"
kill -TERM $other
wait $other || lose "the second clientd's end"
cluster_down
