#!/usr/bin/env bash
# Holds the invariants of ARCHITECTURE.md that a compiler does not: what pn-core depends on, which crates do no I/O, and which
# file alone names a library.
set -euo pipefail
cd "$(dirname "$0")/.."
faults=0
fault() { echo "purity: $1" >&2; faults=1; }

# pn-core depends on these and on nothing else.
allowed=" async-trait base64 foldhash ipnet pn-core prefetch-index proc-macro2 quote syn thiserror thiserror-impl unicode-ident uuid "
for crate in $(cargo tree --locked -p pn-core -e normal,build --prefix none --format '{p}' | cut -d' ' -f1 | sort -u); do
    [[ $allowed == *" $crate "* ]] || fault "pn-core depends on $crate"
done

# Protocol code does no I/O: sockets, files, threads and clocks are the shells' business. Tests may.
shells='crates/(pn-dns/src/(server|forward|directory|zone_file|hosts_file|dynamic_update|transfer)(/|\.rs)|pn-overlay/src/(agent/run|conformance/driven)\.rs)'
pattern='std::net::(Udp|Tcp)|std::fs|std::thread|Instant::now|SystemTime|tokio|std::env|std::process'
while IFS=: read -r file line text; do
    [[ $file =~ $shells || $file =~ /tests(/|\.rs) ]] && continue
    # Everything after a file's test module is tests, and doc comments are prose.
    first_test=$(grep -n '#\[cfg(test)\]' "$file" | head -1 | cut -d: -f1 || true)
    [[ -n $first_test && $line -gt $first_test || $text =~ ^[[:space:]]*//[/!] ]] && continue
    fault "$file:$line does I/O: $text"
done < <(grep -nErH "$pattern" crates/pn-core/src crates/pn-dns/src crates/pn-overlay/src || true)

# One file alone names each of these.
only() {
    local library=$1 place=$2
    while IFS=: read -r file line text; do
        [[ $file =~ $place || $text =~ ^[[:space:]]*//[/!] ]] || fault "$file:$line names $library: $text"
    done < <(grep -nErH "\b${library}(::|;)" crates examples benches --include='*.rs' || true)
}
only boringtun '^crates/pn-overlay/src/peer\.rs$'
only hickory_proto '^crates/pn-dns/(src/wire(\.rs|/)|tests/forward\.rs$)'
only hickory_resolver '^crates/pn-dns/src/forward\.rs$'
only 'domain::(base|rdata|tsig)' '^crates/pn-dns/src/messages(\.rs|/)'
only smoltcp '^crates/pn-backend-userspace/src/(netstack(/|\.rs)|tcp\.rs$)'
only etcd_client '^crates/pn-store/src/etcd(\.rs|/)'
only rusqlite '^crates/pn-store/src/sqlite(\.rs|/)'

# The kernel's data plane starts one kind of process, nft, from one place.
while IFS=: read -r file line text; do
    [[ $file =~ ^crates/pn-backend-linux/src/(firewall|.*/tests)\.rs$ || $text =~ ^[[:space:]]*//[/!] ]] || fault "$file:$line starts processes: $text"
done < <(grep -nErH '\b(std|tokio)::process|\bCommand::new|\b(fork|vfork|posix_spawnp?|exec(l|v)[pe]*)\(' crates/pn-backend-linux/src || true)

# No unsafe code but in a backend's sys.rs.
for lib in crates/*/src/lib.rs; do
    case $lib in
    crates/pn-backend-*) grep -q '#!\[deny(unsafe_code)\]' "$lib" || fault "$lib does not deny unsafe code" ;;
    *) grep -q '#!\[forbid(unsafe_code)\]' "$lib" || fault "$lib does not forbid unsafe code" ;;
    esac
done
while IFS=: read -r file line text; do
    [[ $file =~ ^crates/pn-backend-[a-z]+/src/sys\.rs$ ]] || fault "$file:$line lets unsafe code in: $text"
done < <(grep -nErH '(allow|expect)\(.*unsafe_code' crates --include='*.rs' || true)
exit $faults
