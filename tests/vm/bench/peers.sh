#!/bin/sh
# Block devices beside each other, in turns: a RAM disk behind the kernel's own NVMe/TCP target and
# host ("leg"), md-raid1 over three such legs without ("md") and with ("mdbitmap") a bitmap, and
# "ours" if a device is named by $ours. Prints `bench DEVICE RW QD IOPS P50_US P99_US` per sample.
# vm: tool=mdadm file=tests/conform/nvmet.sh:/usr/lib/ubs/nvmet.sh mem=3G limit=600
. /usr/lib/ubs/prelude.sh
. /usr/lib/ubs/nvmet.sh

rounds=${rounds:-3} seconds=${seconds:-2} ours=${1:-${ours:-}}
size=96M

modprobe nvme-tcp
[ -b /dev/ram6 ] || modprobe brd rd_nr=7 rd_size=131072
legs=
for n in 0 1 2 3 4 5 6; do
    nqn=nqn.2026-01.io.example:leg$n
    nvmet_export "$nqn" /dev/ram$n $((4440 + n))
    nvme connect -t tcp -a 127.0.0.1 -s $((4440 + n)) -n "$nqn" -i 1 > /dev/null
    wait_for 20 "leg $n" nvme_of "$nqn"
    legs="$legs $(nvme_of "$nqn")"
done
set -- $legs
leg=$1
# array NAME BITMAP LEGS...
array() {
    _name=$1 _bitmap=$2
    shift 2
    yes | mdadm --create "$_name" --level=1 --raid-devices=3 --assume-clean --bitmap="$_bitmap" \
        --metadata=1.2 "$@" > /tmp/mdadm.out 2>&1 || { cat /tmp/mdadm.out; fail "mdadm $_name"; }
}
modprobe raid1
array /dev/md1 none "$2" "$3" "$4"
array /dev/md2 internal "$5" "$6" "$7"

# sample NAME DEVICE RW QD. Fields of fio's terse form: 8 and 49 are IOPS of reads and writes, the
# median and the 99th percentile are the 7th and the 13th of the twenty that begin at 18 and 59.
sample() {
    fio --minimal --name=s --filename="$2" --rw="$3" --bs=4k --iodepth="$4" --ioengine=io_uring \
        --direct=1 --runtime="$seconds" --ramp_time=0.3 --time_based --norandommap --randrepeat=0 \
        --size=$size > /tmp/fio.out 2> /tmp/fio.err || { cat /tmp/fio.out /tmp/fio.err; fail "fio on $2"; }
    awk -F';' -v name="$1" -v rw="$3" -v qd="$4" '
        function us(field) { sub(/.*=/, "", field); return field }
        NF > 50 && rw ~ /write/ { print "bench", name, rw, qd, $49, us($65), us($71); seen = 1 }
        NF > 50 && rw !~ /write/ { print "bench", name, rw, qd, $8, us($24), us($30); seen = 1 }
        END { exit !seen }' /tmp/fio.out || { cat /tmp/fio.out; fail "fio's output on $2"; }
}

say "every block of every device is there"
for device in "$leg" /dev/md1 /dev/md2 $ours; do
    dd if=/dev/urandom of="$device" bs=1M count=100 oflag=direct 2> /dev/null
done

for round in $(seq "$rounds"); do
    say "round $round of $rounds"
    for load in 'randwrite 1' 'randwrite 32' 'randread 1' 'randread 32'; do
        sample leg "$leg" $load
        sample md /dev/md1 $load
        sample mdbitmap /dev/md2 $load
        [ -z "$ours" ] || sample ours "$ours" $load
    done
done

mdadm --stop /dev/md1 /dev/md2 > /dev/null 2>&1
for n in 0 1 2 3 4 5 6; do
    nvme disconnect -n nqn.2026-01.io.example:leg$n > /dev/null
    nvmet_remove nqn.2026-01.io.example:leg$n $((4440 + n))
done
say "all measured"
