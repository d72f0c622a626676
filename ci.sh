#!/usr/bin/env bash
# Builds and tests everything, the way it has to hold on a fresh machine: a Rust toolchain, a C compiler, and root on Debian,
# where it installs what the tests need besides. As another user it says what it leaves out.
#
#   PN_REQUIRE_ROOT=1   fail where something has to be left out
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} RUST_BACKTRACE=1

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
left_out() {
    echo "left out: $1" >&2
    [[ ${PN_REQUIRE_ROOT:-0} != 1 ]] || exit 1
}

step "Debian packages"
packages=(
    # To build: libFuzzer, etcd's client.
    g++ protobuf-compiler libprotobuf-dev
    # To be checked by: gates and probes.
    python3 util-linux procps iproute2 iputils-ping ethtool nftables tcpdump tshark socat curl openssl iperf3 wireguard-tools busybox-static dash
    # To be asked by and to work with: resolvers and name servers.
    bind9 bind9-utils bind9-dnsutils knot knot-dnsutils knot-dnssecutils nsd dnsmasq-base nodejs
    # To keep state in, and to be hidden behind.
    etcd-server etcd-client nginx libnginx-mod-http-modsecurity modsecurity-crs
    # A kernel with WireGuard, to boot.
    qemu-system-x86 cpio kmod
    # A container engine.
    podman runc
)
installed() { dpkg-query -W -f '${Package} ${Status}\n' "${packages[@]}" 2>/dev/null | grep -c 'install ok installed' || true; }
if [[ $(installed) == "${#packages[@]}" ]]; then
    echo "present: ${packages[*]}"
elif [[ $EUID == 0 ]]; then
    # What is installed is not to start as a service.
    policy=/usr/sbin/policy-rc.d
    [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made_policy=1; }
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
    [[ -z ${made_policy:-} ]] || rm $policy
else
    left_out "the installation of ${packages[*]}, which needs root"
fi

step "format, lints, docs"
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets --all-features --quiet -- -D warnings
cargo clippy --locked -p pn-core --quiet -- -D warnings
cargo clippy --locked -p pn-overlay --quiet -- -D warnings
cargo clippy --locked -p pn-store --quiet -- -D warnings
for features in "" forward files dynamic-update transfer; do
    cargo clippy --locked -p pn-dns --no-default-features --features "$features" --quiet -- -D warnings
done
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features --quiet

step "licences and purity"
ci/licences.py Cargo.toml fuzz/Cargo.toml
ci/purity.sh

step "tests"
cargo test --locked --workspace --all-features --quiet
# The other way without the kernel's WireGuard.
PN_TUNNEL=vxlan cargo test --locked --workspace --all-features --quiet --test kernel --test teardown

step "5 000 random lives of a state, and of an agent"
PN_MACHINE_CASES=5000 cargo test --locked --release --quiet -p pn-core --lib -- machine
PN_AGENT_CASES=5000 cargo test --locked --release --quiet -p pn-overlay --all-features --lib -- agent::tests::laws

step "the main job, as an ordinary user"
cargo build --locked --release --quiet --example private-network
example=$(mktemp -d)
trap 'rm -rf "$example"' EXIT
install -m 755 target/release/examples/private-network "$example/private-network"
chmod 755 "$example"
as_user=()
if [[ $EUID == 0 ]]; then
    as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs)
fi
for nodes in 3 1 5; do
    (cd / && timeout 15 "${as_user[@]}" "$example/private-network" --nodes "$nodes")
done
(cd / && timeout 15 "${as_user[@]}" "$example/private-network" --json) | python3 -c '
import json, sys
report = json.load(sys.stdin)
assert len(report["checks"]) == 12 and all(check["ok"] and check["evidence"] for check in report["checks"]), report["checks"]
assert all(set(network) == {"id", "vni", "subnet", "mtu", "domain_names"} for network in report["networks"])
assert report["public_url"].startswith("http://127.0.0.1:")
print("the JSON says the same")'

if [[ $EUID == 0 ]]; then
    # Both with what the tests were built with.
    step "the firewall use case"
    target/debug/examples/waf --json | python3 -c '
import json, sys
report = json.load(sys.stdin)
checks = report["checks"]
for check in checks:
    print("ok  " if check["ok"] else "FAIL", check["name"].ljust(28), check["evidence"])
assert len(checks) == 11 and all(check["ok"] and check["evidence"] for check in checks)
assert len({check["name"] for check in checks}) == 11
assert [network["vni"] for network in report["networks"]] == [1, 2], report["networks"]
assert all(set(network) == {"id", "vni", "subnet", "mtu", "domain_names"} for network in report["networks"])
assert report["public_url"] == "http://198.51.100.1/", report["public_url"]'
    # And as an ordinary user, who is root in a user namespace alone, and may open /dev/net/tun as on most systems.
    install -m 755 target/debug/examples/waf "$example/waf"
    mkdir "$example/dev"
    (cd / && HOME=/ unshare --mount sh -ec "
        mount -t tmpfs devices '$example/dev'
        mknod -m 666 '$example/dev/tun' c 10 200
        mount --bind '$example/dev/tun' /dev/net/tun
        exec setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user --net --mount \\
            sh -c 'mount -t tmpfs run /run && exec $example/waf'")
    step "containers of an engine"
    PN_BINARIES=$PWD/target/debug ci/podman.sh
    step "the zone through people's resolvers"
    ci/dns-clients.sh
    step "the kernel's WireGuard, on a kernel that has it"
    ci/linux-wireguard.sh
else
    left_out "the firewall use case, containers of an engine, people's resolvers and the kernel's WireGuard, which need root"
fi

step "benchmarks, a smoke of each"
cargo bench --locked --quiet -p pn-benches -- --test
cargo run --locked --release --quiet -p pn-benches --bin in-process -- --seconds 1
cargo run --locked --release --quiet -p pn-benches --bin region -- --networks 400
cargo run --locked --release --quiet -p pn-benches --bin dns -- --only pn-dns,echo --rounds 1 --seconds 1 --names 1000 --updates 20
if [[ $EUID == 0 ]]; then
    cargo run --locked --release --quiet -p pn-benches --bin overlay -- --only veth,vxlan,pn-userspace,pn-linux,pn-in-process --rounds 1 --seconds 1 --figures tcp1,udp64,rtt
    cargo run --locked --release --quiet -p pn-benches --bin program -- --rounds 1
fi

step "unsafe code, with AddressSanitizer"
ci/sanitize.sh

step "fuzzing, 10 s each"
ci/fuzz.sh 10

step "done"
