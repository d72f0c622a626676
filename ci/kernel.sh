#!/usr/bin/env bash
# Runs a program, as root, on a Linux kernel that has WireGuard: Debian's cloud kernel in an emulator, for machines whose own
# kernel lacks it. It is slow, so it shows what is right and never what is fast.
#
#   ci/kernel.sh PROGRAM [ARGUMENT…]     exit status 0 where the program's is
#
# In a script, BusyBox comes before ip of the same name: write /bin/ip. The machine has the program with its libraries, ip, bridge, nft, wg and BusyBox, no disk, and no network but its own loopback.
# Needs the packages qemu-system-x86 busybox-static cpio kmod iproute2 nftables wireguard-tools. KERNEL_TIMEOUT, in seconds, is 300.
set -euo pipefail
cache=${KERNEL_CACHE:-/var/cache/private-networks-kernel}
modules=(wireguard veth vxlan bridge tun dummy nf_tables nft_chain_nat nft_ct nft_reject_inet nft_reject_bridge nft_meta_bridge br_netfilter nf_conntrack_bridge
    nft_compat nft_limit nft_counter nft_log nfnetlink nf_reject_ipv4 nf_reject_ipv6 af_packet)

if [[ ! -e $cache/vmlinuz ]]; then
    mkdir -p "$cache"
    work=$(mktemp -d)
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -1)
    (cd "$work" && apt-get download -qq "${package:?apt knows no cloud kernel}" && dpkg-deb -x ./*.deb .)
    release=$(ls "$work/lib/modules")
    depmod -b "$work" "$release"
    mkdir -p "$cache/modules"
    # Each module after those it needs; what is built in, or has gone into another, is not there.
    for module in "${modules[@]}"; do
        modprobe -d "$work" -S "$release" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r file; do
        cp "$file" "$cache/modules/"
        basename "$file"
    done >"$cache/order"
    mv "$work"/boot/vmlinuz-* "$cache/vmlinuz"
    rm -rf "$work"
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,etc,modules,lib,lib64,usr}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$cache"/modules/* "$cache/order" "$root/modules/"
with_libraries() {
    local file=$1 to=$2
    cp -L "$file" "$root/$to"
    { ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; } | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        [[ -e $root$library ]] || cp -L "$library" "$root$library"
    done
}
for tool in ip bridge nft wg; do with_libraries "$(command -v "$tool")" "bin/$tool"; done
program=$1
shift
with_libraries "$program" bin/program
printf '%q ' "$@" >"$root/arguments"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir /busybox; /bin/busybox --install -s /busybox
export PATH=/bin:/busybox HOME=/tmp PN_REQUIRE_ROOT=1 RUST_BACKTRACE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
while read -r module; do insmod /modules/"$module" 2>/dev/null; done </modules/order
ip link set lo up
eval "/bin/program $(cat /arguments)"
echo "kernel.sh: status $?"
poweroff -f
INIT
chmod +x "$root/init"
image=$(mktemp)
trap 'rm -rf "$root" "$image"' EXIT
(cd "$root" && find . | cpio -o -H newc --quiet) >"$image"
log=$(mktemp)
trap 'rm -rf "$root" "$image" "$log"' EXIT
timeout "${KERNEL_TIMEOUT:-300}" qemu-system-x86_64 -accel tcg -cpu max -M q35 -nic none -vga none -m 1024 -nographic -no-reboot \
    -kernel "$cache/vmlinuz" -initrd "$image" -append "console=ttyS0 panic=-1 quiet mitigations=off" </dev/null | tr -d '\r' | tee "$log"
grep -q '^kernel.sh: status 0$' "$log"
