#!/usr/bin/env bash
# The systemd units are ones that systemd accepts without a warning and rates as hardened, and they
# keep the promises that recovery rests on. Exit code 77: systemd-analyze is not installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v systemd-analyze > /dev/null || { echo "units: skipped: systemd-analyze is not installed"; exit 77; }

# systemd wants to see the programs: a root of our own with empty ones in it.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/usr/{bin,lib/systemd/system}
cp deploy/systemd/*.service "$root/usr/lib/systemd/system/"
host=/usr/lib/systemd/system
[ -d "$host" ] || host=/lib/systemd/system
find "$host" -maxdepth 1 \( -name '*.target' -o -name '*.slice' -o -name 'modprobe@.service' \
    -o -name 'system-modprobe.slice' -o -name '-.mount' \) -exec cp -a {} "$root/usr/lib/systemd/system/" \;
ln -s usr/lib "$root/lib"
for program in metad storaged clientd modprobe; do
    install -m 755 /dev/null "$root/usr/bin/$program"
done
install -D -m 755 /dev/null "$root/usr/sbin/modprobe"
ln -s usr/sbin "$root/sbin"
ln -s usr/bin "$root/bin"

failed=0
# Exposure by systemd's own measure, times ten: lower is better. clientd needs CAP_SYS_ADMIN.
for unit in metad:15 storaged:30 clientd:35; do
    name=${unit%:*} most=${unit#*:}
    if ! said=$(systemd-analyze verify --man=no --root="$root" "$name.service" 2>&1) || [ -n "$said" ]; then
        printf 'units: %s: systemd says: %s\n' "$name" "$said"
        failed=1
    fi
    if rated=$(systemd-analyze security --offline=yes --root="$root" --threshold="$most" "$name.service" 2>&1); then
        printf 'units: %s: %s\n' "$name" "$(printf '%s\n' "$rated" | sed -n 's/^.*Overall/overall/p')"
    else
        printf '%s\nunits: %s is more exposed than %s/100\n' "$rated" "$name" "$most"
        failed=1
    fi
done

promise() { # promise UNIT LINE WHY
    grep -qx "$2" "deploy/systemd/$1.service" || { echo "units: $1 lacks '$2': $3"; failed=1; }
}
for name in metad storaged clientd; do
    promise "$name" 'Type=notify' 'dependants would start too early'
    promise "$name" 'Restart=always' 'it would stay down after a crash'
done
promise clientd 'StartLimitIntervalSec=0' 'IO would wait for ever after a few crashes'
promise clientd 'PrivateMounts=yes' 'its exit could wait for its own device'
promise clientd 'LimitMEMLOCK=infinity' 'the arena is locked memory'
promise storaged 'LimitMEMLOCK=infinity' 'the arena is locked memory'
[ "$failed" = 0 ] && echo "units: 3 units accepted"
exit "$failed"
