#!/usr/bin/env bash
# Installs what a build and the tests need and the machine lacks; says what, and does nothing else.
set -euo pipefail

# What to build with and what the test guest is made of. Tools that would change this machine when
# installed (mdadm brings udev and units) are unpacked for the guest by tests/vm instead.
packages=(
    build-essential pkg-config capnproto libcapnp-dev linux-libc-dev
    qemu-system-x86 busybox-static e2fsprogs xfsprogs kmod xz-utils dash binutils util-linux
    fio nvme-cli iproute2 dmsetup strace
)
# The model checker's runtime and what fetches it; other packages of the same programs will do.
command -v java > /dev/null || packages+=(default-jre-headless)
python3 -m pip --version > /dev/null 2>&1 || packages+=(python3-pip)
# bindgen, for the tests that compare ublk's layouts with the kernel's header; any version does.
clang='libclang-*-dev'

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2> /dev/null | grep -qx installed; }

command -v cargo > /dev/null || { echo "deps: cargo is missing: install Rust (rustup, or a rustc of at least the version in Cargo.toml)" >&2; exit 2; }
if ! command -v dpkg-query > /dev/null; then
    echo "deps: not a Debian-like system; install by hand: ${packages[*]} libclang" >&2
    exit 0
fi

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
installed "$clang" || missing+=(libclang-dev)

if [ ${#missing[@]} -gt 0 ]; then
    echo "deps: installing ${missing[*]}"
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null || { echo "deps: run as root or install sudo; wanted: ${missing[*]}" >&2; exit 2; }
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get -q update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y install --no-install-recommends "${missing[@]}"
fi

for component in rustfmt clippy; do
    program=cargo-${component/rustfmt/fmt}
    if ! command -v "$program" > /dev/null && command -v rustup > /dev/null; then
        echo "deps: adding the Rust component $component"
        rustup component add "$component"
    fi
done
echo "deps: all there"
