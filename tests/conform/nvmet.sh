# The kernel's own NVMe/TCP target, for guest scripts: a peer others wrote.
NVMET=/sys/kernel/config/nvmet

# nvmet_export NQN DEVICE PORT: one namespace, any host, on 127.0.0.1.
nvmet_export() {
    modprobe nvmet-tcp
    [ -d "$NVMET" ] || mount -t configfs config /sys/kernel/config
    mkdir "$NVMET/subsystems/$1" "$NVMET/subsystems/$1/namespaces/1" "$NVMET/ports/$3"
    echo 1 > "$NVMET/subsystems/$1/attr_allow_any_host"
    echo "$2" > "$NVMET/subsystems/$1/namespaces/1/device_path"
    echo 1 > "$NVMET/subsystems/$1/namespaces/1/enable"
    echo tcp > "$NVMET/ports/$3/addr_trtype"
    echo ipv4 > "$NVMET/ports/$3/addr_adrfam"
    echo 127.0.0.1 > "$NVMET/ports/$3/addr_traddr"
    echo "$3" > "$NVMET/ports/$3/addr_trsvcid"
    nvmet_start "$1" "$3"
}
nvmet_start() { ln -s "$NVMET/subsystems/$1" "$NVMET/ports/$2/subsystems/$1"; }
# Every connection is cut.
nvmet_stop() { rm "$NVMET/ports/$2/subsystems/$1"; }
nvmet_remove() {
    nvmet_stop "$1" "$2"
    rmdir "$NVMET/ports/$2"
    echo 0 > "$NVMET/subsystems/$1/namespaces/1/enable"
    rmdir "$NVMET/subsystems/$1/namespaces/1" "$NVMET/subsystems/$1"
}
