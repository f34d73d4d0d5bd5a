# What the Linux NVMe/TCP host and nvme-cli ask of a target. Sourced by guest scripts:
#   ADDRESS, PORT, NQN  where the target listens and the subsystem with one namespace, blank, of at
#                       least 64 MiB with blocks of 4096 bytes
#   CONNECT             more options of `nvme connect` (-g -G: header and data digests)
# The same claims are made of the kernel's own target (conform_nvmet.sh): that they are true there
# says that they are claims about NVMe/TCP and not about us.
. /usr/lib/ubs/prelude.sh

CONNECT=${CONNECT:-}
SHORT='--ctrl-loss-tmo=60 --reconnect-delay=1 --keep-alive-tmo=5'

connected() {
    # shellcheck disable=SC2086
    nvme connect -t tcp -a "$ADDRESS" -s "$PORT" -n "$NQN" $SHORT $CONNECT
    wait_for 20 "the namespace of $NQN" nvme_of "$NQN"
    DEV=$(nvme_of "$NQN")
    CTRL=$(controller_of "$NQN")
}

# controller_of NQN: nvmeN of the connected controller.
controller_of() {
    for _c in /sys/class/nvme/nvme*; do
        [ "$(cat "$_c/subsysnqn" 2> /dev/null)" = "$1" ] && { basename "$_c"; return 0; }
    done
    return 1
}

is_live() { [ "$(cat "/sys/class/nvme/$CTRL/state")" = live ]; }
is_not_live() { ! is_live; }

disconnected() {
    nvme disconnect -n "$NQN" > /dev/null
    wait_for 20 "the end of $CTRL" test ! -e "/sys/class/nvme/$CTRL"
}

# field COMMAND-OUTPUT NAME: the value of `name : value`.
field() { printf '%s\n' "$1" | sed -n "s/^$2 *: *//p" | head -n 1; }

# bytes_of OFFSET COUNT (in blocks of 4096): a checksum of what the device holds there.
bytes_of() { dd if="$DEV" bs=4096 skip="$1" count="$2" iflag=direct 2> /dev/null | sha256sum; }
zeroes() { dd if=/dev/zero bs=4096 count="$1" 2> /dev/null | sha256sum; }

discovers() {
    say 'discover'
    _log=$(nvme discover -t tcp -a "$ADDRESS" -s "$PORT")
    printf '%s\n' "$_log" | grep -qx "subnqn: *$NQN" || fail "discovery does not name $NQN: $_log"
    printf '%s\n' "$_log" | grep -qx "trtype: *tcp" || fail "discovery says no tcp: $_log"
}

identifies() {
    say 'identify'
    nvme list
    _ctrl=$(nvme id-ctrl "/dev/$CTRL")
    same 'subnqn' "$NQN" "$(field "$_ctrl" subnqn)"
    [ -n "$(field "$_ctrl" sn)" ] || fail 'no serial number'
    same 'sqes' 0x66 "$(field "$_ctrl" sqes)"
    same 'cqes' 0x44 "$(field "$_ctrl" cqes)"
    case $(field "$_ctrl" nn) in '' | 0) fail 'no namespaces allowed' ;; esac
    _ns=$(nvme id-ns "$DEV")
    same 'block size' 4096 "$(blockdev --getss "$DEV")"
    [ "$(($(field "$_ns" nsze)))" -gt 0 ] || fail 'namespace without size'
    same 'size' "$(($(field "$_ns" nsze) * 4096))" "$(blockdev --getsize64 "$DEV")"
    nvme ns-descs "$DEV" | grep -qE 'uuid|nguid|eui64' || fail 'namespace without an identity'
    nvme list-ns "/dev/$CTRL" | grep -q 0x1 || fail 'no active namespace listed'
    nvme smart-log "/dev/$CTRL" > /dev/null
    nvme error-log "/dev/$CTRL" > /dev/null
    nvme get-feature "/dev/$CTRL" -f 7 > /dev/null
}

keeps_data() {
    say 'read and write: small, large, misaligned to the largest transfer'
    fio_verify "$DEV" 4M
    fio_verify "$DEV" 16M --bs=128k --iodepth=8
    fio_verify "$DEV" 16M --bsrange=4k-512k --iodepth=4
    say 'a file system'
    mkfs.ext4 -q -F "$DEV"
    mount "$DEV" /mnt
    fio_verify /mnt/file 4M --bs=16k --fsync=32
    cp /usr/bin/busybox /mnt/copy
    sync
    umount /mnt
    mount "$DEV" /mnt
    cmp /usr/bin/busybox /mnt/copy || fail 'a file changed over an unmount'
    umount /mnt
    e2fsck -fn "$DEV" > /tmp/e2fsck.out 2>&1 || { cat /tmp/e2fsck.out; fail 'e2fsck'; }
}

zeroes_and_discards() {
    say 'write zeroes, discard, flush'
    dd if=/dev/urandom of="$DEV" bs=4096 count=64 oflag=direct 2> /dev/null
    _before=$(bytes_of 48 16)
    nvme write-zeroes "$DEV" -s 0 -c 15 > /dev/null
    same 'blocks written zero' "$(zeroes 16)" "$(bytes_of 0 16)"
    blkdiscard -z -o $((16 * 4096)) -l $((16 * 4096)) "$DEV"
    same 'blocks zeroed by the block layer' "$(zeroes 16)" "$(bytes_of 16 16)"
    blkdiscard -o $((32 * 4096)) -l $((16 * 4096)) "$DEV"
    same 'blocks after the discarded ones' "$_before" "$(bytes_of 48 16)"
    # Either way a discarded block reads the same twice.
    same 'discarded blocks, twice' "$(bytes_of 32 16)" "$(bytes_of 32 16)"
    nvme flush "$DEV" -n 1 > /dev/null
    nvme dsm "$DEV" -n 1 -d -b 4,4 -s 0,32 > /dev/null
}

refuses_nonsense() {
    say 'nonsense is refused and harms nobody'
    _blocks=$(($(blockdev --getsize64 "$DEV") / 4096))
    refuses 'a read past the end' nvme read "$DEV" -s "$_blocks" -c 0 -z 4096 -d /dev/null
    refuses 'a write past the end' nvme write "$DEV" -s "$((_blocks - 1))" -c 1 -z 8192 -d /usr/bin/busybox
    refuses 'an unknown admin command' nvme admin-passthru "/dev/$CTRL" -o 0x7f
    refuses 'an unknown log page' nvme get-log "/dev/$CTRL" -i 0xbf -l 512
    # An inactive namespace is all zero, an invalid one an error: the target chooses.
    _none=$(nvme id-ns "/dev/$CTRL" -n 4096 2> /dev/null) || _none='nsze : 0'
    same 'size of a namespace that is not there' 0 "$(($(field "$_none" nsze)))"
    refuses 'a subsystem that is not there' \
        nvme connect -t tcp -a "$ADDRESS" -s "$PORT" -n "${NQN}x" --ctrl-loss-tmo=0
    is_live || fail 'the connection did not survive nonsense'
    fio_verify "$DEV" 2M
}

resets() {
    say 'controller reset'
    nvme reset "/dev/$CTRL"
    wait_for 20 'the controller after its reset' is_live
    fio_verify "$DEV" 2M
}

# survives_restart STOP START: commands that kill the target and start it again.
survives_restart() {
    say 'target killed and started again: the host comes back by itself'
    "$1"
    wait_for 30 'the host to notice' is_not_live
    "$2"
    wait_for 60 'the host to reconnect' is_live
    fio_verify "$DEV" 2M
}

# Everything a target that cannot be restarted is asked.
conforms() {
    discovers
    connected
    say "connected: $CTRL $DEV $CONNECT"
    identifies
    keeps_data
    zeroes_and_discards
    refuses_nonsense
    resets
}
