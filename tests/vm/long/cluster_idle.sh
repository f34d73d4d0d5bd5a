#!/bin/sh
# An attached volume that nobody uses: what each daemon costs, in CPU time and in wake-ups. The budget
# of wake-ups follows from the intervals in the configurations and from nothing else.
# UBS_TEST_IDLE_SECONDS: how long to look.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify mem=3G limit=600 disk=2G,serial=cluster
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

seconds=${UBS_TEST_IDLE_SECONDS:-60}
new_cluster
ubsctl volume create v1 --size 64MiB --replicas 3 --wait
attach v1 dev

sample() { # NAME CPU-NS SWITCHES per daemon
    daemons | while read -r name pid; do
        cpu_ns=$(cat /proc/$pid/task/*/schedstat | awk '{n += $1} END {print n}')
        switches=$(cat /proc/$pid/task/*/status | awk '/^voluntary_ctxt_switches/ {n += $2} END {print n}')
        echo "$name $cpu_ns $switches"
    done
}
# Daemons settle: connections, first reports. Then nothing happens but keep-alives and heartbeats.
sleep 10
sample > /tmp/before
sleep "$seconds"
sample > /tmp/after
leader=metad$(ubsctl status | sed -n 's/.*member \([0-9]*\) leads.*/\1/p')

# Every wait that ends is a voluntary switch. What may end one, per second:
#   clientd   3 storage servers, each touched every keep_alive_ms / 2 = 7.5 s: a timer and an answer;
#             a report to metad every report_interval_ms = 5 s: a timer, an answer, and a message
#             to the other thread and back for the figures in it
#   storaged  one client's touches; the same report
#   metad     raft.heartbeat_ms = 500: the leader has a timer and two answers per beat, a follower the
#             message, its storing thread's turn, and its own clock; reports of 4 daemons reach the leader
# Twice of that is allowed: a wake-up may come in two parts (header and payload, two threads).
# CPU time is printed, and bounded only so far that polling shows: in emulation, and without
# optimization, a wake-up costs many times what it costs a real machine.
awk -v s="$seconds" -v leader="$leader" '
    NR == FNR {cpu_ns[$1] = $2; switches[$1] = $3; next}
    {
        cpu = ($2 - cpu_ns[$1]) / 1e9; n = $3 - switches[$1]
        if ($1 == "clientd") per_s = 3 * 2 / 7.5 + 4 / 5
        else if ($1 ~ /^storaged/) per_s = 2 / 7.5 + 4 / 5
        else if ($1 == leader) per_s = 2 * 3 + 4 * 2 / 5
        else per_s = 2 * 3
        allowed = int(2 * per_s * s) + 10
        printf "%-10s %7.3f s CPU (%.3f %%) %6d voluntary switches, %d allowed\n", $1, cpu, 100 * cpu / s, n, allowed
        if (n > allowed) bad = bad " " $1 ":switches"
        if ($1 !~ /^metad/ && cpu > 0.015 * s) bad = bad " " $1 ":cpu"
    }
    END {if (bad != "") {print "over budget:" bad; exit 1}}' /tmp/before /tmp/after || lose "not idle"
ubsctl volume detach v1 --wait || lose "detach"
cluster_down
