#!/usr/bin/env bash
# Runs the tests that reach the backends' unsafe code with AddressSanitizer, whose runtime comes with the toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
# Flags for one target alone, so that build scripts and procedural macros have none.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" cargo test --locked --quiet --target "$host" --target-dir target/sanitized \
    -p pn-backend-userspace -p pn-backend-linux --lib --test tun --test underlay --test sockets
