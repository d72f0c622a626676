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
# g++ for libFuzzer, python3 for the licence gate, util-linux for setpriv, which runs the example as an ordinary user.
packages=(g++ python3 util-linux)
if missing=$(dpkg-query -W -f '${Package} ${Status}\n' "${packages[@]}" 2>/dev/null | grep -c 'install ok installed'); then :; fi
if [[ $missing == "${#packages[@]}" ]]; then
    echo "present: ${packages[*]}"
elif [[ $EUID == 0 ]]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}"
else
    left_out "the installation of ${packages[*]}, which needs root"
fi

step "format, lints, docs"
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets --all-features --quiet -- -D warnings
cargo clippy --locked -p pn-core --quiet -- -D warnings
cargo clippy --locked -p pn-dns --no-default-features --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features --quiet

step "licences and purity"
ci/licences.py Cargo.toml fuzz/Cargo.toml
ci/purity.sh

step "tests"
cargo test --locked --workspace --all-features --quiet

step "5 000 random lives of a state against the model"
PN_MACHINE_CASES=5000 cargo test --locked --release --quiet -p pn-core --lib -- machine

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

step "benchmarks, a smoke of each"
cargo bench --locked --quiet -p pn-benches -- --test
cargo run --locked --release --quiet -p pn-benches --bin in-process -- --seconds 1
cargo run --locked --release --quiet -p pn-benches --bin region -- --networks 400

step "fuzzing, 10 s each"
ci/fuzz.sh 10

step "done"
