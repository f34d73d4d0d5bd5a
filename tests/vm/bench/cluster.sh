#!/bin/sh
# Our block device with three replicas on RAM disks like those of the kernel's legs, beside what the
# kernel has: see peers.sh.
# vm: build=metad build=storaged build=clientd build=ubsctl tool=mdadm mem=5G limit=600
# vm: file=tests/conform/nvmet.sh:/usr/lib/ubs/nvmet.sh file=tests/vm/bench/peers.sh:/usr/lib/ubs/peers.sh
. /usr/lib/ubs/prelude.sh

modprobe ublk_drv
mkdir -p /mnt/bench
mount -t tmpfs -o size=2G none /mnt/bench
dir=/mnt/bench/dev
ubsctl dev up --dir $dir --metads 1 --store-bytes 134217728 --timeout 90 > /tmp/up.out \
    || { cat /tmp/up.out $dir/*.log; fail "dev up"; }
export $(grep '^export UBS_METAD' /tmp/up.out | cut -d' ' -f2)

# A file on tmpfs would cost every write a worker thread of io_uring, which no RAM disk does.
modprobe brd rd_nr=10 rd_size=262144
old=$(ubsctl store ls -o name)
for n in 1 2 3; do
    ubsctl dev stop storaged$n --dir $dir
    ubsctl store prepare /dev/ram$((6 + n)) || fail "prepare /dev/ram$((6 + n))"
    sed -i "/^create_bytes/d; s|^path = .*|path = \"/dev/ram$((6 + n))\"|" $dir/storaged$n.toml
    ubsctl dev start storaged$n --dir $dir || { cat $dir/storaged$n.log; fail "storaged$n"; }
done
for store in $old; do ubsctl store rm "$store" || fail "store rm $store"; done
ubsctl store ls
ubsctl volume create v1 --size 128MiB --replicas 3 --wait
ubsctl volume attach v1 --on dev --wait || { tail -n 40 $dir/clientd.log; fail "attach"; }
ours=$(ubsctl volume ls -o json | sed -n 's/.*"device": "\(.*\)".*/\1/p' | head -n 1)
[ -b "$ours" ] || fail "no device: '$ours'"

. /usr/lib/ubs/peers.sh

ubsctl volume detach v1 --wait
ubsctl dev down --dir $dir
umount /mnt/bench
