#!/usr/bin/env bash
# Builds the fuzz targets with coverage instrumentation and runs each for a number of seconds: ci/fuzz.sh SECONDS [TARGET…]
# The flags are those that cargo-fuzz passes, less the sanitizers, which are ci/sanitize.sh's: the code under test is safe Rust but for a sum.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:?usage: ci/fuzz.sh SECONDS [TARGET…]}
shift
host=$(rustc -vV | sed -n 's/^host: //p')
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
RUSTFLAGS="$flags" cargo build --release --quiet --target "$host"
for target in "${@:-answer frame framing name offload vxlan}"; do
    for name in $target; do
        mkdir -p "corpus/$name" "artifacts/$name"
        echo "fuzzing $name for $seconds s"
        "target/$host/release/$name" -max_total_time="$seconds" -artifact_prefix="artifacts/$name/" -print_final_stats=1 \
            -timeout=10 -rss_limit_mb=2048 "corpus/$name" "seeds/$name" 2>"artifacts/$name.log" || { tail -40 "artifacts/$name.log"; exit 1; }
        grep -E "stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)" "artifacts/$name.log"
    done
done
