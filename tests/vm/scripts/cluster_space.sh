#!/bin/sh
# Space, end to end: what ext4 and xfs trim comes back from the stores; a volume grows while it is
# mounted, its file system after it; a volume does not shrink; replicas stay the same.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify tool=mkfs.xfs tool=xfs_growfs tool=resize2fs
# vm: tool=fstrim module=xfs mem=3G limit=600 disk=2G,serial=cluster alone
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

new_cluster
more() { [ "$(reported)" -ge "$1" ]; }
less() { [ "$(reported)" -lt "$1" ]; }
mkdir -p /mnt/v

# trims KIND SIZE: 40 MB are written, removed and trimmed.
trims() {
    ubsctl volume create $1 --size $2 --replicas 3 --wait
    attach $1 dev
    mkfs.$1 $dev > /tmp/mkfs.out 2>&1 || { cat /tmp/mkfs.out; lose "mkfs.$1"; }
    mount $dev /mnt/v
    sync
    count_used
    _empty=$used
    dd if=/dev/urandom of=/mnt/v/file bs=1M count=40 conv=fsync 2> /dev/null
    wait_for 60 "the report of 3 x 40 MB" more $((_empty + 3 * 40000000))
    count_used
    _full=$used
    rm /mnt/v/file
    sync
    fstrim /mnt/v || lose "fstrim"
    wait_for 60 "the space of what $1 has trimmed" less $((_full - 3 * 38000000))
    say "$1: $_empty bytes in use, $_full with a file, $(reported) after fstrim"
}

say "ext4"
trims ext4 96MiB
say "growth while it is mounted"
dd if=/dev/urandom of=/mnt/v/kept bs=1M count=20 conv=fsync 2> /dev/null
sum=$(sha256sum < /mnt/v/kept)
refuses "to shrink" ubsctl volume grow ext4 --size 64MiB
ubsctl dev kill --dir $dir storaged3 > /dev/null
ubsctl volume grow ext4 --size 160MiB
ubsctl volume explain ext4 | grep "it grows to 160" || lose "explain says nothing of the growth"
ubsctl dev start --dir $dir storaged3 > /dev/null
size_is() { [ "$(cat /sys/block/${dev##*/}/size)" = "$1" ]; }
wait_for 60 "the larger device" size_is $((160 * 2048))
resize2fs $dev > /tmp/resize.out 2>&1 || { cat /tmp/resize.out; lose "resize2fs"; }
dd if=/dev/urandom of=/mnt/v/more bs=1M count=90 conv=fsync 2> /dev/null || lose "there is no room in the grown file system"
same "what was there before" "$sum" "$(sha256sum < /mnt/v/kept)"
whole() { state_is ext4 online; }
wait_for 90 "a whole volume" whole
umount /mnt/v
ubsctl volume detach ext4 --wait || lose "detach"
same_replicas ext4
for one in 1 2 3; do ubsctl dev start --dir $dir storaged$one > /dev/null; done
attach ext4 dev
mount $dev /mnt/v
same "what was there before, after another attach" "$sum" "$(sha256sum < /mnt/v/kept)"
umount /mnt/v
ubsctl volume detach ext4 --wait || lose "detach"
ubsctl volume delete ext4 --yes --wait || lose "deletion"

say "xfs"
modprobe xfs
trims xfs 320MiB
umount /mnt/v
ubsctl volume detach xfs --wait || lose "detach"
ubsctl meta fsck
cluster_down
