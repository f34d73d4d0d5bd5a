#!/bin/sh
# The server of a disk is killed with -9 under fio, with requests in its hands. Its successor takes
# the disk over: fio sees no error and no wrong byte. Nothing takes over what is not its own.
# vm: build=ublk/ram_disk build=ublk/ublk_admin tool=e2fsck mem=2G limit=300
. /usr/lib/ubs/prelude.sh

modprobe ublk_drv
out=/tmp/ram_disk.out
: > $out
ram_disk --size-mib 128 --delay-us 2000 --protect > $out 2>&1 &
pid=$!
wait_for 30 "the disk" grep -q '^live ' $out
dev=$(sed -n 's/^live //p' $out)
id=${dev##*/ublkb}

fio --name=r --filename=$dev --size=64M --rw=randrw --rwmixread=30 --bs=4k-64k --direct=1 --ioengine=libaio \
    --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_backlog=64 --time_based --runtime=30 \
    --randseed=11 --eta=never > /tmp/fio.out 2>&1 &
fio=$!
inflight() { awk '{print $1 + $2}' /sys/block/ublkb$id/inflight; }
busy() { [ "$(inflight)" -ge 8 ]; }

for round in 1 2 3; do
    wait_for 30 "load" busy
    kill -9 $pid
    wait $pid 2> /dev/null || true
    say "round $round: killed with $(inflight) requests in flight"
    [ -b $dev ] || fail "$dev is gone"
    : > $out
    ram_disk --recover $id --delay-us 2000 --protect > $out 2>&1 &
    pid=$!
    wait_for 60 "recovery" grep -q '^live ' $out
done

say "successors die half-way through their recovery"
wait_for 30 "load" busy
kill -9 $pid
wait $pid 2> /dev/null || true
ublk_admin begin $id
for delay in 0.05 0.08 0.11 0.14 0.17 0.2; do
    ram_disk --recover $id --delay-us 2000 --protect > $out 2>&1 &
    pid=$!
    sleep $delay
    kill -9 $pid
    wait $pid 2> /dev/null || true
    ublk_admin begin $id
done
: > $out
ram_disk --recover $id --delay-us 2000 --protect > $out 2>&1 &
pid=$!
wait_for 60 "recovery" grep -q '^live ' $out
wait_for 30 "load" busy
wait $fio || { cat /tmp/fio.out; fail "fio failed"; }
grep -E 'err=|IOPS=' /tmp/fio.out
grep -q 'err= 0' /tmp/fio.out || fail "fio saw errors"

say "a second server cannot take what is served"
start=$(cut -d. -f1 /proc/uptime)
refuses "a takeover of a served disk" ram_disk --recover $id
grep -q "still served by process $pid" /tmp/refuses.out || fail "$(cat /tmp/refuses.out)"
say "refused after $(($(cut -d. -f1 /proc/uptime) - start)) s"

say "nothing to recover where there is no device"
refuses "a takeover of nothing" ram_disk --recover 55
grep -q "no such device" /tmp/refuses.out || fail "$(cat /tmp/refuses.out)"

say "a file system lives through a kill"
mkfs.ext4 -q -F $dev
mkdir -p /mnt/ram
mount $dev /mnt/ram
dd if=/dev/urandom of=/tmp/plain bs=1M count=16 2> /dev/null
cp /tmp/plain /mnt/ram/copy
kill -9 $pid
wait $pid 2> /dev/null || true
sync &
sync=$!
: > $out
ram_disk --recover $id --protect > $out 2>&1 &
pid=$!
wait_for 60 "recovery" grep -q '^live ' $out
wait $sync
same "mounts of its own disk in the server's namespace" 0 "$(grep -c /mnt/ram /proc/$pid/mountinfo)"
echo 3 > /proc/sys/vm/drop_caches
cmp /tmp/plain /mnt/ram/copy || fail "the copy differs"
umount /mnt/ram
e2fsck -fn $dev > /tmp/fsck.out 2>&1 || fail "$(cat /tmp/fsck.out)"

kill -TERM $pid
wait $pid || fail "exit code $?: $(cat $out)"
[ ! -e $dev ] || fail "$dev is still there"
rm -f /dev/shm/ublk-ram
