#!/bin/sh
# Daemons chosen by a seed are killed with -9, one after the other, under a load that verifies every
# block: no IO error, no wrong byte. Then each is stopped and started in order, and the server that is
# being resilvered is killed again and again. In the end all replicas are the same, block by block.
# UBS_TEST_KILLS: rounds; UBS_TEST_SEED: which daemons.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify mem=3G limit=1800 disk=2G,serial=cluster
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

kills=${UBS_TEST_KILLS:-20}
seed=${UBS_TEST_SEED:-$(date +%s)}
say "seed $seed, $kills kills (UBS_TEST_SEED, UBS_TEST_KILLS)"
new_cluster
ubsctl volume create v1 --size 64MiB --replicas 3 --wait
attach v1 dev
ubs-verify run $dev --journal /tmp/j --fresh --rate 400 --depth 8 > /tmp/verify.out 2>&1 &
verify=$!
whole() { state_is v1 online; }
moves "the start"

begin=$(cut -d. -f1 /proc/uptime)
since() { echo $(($(cut -d. -f1 /proc/uptime) - begin)); }
round=0
for daemon in $(awk -v seed="$seed" -v n="$kills" 'BEGIN {
    srand(seed); split("storaged1 storaged2 storaged3 clientd metad1 metad2 metad3", d, " ");
    for (i = 0; i < n; i++) print d[1 + int(7 * rand())] }'); do
    round=$((round + 1))
    say "$(since) s: round $round of $kills, kill -9 $daemon"
    ubsctl dev kill --dir $dir $daemon > /dev/null
    case $daemon in clientd) ;; *) moves "round $round, $daemon killed" ;; esac
    ubsctl dev start --dir $dir $daemon > /dev/null
    moves "round $round, $daemon started"
    wait_for 90 "a whole volume after round $round ($daemon)" whole
done

say "$(since) s: a rolling restart of everything"
for daemon in storaged1 storaged2 storaged3 clientd metad1 metad2 metad3; do
    ubsctl dev stop --dir $dir $daemon > /dev/null
    ubsctl dev start --dir $dir $daemon > /dev/null
    moves "the restart of $daemon"
    wait_for 90 "a whole volume after the restart of $daemon" whole
done

say "$(since) s: the target of a resilver is killed again and again"
ubsctl dev kill --dir $dir storaged2 > /dev/null
moves "storaged2 killed"
for again in 1 2 3; do
    ubsctl dev start --dir $dir storaged2 > /dev/null
    wait_for 60 "the beginning of resilver $again" sh -c "ubsctl resilver ls | grep -q running || ubsctl volume show v1 -o json | grep -q '\"online\"'"
    ubsctl dev kill --dir $dir storaged2 > /dev/null
    moves "kill $again of the target"
done
ubsctl dev start --dir $dir storaged2 > /dev/null
wait_for 120 "a whole volume" whole

say "$(since) s: the judgement"
kill -TERM $verify
ends $verify 0 "the load"
cat /tmp/verify.out
ubsctl volume detach v1 --wait || lose "detach"
same_replicas v1
cluster_down
