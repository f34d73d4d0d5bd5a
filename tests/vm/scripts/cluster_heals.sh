#!/bin/sh
# A disk spoils blocks and says nothing: the head's and a snapshot's, single bits and whole blocks of others.
# The scrub of that server finds them and heals them from the others' replicas, once while the volume is
# attached and once with nobody having it; no other server writes anything. In the end all replicas are the
# same, and a check of all data finds nothing.
# vm: build=metad build=storaged build=clientd build=ubsctl build=ubs-verify tool=grep mem=4G limit=600 disk=2G,serial=cluster alone
# vm: file=tests/vm/guest/cluster.sh:/usr/lib/ubs/cluster.sh
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/cluster.sh

# blocks WORD COUNT: so many blocks of 4 KiB that can be told from each other, and found on a disk.
blocks() {
    awk -v word="$1" -v count="$2" 'BEGIN {
        for (i = 0; i < count; i++) {
            s = sprintf("%s-%05d ", word, i)
            while (length(s) < 4095) s = s s
            print substr(s, 1, 4095)
        }
    }'
}
put() { # put FIRST COUNT WORD: onto the device
    blocks "$3" "$2" > /tmp/blocks
    dd if=/tmp/blocks of=$dev bs=64k seek=$(($1 / 16)) oflag=direct conv=fsync 2> /tmp/dd.out || { cat /tmp/dd.out; lose "write"; }
}
image=/mnt/cluster/dev/storaged3/store.img
place() { # place WORD: of a block in the store of storaged3, in blocks
    _at=$(LC_ALL=C grep -abo -m 1 -F "$1 " $image | head -n 1 | cut -d: -f1)
    [ -n "$_at" ] || lose "$1 is not in the store"
    echo $((_at / 4096))
}
spoil() { # spoil WORD [BY]: a bit of it, or with another one's content
    _place=$(place "$1")
    if [ -n "${2:-}" ]; then
        dd if=$image of=$image bs=4096 skip="$(place "$2")" seek="$_place" count=1 conv=notrunc,fsync 2> /dev/null
    else
        printf X | dd of=$image bs=1 seek=$((_place * 4096 + 77)) conv=notrunc,fsync 2> /dev/null
    fi
}
healed() { grep -c 'healed a block with what another replica has' $dir/storaged"$1".log || true; }
are_healed() { [ "$(healed 3)" = "$1" ]; }
whole() { state_is v1 online; }

new_cluster
ubsctl volume create v1 --size 16MiB --replicas 3 --wait
attach v1 dev
put 0 1024 HEAD
ubsctl snapshot create v1 s --timeout 60 || lose "snapshot"
put 0 256 LATER

say "spoiled while its storaged is stopped; scrubbed when it is back, with the volume attached"
ubsctl dev stop --dir $dir storaged3 > /dev/null
for block in LATER-00003 HEAD-00004 HEAD-00900 HEAD-00901; do spoil $block; done
spoil HEAD-00500 HEAD-00501
sed -i '1i scrub_days = 0.00001\nscrub_bytes_per_s_max = 1073741824' $dir/storaged3.toml
ubsctl dev start --dir $dir storaged3 > /dev/null
wait_for 90 "five blocks to be healed" are_healed 5
wait_for 90 "a whole volume" whole
for number in 1 2; do same "blocks healed on server $number" 0 "$(healed $number)"; done
grep -E 'a block on the disk|healed a block' $dir/storaged3.log | head -n 3

say "the same with nobody having the volume"
ubsctl volume detach v1 --wait || lose "detach"
ubsctl dev stop --dir $dir storaged3 > /dev/null
for block in LATER-00100 HEAD-00101 HEAD-00700; do spoil $block; done
ubsctl dev start --dir $dir storaged3 > /dev/null
wait_for 90 "three more blocks to be healed" are_healed 8
grep -q 'stays as it is' $dir/storaged3.log && lose "something stays spoiled"
for number in 1 2; do same "blocks healed on server $number" 0 "$(healed $number)"; done

same_replicas v1
for number in 1 2 3; do
    ubsctl store fsck --data $dir/storaged$number/store.img > /tmp/fsck.out || { cat /tmp/fsck.out; lose "store $number"; }
done
cluster_down
