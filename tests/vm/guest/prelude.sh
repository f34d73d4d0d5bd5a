# Words for guest scripts: `. /usr/lib/ubs/prelude.sh` first.
set -eu

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }

# wait_for SECONDS WHAT COMMAND...: poll COMMAND until it succeeds.
wait_for() {
    _left=$(($1 * 10)) _what=$2
    shift 2
    while ! "$@" > /dev/null 2>&1; do
        _left=$((_left - 1))
        [ "$_left" -gt 0 ] || fail "waited in vain for $_what"
        sleep 0.1
    done
}

# same WHAT WANTED GOT
same() { [ "$2" = "$3" ] || fail "$1: wanted '$2', got '$3'"; }

# refuses WHAT COMMAND...: COMMAND must fail.
refuses() {
    _what=$1
    shift
    if "$@" > /tmp/refuses.out 2>&1; then fail "$_what was accepted"; fi
}

# nvme_of NQN: the /dev/nvmeXnY of the first namespace of a connected subsystem.
nvme_of() {
    for _ns in /sys/class/nvme-subsystem/nvme-subsys*; do
        [ "$(cat "$_ns/subsysnqn" 2> /dev/null)" = "$1" ] || continue
        for _dev in "$_ns"/nvme*n*; do
            _name=${_dev##*/}
            case $_name in *c[0-9]*n*) continue ;; esac
            [ -b "/dev/$_name" ] && { echo "/dev/$_name"; return 0; }
        done
    done
    return 1
}

# fio_verify FILE-OR-DEVICE SIZE [MORE FIO OPTIONS...]: random writes, read back and compared.
fio_verify() {
    _target=$1 _size=$2
    shift 2
    fio --name=verify --filename="$_target" --size="$_size" --rw=randwrite --bs=4k --direct=1 \
        --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 \
        --randseed=7 --output-format=normal --eta=never "$@" > /tmp/fio.out 2>&1 \
        || { cat /tmp/fio.out; fail "fio --verify on $_target"; }
    grep -E 'IOPS=|err=' /tmp/fio.out
}

# cut_the_power: the last word of a part that ends with `# vm: cut`; the machine is killed as it is.
cut_the_power() {
    printf '\n@cut\n'
    sleep 600
    fail "the power is still on"
}
