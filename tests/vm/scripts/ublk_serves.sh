#!/bin/sh
# A RAM disk served by the ublk crate is a good block device: file system, verified writes, discard,
# zeroes, flushes, growth, refusal to go while in use, and a clean end. Idle means asleep.
# vm: build=ublk/ram_disk build=ublk/ublk_admin tool=e2fsck mem=2G limit=300
. /usr/lib/ubs/prelude.sh

modprobe ublk_drv
out=/tmp/ram_disk.out
: > $out
ram_disk --size-mib 256 --protect > $out 2>&1 &
pid=$!
wait_for 30 "the disk" grep -q '^live ' $out
dev=$(sed -n 's/^live //p' $out)
name=${dev##*/}
queue=/sys/block/$name/queue
say "$dev by process $pid"

say "limits"
same "size in sectors" 524288 "$(cat /sys/block/$name/size)"
same "logical block" 4096 "$(cat $queue/logical_block_size)"
same "physical block" 4096 "$(cat $queue/physical_block_size)"
same "smallest IO" 4096 "$(cat $queue/minimum_io_size)"
same "largest IO in KiB" 128 "$(cat $queue/max_hw_sectors_kb)"
same "cache" "write back" "$(cat $queue/write_cache)"
same "fua" 1 "$(cat $queue/fua)"
same "largest discard" 67108864 "$(cat $queue/discard_max_bytes)"
same "largest zeroes" 67108864 "$(cat $queue/write_zeroes_max_bytes)"

say "file system"
mkfs.ext4 -q -F $dev
mkdir -p /mnt/ram
mount $dev /mnt/ram
fio_verify /mnt/ram/file 32M
fio_verify /mnt/ram/large 32M --bs=256k --iodepth=8
workers=$(cat /proc/$pid/task/*/comm | grep -c iou-wrk || true)
same "worker threads that copied payloads" 0 "$workers"

say "protections"
flags=$(cut -d' ' -f9 /proc/$pid/stat)
[ $((flags & 0x80000)) -ne 0 ] || fail "allocations may wait for write-back (task flags $flags)"
grep -q '^VmLck:[^0-9]*[1-9]' /proc/$pid/status || fail "memory is not locked"
same "mounts of its own disk in the server's namespace" 0 "$(grep -c /mnt/ram /proc/$pid/mountinfo)"

say "in use"
kill -TERM $pid
wait_for 30 "the refusal" grep -q 'still serving: /dev/ublkb' $out
dd if=/dev/zero of=/mnt/ram/after bs=4k count=16 conv=fsync 2> /dev/null
umount /mnt/ram

say "a write that was not synced is there after the last close"
dd if=/dev/urandom of=/tmp/plain bs=1M count=8 2> /dev/null
dd if=/tmp/plain of=$dev bs=1M 2> /dev/null
same "content" "$(md5sum < /tmp/plain)" "$(dd if=/dev/shm/ublk-ram bs=1M count=8 2> /dev/null | md5sum)"

say "discard and zeroes"
kib_before=$(du -k /dev/shm/ublk-ram | cut -f1)
blkdiscard -o 0 -l 4194304 $dev
kib_after=$(du -k /dev/shm/ublk-ram | cut -f1)
[ "$kib_after" -le $((kib_before - 4096)) ] || fail "discard freed nothing: $kib_before to $kib_after KiB"
blkdiscard -z -o 4194304 -l 4194304 $dev
same "zeroes" "$(head -c 4194304 /dev/zero | md5sum)" \
    "$(dd if=$dev bs=1M skip=4 count=4 iflag=direct 2> /dev/null | md5sum)"

say "idle"
switches() { cat /proc/$pid/task/*/status | sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' | awk '{n += $1} END {print n}'; }
udevadm settle 2> /dev/null || true
before=$(switches)
sleep 10
after=$(switches)
say "voluntary switches in 10 s: $((after - before)), threads: $(ls /proc/$pid/task | wc -l)"
same "wake-ups of an idle device" 0 $((after - before))
ls /proc/$pid/task | while read -r task; do cat /proc/$pid/task/$task/comm; done | sort | uniq -c

say "growth"
kill -USR1 $pid
wait_for 30 "growth" grep -q 'grown' $out
if grep -q '^grown to 131072 blocks' $out; then
    same "size after growth" 1048576 "$(cat /sys/block/$name/size)"
    dd if=/tmp/plain of=$dev bs=1M seek=500 conv=notrunc,fsync 2> /tmp/dd.err || fail "$(cat /tmp/dd.err)"
    same "content beyond the old end" "$(md5sum < /tmp/plain)" \
        "$(dd if=$dev bs=1M skip=500 count=8 iflag=direct 2> /dev/null | md5sum)"
else
    say "this kernel cannot grow a live device: $(grep 'not grown' $out)"
fi

say "a clean end"
kill -TERM $pid
wait $pid || fail "exit code $?: $(cat $out)"
[ ! -e $dev ] || fail "$dev is still there"
[ ! -e /sys/class/ublk-char/ublkc${name#ublkb} ] || fail "the control device is still there"
tail -n 1 $out
for kind in reads writes fua_writes flushes discards zeroes; do
    grep -qE "[ {]$kind: [1-9]" $out || fail "no $kind seen"
done
rm -f /dev/shm/ublk-ram
