#!/usr/bin/env bash
# Finds a kernel with ublk for the demo: the host's, or one in a VM. PROFILE: cargo profile.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
programs=$target/$([ "$profile" = dev ] && echo debug || echo "$profile")
work=$target/demo
mkdir -p "$work"

"$cargo" build --profile "$profile" --workspace --bin metad --bin storaged --bin clientd --bin ubsctl
# The files to copy: this repository, as it is checked out.
if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
    git ls-files -z | tar --null -T - -cf "$work/tree.tar"
else
    tar --exclude=./target -cf "$work/tree.tar" .
fi

if [ "$(id -u)" = 0 ] && { [ -c /dev/ublk-control ] || modprobe ublk_drv 2> /dev/null; }; then
    echo "demo: on this host's own ublk, kernel $(uname -r)"
    PATH=$(cd "$programs" && pwd):$PATH sh tests/demo/demo.sh "$(cd "$work" && pwd)" "$(cd "$work" && pwd)/tree.tar"
    echo "demo: ok"
    exit
fi
echo "demo: this host has no ublk; in a VM with a Debian kernel (software emulation: figures are far below a real machine's)"
cat > "$work/in_vm.sh" << 'GUEST'
#!/bin/sh
. /usr/lib/ubs/prelude.sh
modprobe ublk_drv
mkfs.ext4 -q -F /dev/disk/by-serial/demo
mkdir -p /mnt/demo
mount /dev/disk/by-serial/demo /mnt/demo
exec sh /usr/share/ubs/demo.sh /mnt/demo /usr/share/ubs/tree.tar
GUEST
"$cargo" run -q -p vmtest -- run --script "$work/in_vm.sh" --timeout 480 --mem 3G --disk 4G,serial=demo \
    --bin "$programs/metad" "$programs/storaged" "$programs/clientd" "$programs/ubsctl" \
    --file tests/demo/demo.sh:/usr/share/ubs/demo.sh "$work/tree.tar:/usr/share/ubs/tree.tar"
echo "demo: ok"
