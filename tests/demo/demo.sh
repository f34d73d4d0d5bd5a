#!/bin/sh
# The tour: a cluster of three metad and three storaged, a client host, a volume of three replicas with
# a file system on it, a server killed under load, the volume healed, the leader of metad killed, a
# detach and an attach; nothing lost. Run it by `make demo`, which finds a kernel with ublk for it.
#   demo.sh DIR TREE.tar      DIR: where the cluster lives; TREE.tar: files to put on the volume
set -eu
dir=$1 tree=$2
mnt=$dir/mnt
cluster=$dir/cluster

now() { # centiseconds since boot
    cut -d' ' -f1 /proc/uptime | tr -d .
}
show() { # runs a command as a user would type it
    echo "\$ $*"
    "$@"
}
step() {
    printf '\n== %s\n' "$*"
}
fail() {
    echo "demo: FAILED: $*" >&2
    for log in "$cluster"/*.log; do
        echo "--- $log" >&2
        tail -n 15 "$log" >&2
    done
    exit 1
}
wait_for() { # wait_for SECONDS WHAT COMMAND...
    limit=$(($(now) + $1 * 100)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ "$(now)" -lt "$limit" ] || fail "waited too long for $what"
        sleep 0.2
    done
}
field() { # field NAME: the first value of a JSON field, from standard input
    sed -n "s/.*\"$1\" *: *\"\{0,1\}\([^\",]*\).*/\1/p" | head -n 1
}
state_is() { [ "$(ubsctl volume ls -o json | field state)" = "$1" ]; }
finish() { # whatever happens, nothing of ours goes on running
    code=$?
    trap - EXIT INT TERM
    if [ -n "${fio:-}" ] && kill -0 "$fio" 2> /dev/null; then kill "$fio" 2> /dev/null || true; fi
    umount "$mnt" 2> /dev/null || true
    if [ -n "${UBS_METAD:-}" ]; then ubsctl volume detach demo --wait --timeout 30 > /dev/null 2>&1 || true; fi
    [ ! -e "$cluster/cluster.json" ] || ubsctl dev down --dir "$cluster" --wipe > /dev/null 2>&1 || true
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

mkdir -p "$mnt"
step "a cluster on this machine: 3 metad, 3 storaged, 1 clientd"
show ubsctl dev up --dir "$cluster" --store-bytes 1073741824 --timeout 120 || fail "the cluster does not come up"
UBS_METAD=$(sed -n 's/^address = "\(.*\)"/\1/p' "$cluster/metad1.toml" | paste -s -d, -)
export UBS_METAD

step "a volume of three replicas, attached"
show ubsctl volume create demo --size 512MiB --replicas 3 --wait || fail "no volume"
show ubsctl volume attach demo --on dev --wait || fail "not attached"
dev=$(ubsctl volume ls -o json | field device)
[ -b "$dev" ] || fail "$dev is not a block device"

step "a file system on $dev, with real files"
show mkfs.ext4 -q -F "$dev"
show mount "$dev" "$mnt"
mkdir "$mnt/tree"
tar -xf "$tree" -C "$mnt/tree"
sync
(cd "$mnt/tree" && find . -type f | sort | xargs sha256sum) > "$dir/sums"
files=$(wc -l < "$dir/sums")
echo "$files files, $(du -sk "$mnt/tree" | cut -f1) KiB"

step "fio with verification; a storage server is killed under it"
fio --name=demo --filename="$mnt/fio.dat" --size=64M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
    --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=30 --randseed=7 \
    --eta=never --output-format=json --output="$dir/fio.json" &
fio=$!
writing() { [ "$(awk '{print $5}' "/sys/block/${dev##*/}/stat")" -gt "$((writes + 200))" ]; }
writes=$(awk '{print $5}' "/sys/block/${dev##*/}/stat")
wait_for 60 "load" writing
killed=$(now)
show ubsctl dev kill --dir "$cluster" storaged2
wait_for 60 "the volume to go on without it" state_is degraded
degraded=$(now)
writes=$(awk '{print $5}' "/sys/block/${dev##*/}/stat")
wait_for 60 "writes without it" writing
show ubsctl volume ls
show ubsctl volume explain demo

step "it comes back and gets what it missed"
show ubsctl dev start --dir "$cluster" storaged2
show ubsctl resilver ls --watch --timeout 120 || fail "no resilver"
wait_for 120 "the volume to be whole" state_is online
healed=$(now)
show ubsctl resilver ls
missed=$(ubsctl resilver ls -o json | field totalBytes)
moved=$(ubsctl resilver ls -o json | field doneBytes)
[ "$moved" -gt 0 ] || fail "nothing was resilvered"
[ $((moved * 100)) -le $((missed * 105)) ] || fail "$moved bytes moved for $missed bytes missed"

step "the leader of metad is killed; the volume never notices"
leader=$(ubsctl status | sed -n 's/.*member \([0-9]*\) leads.*/\1/p')
show ubsctl dev kill --dir "$cluster" "metad$leader"
other_leads() { ubsctl status | grep -q "member [^$leader] leads"; }
wait_for 60 "another leader" other_leads
show ubsctl status
wait "$fio" || { cat "$dir/fio.json"; fail "fio failed"; }
fio=
errors=$(field error < "$dir/fio.json")
[ "$errors" = 0 ] || fail "fio saw error $errors"
iops=$(sed -n '/"write" :/,/"trim" :/p' "$dir/fio.json" | field iops_mean)
[ -n "$iops" ] || iops=$(sed -n '/"write" :/,/"trim" :/p' "$dir/fio.json" | sed -n 's/.*"iops" : \([0-9]*\).*/\1/p' | head -n 1)
longest_ns=$(sed -n '/"write" :/,/"trim" :/p' "$dir/fio.json" | sed -n '/"clat_ns" :/,/}/s/.*"max" : \([0-9]*\).*/\1/p' | head -n 1)
show ubsctl dev start --dir "$cluster" "metad$leader"

step "detach, attach, compare"
show umount "$mnt"
show ubsctl volume detach demo --wait || fail "not detached"
[ ! -e "$dev" ] || fail "$dev is still there"
show ubsctl volume attach demo --on dev --wait || fail "not attached again"
dev=$(ubsctl volume ls -o json | field device)
show mount "$dev" "$mnt"
(cd "$mnt/tree" && sha256sum -c "$dir/sums" > "$dir/check.out") || { grep -v ': OK$' "$dir/check.out"; fail "checksums differ"; }
echo "$files checksums agree"
show umount "$mnt"
show ubsctl volume detach demo --wait || fail "not detached"
show ubsctl dev down --dir "$cluster" --wipe

centi() { printf '%d.%02d' $(($1 / 100)) $(($1 % 100)); }
cat << TABLE

| what                                       | seen |
|--------------------------------------------|------|
| kernel                                     | $(uname -r) |
| files compared after detach and attach     | $files |
| fio errors                                 | $errors |
| write IOPS, 4 KiB, depth 16, mean          | ${iops%.*} |
| longest write while a server was killed    | $((longest_ns / 1000000)) ms |
| from the kill to the degraded volume       | $(centi $((degraded - killed))) s |
| seconds degraded                           | $(centi $((healed - degraded))) |
| bytes the server missed                    | $missed |
| bytes resilvered                           | $moved |
TABLE
