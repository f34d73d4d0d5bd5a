#!/bin/sh
# One of three stores loses power under a load that verifies every block, and only what was flushed is on
# its medium afterwards: no IO error, no wrong byte. It comes back at once, or after it was removed. In the
# end all replicas are the same, block by block.
# The store is on a drive with a volatile cache: a loop device, whose writes stay in the page cache of the
# block device below until a flush. That is a device-mapper target: while it refuses all IO, the loop device
# is taken away, and with it what could not be written.
# UBS_TEST_CUTS: how often.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify mem=3G limit=1800 tool=dmsetup
# vm: disk=2G,serial=cluster disk=384M,serial=platter file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

cuts=${UBS_TEST_CUTS:-2}
drive=/dev/loop7
export DM_DISABLE_UDEV=1
# Nothing reaches the medium by itself, neither in time nor because there is much of it.
echo 0 > /proc/sys/vm/dirty_writeback_centisecs
echo 80 > /proc/sys/vm/dirty_background_ratio
echo 90 > /proc/sys/vm/dirty_ratio
modprobe dm-mod
modprobe loop
below=$(readlink -f /dev/disk/by-serial/platter)
sectors=$(blockdev --getsz "$below")
[ -b $drive ] || mknod $drive b 7 7

platter() { # platter TABLE: from now on
    dmsetup load platter --table "0 $sectors $1"
    dmsetup suspend --noflush --nolockfs platter
    dmsetup resume platter
}
no_drive() { ! losetup $drive; }
view() { head -c 33554432 $drive | md5sum; } # where the first extents are
cut_power() { # sets $lost to 1 if something was
    ubsctl dev kill --dir $dir storaged2 > /dev/null
    before=$(view)
    platter error
    losetup -d $drive
    wait_for 30 "the end of $drive" no_drive
    platter "linear $below 0"
    losetup $drive /dev/mapper/platter
    blockdev --flushbufs $drive
    lost=0
    [ "$before" = "$(view)" ] || lost=1
}

new_cluster --metads 1
dmsetup create platter --table "0 $sectors linear $below 0"
losetup $drive /dev/mapper/platter
ubsctl dev stop --dir $dir storaged2 > /dev/null
same "bytes of the drive" "$(stat -c %s $dir/storaged2/store.img)" "$(blockdev --getsize64 $drive)"
dd if=$dir/storaged2/store.img of=$drive bs=1M conv=fsync 2> /dev/null
rm $dir/storaged2/store.img
ln -s $drive $dir/storaged2/store.img
ubsctl dev start --dir $dir storaged2 > /dev/null
stores() { ubsctl volume create v1 --size 64MiB --replicas 3 --wait; }
wait_for 300 "three stores to report" stores
attach v1 dev
ubs-verify run $dev --journal /tmp/j --fresh --rate 100 --depth 4 > /tmp/verify.out 2>&1 &
verify=$!
whole() { state_is v1 online; }
degraded() { state_is v1 degraded; }

count=0 round=0
while [ $round -lt "$cuts" ]; do
    round=$((round + 1))
    moves "the beginning of round $round" 180
    cut_power
    count=$((count + lost))
    if [ $((round % 2)) = 0 ]; then
        wait_for 180 "the removal of its store in round $round" degraded
        moves "the removal of its store in round $round" 180
    fi
    ubsctl dev start --dir $dir storaged2 > /dev/null
    moves "the return of the store in round $round" 180
    wait_for 300 "a whole volume after round $round" whole
    say "round $round of $cuts: something was lost: $lost"
done
[ $count -gt 0 ] || lose "no cut has lost anything: the drive has no cache"

say "the judgement"
kill -TERM $verify
ends $verify 0 "the load"
cat /tmp/verify.out
ubsctl volume detach v1 --wait || lose "detach"
same_replicas v1
cluster_down
losetup -d $drive
dmsetup remove platter
