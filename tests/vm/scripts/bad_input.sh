#!/bin/sh
# What an operator can do wrong with real daemons and a real block device, and full stores: each
# gets a sentence and an exit code, and nothing is lost.
# vm: build=metad build=storaged build=clientd build=ubsctl mem=3G limit=400 disk=2G,serial=cluster alone
. /usr/lib/ubs/prelude.sh

modprobe ublk_drv
mkfs.ext4 -q -F /dev/disk/by-serial/cluster
mkdir -p /mnt/cluster
mount /dev/disk/by-serial/cluster /mnt/cluster
dir=/mnt/cluster/dev
ubsctl dev up --dir $dir --store-bytes 100663296 --timeout 90 > /tmp/up.out || { cat /tmp/up.out $dir/*.log; fail "dev up"; }
export $(grep '^export UBS_METAD' /tmp/up.out | cut -d' ' -f2)

# told CODE PART COMMAND...: it ends with that code and says that.
told() {
    _code=$1 _part=$2 _rc=0
    shift 2
    "$@" > /tmp/told 2>&1 || _rc=$?
    same "exit code of '$*' ($(cat /tmp/told))" "$_code" $_rc
    grep -q -- "$_part" /tmp/told || fail "'$*' does not say '$_part': $(cat /tmp/told)"
    say "$_code: $(head -n 1 /tmp/told)"
}
in_sync() { ubsctl volume ls | grep -q "$1 .*3/3"; }
sum() { dd if="$dev" bs=1M count="$1" iflag=direct 2> /dev/null | sha256sum; }

ubsctl doctor --config-dir $dir || fail "the doctor found a problem"
ubsctl volume create v1 --size 160MiB --wait
dev=$(ubsctl volume attach v1 --on dev --wait -o name)
[ -b "$dev" ] || { tail -n 40 $dir/clientd.log; fail "no device: '$dev'"; }

say "a device that is in use"
told 3 'attached on dev' ubsctl volume delete v1 --yes
told 3 'clientd runs on dev' ubsctl host rm dev
mkfs.ext4 -q -F -E nodiscard "$dev"
told 3 'ext2/3/4 file system' ubsctl store prepare "$dev" --cluster 11111111-1111-1111-1111-111111111111
mkdir -p /mnt/v1
mount "$dev" /mnt/v1
told 3 'in use' ubsctl store prepare "$dev" --wipe
echo kept > /mnt/v1/file
sync

say "a clientd that is gone: the doctor sees its device, the next clientd takes it"
ubsctl dev kill --dir $dir clientd
told 0 'has no daemon any more' ubsctl doctor --host-only --config-dir $dir
ubsctl dev start --dir $dir clientd
same 'the file' kept "$(cat /mnt/v1/file)"
served() { ubsctl doctor --host-only --config-dir $dir > /tmp/doctor && ! grep -q 'no daemon' /tmp/doctor; }
wait_for 60 'the device to be served again' served

say "a detach while it is mounted is refused, and carried out when it is closed"
told 4 'still attached' ubsctl volume detach v1 --wait --timeout 3
told 0 'is asked to detach it and has not yet' ubsctl volume explain v1
same 'the file' kept "$(cat /mnt/v1/file)"
umount /mnt/v1
detached() { [ ! -e "$dev" ] && ubsctl volume ls | grep -q 'v1 .*detached'; }
wait_for 60 'the detach' detached

say "a full store: no space, nothing lost, room comes back"
dev=$(ubsctl volume attach v1 --on dev --wait -o name)
mount "$dev" /mnt/v1
same 'the file' kept "$(cat /mnt/v1/file)"
umount /mnt/v1
dd if=/dev/urandom of=/tmp/plain bs=1M count=16 2> /dev/null
dd if=/tmp/plain of="$dev" bs=1M oflag=direct 2> /dev/null
before=$(sum 16)
rc=0
dd if=/dev/urandom of="$dev" bs=1M seek=16 oflag=direct > /tmp/dd.out 2>&1 || rc=$?
cat /tmp/dd.out
[ $rc != 0 ] || fail "160 MiB fitted into stores of 96 MiB"
grep -q 'No space left on device' /tmp/dd.out || { tail -n 40 $dir/clientd.log; fail "not ENOSPC"; }
ubsctl store ls
ubsctl volume ls
same 'what was written before' "$before" "$(sum 16)"
blkdiscard -o $((32 << 20)) -l $((128 << 20)) "$dev"
ubsctl store ls
dd if=/tmp/plain of="$dev" bs=1M seek=40 oflag=direct 2> /tmp/dd.out || { cat /tmp/dd.out; tail -n 40 $dir/clientd.log; fail "no room after the discard"; }
same 'what was written before' "$before" "$(sum 16)"
wait_for 60 'all replicas to be in sync' in_sync v1
ubsctl volume explain v1
ubsctl volume detach v1 --wait
dev=$(ubsctl volume attach v1 --on dev --wait -o name)
same 'what was written before, after a new attach' "$before" "$(sum 16)"
ubsctl volume detach v1 --wait
ubsctl volume delete v1 --yes --wait

say "metad: its leader killed, then its majority"
leader=$(ubsctl status | sed -n 's/.*member \([0-9]\) leads.*/\1/p')
ubsctl dev kill --dir $dir metad$leader
ubsctl volume create v2 --size 64MiB --wait
told 0 'does not answer' ubsctl doctor --cluster-only
other=$((leader % 3 + 1))
ubsctl dev kill --dir $dir metad$other
told 1 'systemctl status metad' ubsctl volume ls --timeout 6
told 1 'only 1 of 3 members answers' ubsctl doctor --cluster-only
ubsctl dev start --dir $dir metad$leader
ubsctl dev start --dir $dir metad$other
ubsctl volume show v2 > /dev/null
ubsctl dev down --dir $dir
umount /mnt/cluster
