#!/bin/sh
# A whole cluster on one machine: three members of metad, three storage servers, one client host. A
# volume of three replicas is a block device with a file system; a server is killed under fio with
# verification, comes back and is resilvered; the leader of metad is killed; nothing is lost.
# vm: build=metad build=storaged build=clientd build=ubsctl tool=e2fsck mem=3G limit=400 disk=2G,serial=cluster alone
. /usr/lib/ubs/prelude.sh

modprobe ublk_drv
mkfs.ext4 -q -F /dev/disk/by-serial/cluster
mkdir -p /mnt/cluster
mount /dev/disk/by-serial/cluster /mnt/cluster
dir=/mnt/cluster/dev
ubsctl dev up --dir $dir --store-bytes 536870912 --timeout 90 > /tmp/up.out || { cat /tmp/up.out $dir/*.log; fail "dev up"; }
export $(grep '^export UBS_METAD' /tmp/up.out | cut -d' ' -f2)
cat /tmp/up.out

ubsctl volume create v1 --size 256MiB --replicas 3 --wait
ubsctl volume attach v1 --on dev --wait || { tail -n 40 $dir/clientd.log; fail "attach"; }
ubsctl volume ls
dev=$(ubsctl volume ls -o json | sed -n 's/.*"device": "\(.*\)".*/\1/p' | head -n 1)
[ -b "$dev" ] || { tail -n 40 $dir/clientd.log; fail "no device: '$dev'"; }
same "logical block" 4096 "$(cat /sys/block/${dev##*/}/queue/logical_block_size)"

say "a file system"
mkfs.ext4 -q -F $dev
mkdir -p /mnt/v1
mount $dev /mnt/v1
dd if=/dev/urandom of=/tmp/plain bs=1M count=8 2> /dev/null
cp /tmp/plain /mnt/v1/copy
sync

say "fio, and a server killed under it"
fio --name=v --filename=/mnt/v1/fio.dat --size=48M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=25 --randseed=5 --eta=never > /tmp/fio.out 2>&1 &
fio=$!
sleep 4
ubsctl dev kill --dir $dir storaged2
sleep 6
ubsctl volume ls
ubsctl dev start --dir $dir storaged2
sleep 6
ubsctl resilver ls
leader=$(ubsctl status | sed -n 's/.*member \([0-9]\) leads.*/\1/p')
say "the leader is metad$leader"
ubsctl dev kill --dir $dir metad$leader
wait $fio || { cat /tmp/fio.out; tail -n 60 $dir/clientd.log; fail "fio failed"; }
grep -E 'err=|IOPS=' /tmp/fio.out
grep -q 'err= 0' /tmp/fio.out || fail "fio saw errors"
cmp /tmp/plain /mnt/v1/copy || fail "the copy differs"

say "resilvered"
ubsctl volume ls
ubsctl resilver ls
ubsctl events | tail -n 20
umount /mnt/v1
ubsctl volume detach v1 --wait || { tail -n 40 $dir/clientd.log; fail "detach"; }
[ ! -e $dev ] || fail "$dev is still there"
ubsctl volume attach v1 --on dev --wait
dev=$(ubsctl volume ls -o json | sed -n 's/.*"device": "\(.*\)".*/\1/p' | head -n 1)
e2fsck -fn $dev > /tmp/fsck.out 2>&1 || { cat /tmp/fsck.out; fail "the file system is damaged"; }
mount $dev /mnt/v1
cmp /tmp/plain /mnt/v1/copy || fail "the copy differs after the detach"
umount /mnt/v1
ubsctl volume detach v1 --wait
ubsctl dev start --dir $dir metad$leader
ubsctl dev down --dir $dir
umount /mnt/cluster
