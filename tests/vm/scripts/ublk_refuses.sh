#!/bin/sh
# What cannot work says why, and few buffers make requests wait, not fail.
# vm: build=ublk/ram_disk build=ublk/ublk_admin tool=e2fsck mem=2G limit=300
. /usr/lib/ubs/prelude.sh

say "without the module"
rmmod ublk_drv 2> /dev/null || true
refuses "a disk without the module" ram_disk --size-mib 16
grep -q 'run `modprobe ublk_drv`' /tmp/refuses.out || fail "$(cat /tmp/refuses.out)"

modprobe ublk_drv
out=/tmp/ram_disk.out
: > $out
ram_disk --size-mib 64 --id 7 --queues 2 --depth 64 --large-slots 2 > $out 2>&1 &
pid=$!
wait_for 30 "the disk" grep -q '^live /dev/ublkb7' $out
same "queues" 2 "$(ls /sys/block/ublkb7/mq | wc -l)"

say "a taken number"
refuses "a second device 7" ram_disk --size-mib 16 --id 7 --file /dev/shm/other
grep -q 'the number is taken' /tmp/refuses.out || fail "$(cat /tmp/refuses.out)"

say "two large buffers serve 64 large requests"
fio_verify /dev/ublkb7 32M --bs=128k --iodepth=64

say "without rights"
refuses "a disk made by nobody" setpriv --reuid 65534 --regid 65534 --clear-groups ram_disk --size-mib 16 --file /tmp/nobody
grep -q 'CAP_SYS_ADMIN' /tmp/refuses.out || fail "$(cat /tmp/refuses.out)"

say "a disk in use is not stopped, unless by force"
ublk_admin list | grep -q 'id: 7, state: Live, queue_count: 2, queue_depth: 64' || fail "$(ublk_admin list)"
mkfs.ext4 -q -F /dev/ublkb7
mkdir -p /mnt/seven
mount /dev/ublkb7 /mnt/seven
refuses "a stop of a mounted disk" ublk_admin stop 7
grep -q '/dev/ublkb7 is in use' /tmp/refuses.out || fail "$(cat /tmp/refuses.out)"
umount /mnt/seven

say "somebody else removes the device: its server ends"
ublk_admin delete 7
wait $pid || fail "exit code $?: $(cat $out)"
grep -q '^stopped' $out || fail "$(cat $out)"
same "devices left" "" "$(ls /sys/class/ublk-char)"

say "somebody else stops the device: its server clears it away"
: > $out
ram_disk --size-mib 64 > $out 2>&1 &
pid=$!
wait_for 30 "the disk" grep -q '^live ' $out
id=$(sed -n 's/^live .dev.ublkb//p' $out)
ublk_admin stop $id force
wait $pid || fail "exit code $?: $(cat $out)"
same "devices left" "" "$(ls /sys/class/ublk-char)"

say "a device without a server can be removed"
: > $out
ram_disk --size-mib 64 > $out 2>&1 &
pid=$!
wait_for 30 "the disk" grep -q '^live ' $out
id=$(sed -n 's/^live .dev.ublkb//p' $out)
kill -9 $pid
wait $pid 2> /dev/null || true
abandoned() { ublk_admin list | grep -q "id: $id, state: Waiting"; }
wait_for 30 "the kernel to notice" abandoned
ublk_admin delete $id
refuses "a takeover of what was removed" ram_disk --recover $id
same "devices left" "" "$(ls /sys/class/ublk-char)"
rm -f /dev/shm/ublk-ram /dev/shm/other
