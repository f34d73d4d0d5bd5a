#!/bin/sh
# The guest is what tests need: a recent kernel with ublk and the kernel's NVMe/TCP host.
# vm: build=ublk/features limit=60
. /usr/lib/ubs/prelude.sh

say "kernel $(uname -r)"
modprobe -r ublk_drv 2> /dev/null || true # another script may have loaded it
refuses 'ublk without its module' features
grep -q 'ublk_drv' /tmp/refuses.out || fail "the remedy is not named: $(cat /tmp/refuses.out)"
modprobe -a ublk_drv nvme-tcp nvmet-tcp
[ -c /dev/ublk-control ] || fail 'ublk_drv gave no /dev/ublk-control'
[ -c /dev/nvme-fabrics ] || fail 'nvme-tcp gave no /dev/nvme-fabrics'
features
say "io_uring_disabled = $(cat /proc/sys/kernel/io_uring_disabled)"
say "root disk: $(readlink /dev/disk/by-serial/root)"
