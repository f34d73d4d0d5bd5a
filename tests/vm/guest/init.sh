#!/bin/sh
# First process of the test guest: brings the machine up, then runs what the host sends.
#
# Host to guest:  RUN <nonce> <script bytes> <limit s>\n<script>
# Guest to host:  READY\n, then per script its output and
#                 \n@<nonce> rc=<code> log=<bytes>\n<kernel log since the last script>
export PATH=/usr/bin:/usr/sbin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/disk/by-serial
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t debugfs debug /sys/kernel/debug
mkdir -p /run/netns
hostname guest
ip link set lo up
echo 60 > /proc/sys/kernel/hung_task_timeout_secs
ulimit -l unlimited
ulimit -n 65536

for disk in /sys/block/nvme*; do
    serial=$(tr -d ' ' < "$disk/device/serial")
    ln -s "/dev/${disk##*/}" "/dev/disk/by-serial/$serial"
done

mkdir -p /dev/virtio-ports
for name in /sys/class/virtio-ports/*/name; do
    at=${name%/name}
    at=/dev/${at##*/}
    if [ "$(cat "$name")" = ubs.ctl ]; then port=$at; else ln -s "$at" "/dev/virtio-ports/$(cat "$name")"; fi
done
exec 3<> "$port"

# Everything the script started dies with it, so that the next one finds a quiet machine.
run() {
    limit=$1
    cd /root
    setsid /bin/sh /tmp/script < /dev/null >&3 2>&1 3>&- &
    script=$!
    (
        exec 3>&-
        sleep "$limit"
        echo "guest: script passed its limit of $limit s; blocked tasks go to the kernel log" > /dev/kmsg
        echo w > /proc/sysrq-trigger
        touch /run/limit-passed
        kill -9 "-$script"
    ) &
    guard=$!
    wait "$script"
    rc=$?
    kill -9 "$guard" 2> /dev/null
    wait "$guard" 2> /dev/null
    [ -e /run/limit-passed ] && rc=124
    rm -f /run/limit-passed
    kill -9 "-$script" 2> /dev/null
    return "$rc"
}

dmesg -c > /dev/null
printf 'READY\n' >&3
while read -r verb nonce bytes limit <&3; do
    [ "$verb" = RUN ] || continue
    head -c "$bytes" <&3 > /tmp/script
    run "$limit"
    rc=$?
    dmesg -c > /tmp/dmesg
    printf '\n@%s rc=%d log=%d\n' "$nonce" "$rc" "$(stat -c %s /tmp/dmesg)" >&3
    cat /tmp/dmesg >&3
done
poweroff -f
