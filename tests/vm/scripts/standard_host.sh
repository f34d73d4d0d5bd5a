#!/bin/sh
# A plain Linux host, without clientd, uses an open-access volume under its own NQN: refused before
# an operator added it, and again after it was forgotten, when it loses the namespace it had.
# vm: build=metad build=storaged build=clientd build=ubsctl limit=240 disk=1G,serial=cluster
. /usr/lib/ubs/prelude.sh

modprobe nvme-tcp
mkfs.ext4 -q -F /dev/disk/by-serial/cluster
mkdir -p /mnt/cluster
mount /dev/disk/by-serial/cluster /mnt/cluster
dir=/mnt/cluster/dev
ubsctl dev up --dir $dir --metads 1 --storageds 1 --store-bytes 268435456 --no-clientd --timeout 90 > /tmp/up.out ||
    { cat /tmp/up.out $dir/*.log; fail "dev up"; }
export $(grep '^export UBS_METAD' /tmp/up.out | cut -d' ' -f2)

ubsctl volume create plain --size 128MiB --replicas 1 --stride 1 --open-access --wait
ubsctl volume show plain
how=$(ubsctl volume show plain | grep '^nvme connect')
sub=${how##* }
uuid=$(cat /proc/sys/kernel/random/uuid)
nqn=nqn.2014-08.org.nvmexpress:uuid:$uuid
connect() {
    $how --hostnqn "$nqn" --hostid "$uuid" \
        --ctrl-loss-tmo=0 --reconnect-delay=1
}

say "a host that nobody added is refused"
refuses 'an unknown host' connect
say "added: it connects, and keeps data"
ubsctl host add web1 --nqn "$nqn"
wait_for 20 'the server to admit it' connect
wait_for 20 'the namespace' nvme_of "$sub"
dev=$(nvme_of "$sub")
same 'size' $((128 << 20)) "$(blockdev --getsize64 "$dev")"
fio_verify "$dev" 4M
mkfs.ext4 -q -F -E nodiscard "$dev"
ubsctl host ls
ubsctl host ls -o json | grep -q '"standard": true' || fail 'it is not shown as a standard host'
rc=0
ubsctl volume attach plain --on web1 2> /tmp/said || rc=$?
same 'exit code of an attach on it' 2 $rc
grep -q 'nvme connect' /tmp/said || fail "no remedy: $(cat /tmp/said)"

say "a server that restarts admits it without asking"
online() { ubsctl server ls -o json | grep -q '"liveness": *"online"'; }
offline() { ! online; }
ubsctl dev stop --dir $dir storaged1
wait_for 20 'metad to notice the stop' offline
ubsctl dev start --dir $dir storaged1
wait_for 30 'the server to report' online
ubsctl doctor --config-dir $dir || fail "the doctor found a problem"

say "forgotten: the namespace goes, and it is refused"
nvme disconnect -n "$sub" > /dev/null
wait_for 20 'the server to admit it again' connect
wait_for 20 'the namespace' nvme_of "$sub"
ubsctl host rm web1
gone() { ! nvme_of "$sub"; }
wait_for 20 'the namespace to go' gone
nvme disconnect -n "$sub" > /dev/null
refuses 'a forgotten host' connect
ubsctl volume delete plain --yes --wait
ubsctl dev down --dir $dir
umount /mnt/cluster
