#!/bin/sh
# The guest is what tests need: a recent kernel with ublk and the kernel's NVMe/TCP host.
# vm: limit=60
. /usr/lib/ubs/prelude.sh

say "kernel $(uname -r)"
modprobe -a ublk_drv nvme-tcp nvmet-tcp
[ -c /dev/ublk-control ] || fail "ublk_drv gave no /dev/ublk-control"
[ -c /dev/nvme-fabrics ] || fail "nvme-tcp gave no /dev/nvme-fabrics"
say "ublk module parameters: $(grep -H . /sys/module/ublk_drv/parameters/* | tr '\n' ' ')"
say "io_uring_disabled = $(cat /proc/sys/kernel/io_uring_disabled)"
say "root disk: $(readlink /dev/disk/by-serial/root)"
