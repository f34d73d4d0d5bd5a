#!/bin/sh
# Snapshots of a volume under fio with verification: none costs an IO error, one is made while a server
# is away and reaches it when it is back, one completes with nobody having the volume; deleted, in any
# order, their space comes back, as was foretold. A snapshot and what changed since, exported and imported, give what the
# device shows, also with a server away; so does a view of it, which survives a kill of clientd. A clone begins with its
# snapshot and goes its own way, as its volume does, and keeps what it needs of a deleted snapshot. Rolled back to a snapshot
# the volume shows what that shows, and rolled back to what was kept then, what it showed before. In the end all replicas are the same.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify mem=4G limit=800 disk=2G,serial=cluster alone
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

new_cluster
ubsctl volume create v1 --size 32MiB --replicas 3 --wait
attach v1 dev

now_ms() { cut -d. -f1,2 /proc/uptime | sed 's/ .*//; s/\.//; s/$/0/'; }
whole() { state_is v1 online; }
snap() { # snap NAME: under load, and how long it took
    _begin=$(now_ms)
    ubsctl snapshot create v1 "$1" --timeout 60 > /tmp/snap.out || { cat /tmp/snap.out; ubsctl volume explain v1; lose "snapshot $1"; }
    say "snapshot $1 took $(($(now_ms) - _begin)) ms"
}

say "the volume is full once"
fio --name=fill --filename=$dev --size=32M --rw=write --bs=128k --direct=1 --ioengine=libaio --iodepth=4 --eta=never > /tmp/fill.out 2>&1 \
    || { cat /tmp/fill.out; lose "fill"; }
full() { [ "$(reported)" -ge $((3 * 32 * 1024 * 1024)) ]; }
wait_for 60 "the report of 3 x 32 MiB" full
count_used
plain=$used

say "snapshots under fio"
fio --name=v --filename=$dev --size=32M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8 --rate_iops=600 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=40 --randseed=5 --eta=never > /tmp/fio.out 2>&1 &
fio=$!
sleep 2
snap a
sleep 2
snap b
refuses "a second snapshot of that name" ubsctl snapshot create v1 b
ubsctl dev kill --dir $dir storaged2 > /dev/null
sleep 3
snap c
ubsctl dev start --dir $dir storaged2 > /dev/null
wait_for 90 "a whole volume" whole
snap d
ubsctl snapshot ls v1
same "snapshots" 4 "$(ubsctl volume show v1 -o json | field snapshots)"
ends $fio 0 "fio"
grep -E 'err=|IOPS=' /tmp/fio.out
grep -q 'err= 0' /tmp/fio.out || lose "fio saw errors"
wait_for 90 "a whole volume" whole
count_used
with=$used
say "$plain bytes in use, $with with snapshots"
[ "$with" -gt "$plain" ] || lose "the snapshots keep nothing"
ubsctl volume space v1
space() { ubsctl volume space v1 -o json | field "$1"; }
same "allocated bytes" "$with" "$(space allocatedBytes)"
same "live and snapshots' bytes" "$with" "$(($(space liveBytes) + $(space snapshotsBytes)))"

say "exports, while the volume is attached"
snap end
ubsctl snapshot diff v1@end --since a > /tmp/diff.out || lose "diff"
refuses "a comparison with a later one" ubsctl snapshot diff v1@a --since end
ubsctl snapshot export v1@a --to /tmp/a.ubs || lose "export"
refuses "to overwrite an export" ubsctl snapshot export v1@a --to /tmp/a.ubs
ubsctl dev kill --dir $dir storaged1 > /dev/null
ubsctl snapshot export v1@end --since a > /tmp/end.ubs || lose "export of the changes with a server away"
ubsctl dev start --dir $dir storaged1 > /dev/null
ubsctl snapshot import --from /tmp/a.ubs --to /tmp/image || lose "import"
ubsctl snapshot view v1@a old
refuses "to delete what a view shows" ubsctl snapshot rm v1@a
main=$dev
attach old dev
cmp /tmp/image $dev || lose "the view does not show what was exported"
refuses "a write to a snapshot" dd if=/dev/zero of=$dev bs=4k count=1 oflag=direct
ubsctl dev kill --dir $dir clientd > /dev/null
ubsctl dev start --dir $dir clientd > /dev/null
wait_for 60 "the view after a restart of clientd" state_is old online
cmp /tmp/image $dev || lose "the view shows something else after a restart of clientd"
ubsctl volume detach old --wait || lose "detach of the view"
ubsctl volume delete old --yes || lose "deletion of the view"
dev=$main
wait_for 90 "a whole volume" whole
cmp -s /tmp/image $dev && lose "nothing has changed since snapshot a"
ubsctl snapshot import --to /tmp/image < /tmp/end.ubs || lose "import of the changes"
cmp /tmp/image $dev || lose "what was exported is not what the device shows"
refuses "to overwrite an image" ubsctl snapshot import --from /tmp/a.ubs --to /tmp/image
rm /tmp/image /tmp/a.ubs /tmp/end.ubs
wait_for 90 "a whole volume" whole

say "a clone, made under fio"
main=$dev
snap f
fio --name=w --filename=$main --size=32M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=4 --rate_iops=300 \
    --time_based --runtime=15 --randseed=9 --eta=never > /tmp/fio.out 2>&1 &
fio=$!
ubsctl snapshot export v1@f | ubsctl snapshot import --to /tmp/image || lose "export"
_begin=$(now_ms)
ubsctl snapshot clone v1@f c1 --wait || lose "clone"
say "the clone took $(($(now_ms) - _begin)) ms"
ubsctl volume show c1 | grep -q 'clone of *v1@f' || lose "the clone does not say what it is"
attach c1 dev
cmp /tmp/image $dev || lose "the clone does not begin with its snapshot"
cp /tmp/image /tmp/first
dd if=/dev/urandom of=/tmp/new bs=64k count=64 2> /dev/null
for at in 3 200 451; do
    dd if=/tmp/new of=$dev bs=64k count=24 seek=$at oflag=direct 2> /dev/null || lose "a write to the clone"
    dd if=/tmp/new of=/tmp/image bs=64k count=24 seek=$at conv=notrunc 2> /dev/null
done
blkdiscard -o $((20 << 20)) -l $((8 << 20)) $dev || lose "a discard of the clone"
dd if=/dev/zero of=/tmp/image bs=1M seek=20 count=8 conv=notrunc 2> /dev/null
ends $fio 0 "fio"
grep -q 'err= 0' /tmp/fio.out || lose "fio saw errors"
cmp /tmp/image $dev || lose "the clone is not what was written to it"
cmp -s /tmp/image $main && lose "the volume shows its clone"
ubsctl snapshot export v1@f | ubsctl snapshot import --to /tmp/again || lose "export"
cmp /tmp/first /tmp/again || lose "the snapshot shows something else since it has a clone"
ubsctl snapshot rm v1@f
ubsctl snapshot create c1 g --timeout 60 || lose "a snapshot of the clone"
ubsctl snapshot export c1@g | ubsctl snapshot import --to /tmp/of-clone || lose "export of the clone"
cmp /tmp/image /tmp/of-clone || lose "what was exported of the clone is not what it shows"
rm /tmp/first /tmp/again /tmp/of-clone
ubsctl dev kill --dir $dir storaged3 > /dev/null
dd if=/tmp/new of=$dev bs=64k count=64 seek=400 oflag=direct 2> /dev/null || lose "a write to the clone with a server away"
dd if=/tmp/new of=/tmp/image bs=64k count=64 seek=400 conv=notrunc 2> /dev/null
ubsctl dev start --dir $dir storaged3 > /dev/null
wait_for 90 "a whole clone" state_is c1 online
wait_for 90 "a whole volume" whole
cmp /tmp/image $dev || lose "the clone is not what was written to it, after a resilver"
refuses "to delete a volume with clones" ubsctl volume delete v1 --yes --with-snapshots
ubsctl volume detach c1 --wait || lose "detach of the clone"
rm /tmp/image /tmp/new
dev=$main

say "with nobody having the volume"
refuses "to roll back what is attached" ubsctl snapshot rollback v1@a --yes
ubsctl volume detach v1 --wait || lose "detach"
snap e

say "rolled back with a server away, and forward again"
ubsctl snapshot export v1@a | ubsctl snapshot import --to /tmp/image || lose "export"
ubsctl snapshot export v1@e | ubsctl snapshot import --to /tmp/was || lose "export"
refuses "to roll back without being sure" ubsctl snapshot rollback v1@a
roll() { # roll NAME KEEP
    _begin=$(now_ms)
    ubsctl snapshot rollback v1@"$1" --keep-as "$2" --yes --wait --timeout 120 || { ubsctl volume explain v1; lose "rollback to $1"; }
    say "the rollback to $1 took $(($(now_ms) - _begin)) ms"
}
ubsctl dev kill --dir $dir storaged2 > /dev/null
roll a bad
ubsctl dev start --dir $dir storaged2 > /dev/null
attach v1 dev
cmp /tmp/image $dev || lose "the volume does not show what it was rolled back to"
wait_for 90 "a whole volume" whole
ubsctl volume detach v1 --wait || lose "detach"
roll bad half
attach v1 dev
cmp /tmp/was $dev || lose "the volume does not show what it was before it was rolled back"
ubsctl volume detach v1 --wait || lose "detach"
rm /tmp/image /tmp/was
refuses "to delete a volume with snapshots" ubsctl volume delete v1 --yes

say "space comes back, in any order"
attach v1 dev
ubsctl volume space
ubsctl store space
live=$(space liveBytes)
for name in c a end e; do ubsctl snapshot rm v1@$name; done
ubsctl volume delete c1 --yes --with-snapshots --wait || lose "deletion of the clone"
for name in d b bad half; do ubsctl snapshot rm v1@$name; done
same "snapshots left" 0 "$(ubsctl volume show v1 -o json | field snapshots)"
back() { [ "$(reported)" -le "$plain" ]; }
wait_for 60 "the space of $with bytes to come back" back
all_live() { [ "$(space allocatedBytes)" = "$live" ]; }
wait_for 60 "nothing but what was live before, $live bytes" all_live
same "snapshots' bytes" 0 "$(space snapshotsBytes)"
ubsctl meta fsck
ubsctl events | grep -i snapshot
ubsctl volume detach v1 --wait || lose "detach"
same_replicas v1
cluster_down
