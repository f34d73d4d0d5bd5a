# Words for guest scripts that need a whole cluster: `. /usr/lib/ubs/cluster.sh` after the prelude.
# The caller's disk `cluster` holds it; `$dir` is its directory, `$dev` the attached device.

mount_cluster() {
    mkdir -p /mnt/cluster
    mount /dev/disk/by-serial/cluster /mnt/cluster
    dir=/mnt/cluster/dev
}

# cluster_up [OPTIONS OF dev up...]: makes or starts it, within UBS_TEST_UP_SECONDS (a busy machine needs more than 90).
cluster_up() {
    modprobe ublk_drv
    ubsctl dev up --dir $dir --store-bytes 402653184 --timeout "${UBS_TEST_UP_SECONDS:-90}" "$@" > /tmp/up.out || { cat /tmp/up.out; lose "dev up"; }
    UBS_METAD=$(sed -n 's/^address = "\(.*\)"/\1/p' $dir/metad1.toml | tr '\n' ',' | sed 's/,$//')
    export UBS_METAD
}

new_cluster() {
    mkfs.ext4 -q -F /dev/disk/by-serial/cluster
    mount_cluster
    cluster_up "$@"
}

cluster_down() {
    ubsctl dev down --dir $dir > /dev/null || lose "dev down"
    umount /mnt/cluster
}

# lose WHAT: fail, with the last lines of every daemon.
lose() {
    for _log in $dir/*.log; do
        echo "--- $_log"
        tail -n "${TAIL:-25}" "$_log"
    done
    fail "$@"
}

field() { # field NAME: the first value of a JSON field, from standard input
    sed -n "s/.*\"$1\" *: *\"\{0,1\}\([^\",]*\).*/\1/p" | head -n 1
}

state_is() { [ "$(ubsctl volume show "$1" -o json | field state)" = "$2" ]; }

# attach NAME HOST: sets $dev.
attach() {
    ubsctl volume attach "$1" --on "$2" --wait --timeout 60 > /tmp/attach.out || { cat /tmp/attach.out; lose "attach $1 on $2"; }
    dev=$(ubsctl volume show "$1" -o json | field device)
    [ -b "$dev" ] || lose "no device: '$dev'"
}

# Name and process of every daemon that runs.
daemons() { ubsctl dev status --dir $dir -o json | awk -F'"' '/"name"/ {n = $4} /"pid"/ {gsub(/[^0-9]/, "", $3); if ($3 != "") print n, $3}'; }

pid_of() { daemons | awk -v n="$1" '$1 == n {print $2}'; }

# ends PID CODE WHAT: waits for a background command of ours, and wants it to end with this exit code.
ends() {
    _code=0
    _limit=$(($(cut -d. -f1 /proc/uptime) + 120))
    while kill -0 "$1" 2> /dev/null; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt $_limit ] || lose "$3: did not end"
        sleep 0.5
    done
    wait "$1" || _code=$?
    [ "$_code" = "$2" ] || { cat /tmp/verify*.out; lose "$3: exit code $_code, wanted $2"; }
}

# moves WHAT [SECONDS]: the load on $dev, a background command $verify, is answered again, and lives.
moves() {
    _before=$(done_count)
    wait_for "${2:-60}" "IO after $1" goes_on
    kill -0 $verify 2> /dev/null || { ends $verify 0 "the load"; lose "the load ended early"; }
}
done_count() { awk '{print $1 + $5 + $12}' /sys/block/${dev##*/}/stat; }
goes_on() { [ "$(done_count)" -gt "$((_before + 40))" ]; }

# Bytes that all stores have in use: as their servers reported last; as they say when they are asked.
reported() { ubsctl store ls -o json | awk -F'[:,]' '/"usedBytes"/ {sum += $2} END {print sum + 0}'; }
allocated() { ubsctl store space -o json | awk -F'[:,]' '/"allocatedBytes"/ {sum += $2} END {print sum + 0}'; }

# count_used: sets $used, once the reports say what the stores say.
count_used() { wait_for 60 "reports of what is in use" agree; }
agree() { used=$(reported) && [ "$used" = "$(allocated)" ]; }

# same_replicas NAME: detached before; stops the storage servers and compares their stores.
same_replicas() {
    _volume=$(ubsctl volume show "$1" -o json | field id)
    for _one in 1 2 3; do ubsctl dev stop --dir $dir storaged$_one > /dev/null; done
    ubs-verify compare --volume "$_volume" $dir/storaged1/store.img $dir/storaged2/store.img $dir/storaged3/store.img \
        || lose "the replicas differ"
}
