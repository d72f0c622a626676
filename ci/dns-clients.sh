#!/usr/bin/env bash
# Asks the name server of crates/pn-dns/examples/name-server.rs for its whole zone with the resolvers that people have: dig, kdig,
# glibc, BusyBox, c-ares (Node) and nginx. As root, in a network namespace of its own, because most of them only know port 53.
# A resolver that is not installed is left out, and that is an error with PN_REQUIRE_ROOT=1.
set -euo pipefail
cd "$(dirname "$0")/.."
left_out() {
    echo "left out: $1" >&2
    [[ ${PN_REQUIRE_ROOT:-0} != 1 ]] || exit 1
}
if [[ $EUID != 0 ]]; then
    left_out "the resolvers, which need root for a network namespace"
    exit 0
fi

cargo build --locked --release --quiet -p pn-dns --example name-server
server=${CARGO_TARGET_DIR:-target}/release/examples/name-server
work=$(mktemp -d)
space=dns-clients-$$
resolver=127.0.0.53
finish() {
    exec 3>&- || true
    [[ -z ${nginx_pid:-} ]] || kill "$nginx_pid" 2>/dev/null || true
    [[ -z ${http_pid:-} ]] || kill "$http_pid" 2>/dev/null || true
    wait 2>/dev/null || true
    ip netns delete "$space" 2>/dev/null || true
    rm -rf "$work" "/etc/netns/$space"
}
trap finish EXIT
ip netns add "$space"
mkdir -p "/etc/netns/$space"
echo "nameserver $resolver" >"/etc/netns/$space/resolv.conf"
echo "hosts: dns" >"/etc/netns/$space/nsswitch.conf"
in_space() { ip netns exec "$space" "$@"; }
in_space ip link set lo up
# glibc asks for the families of which there is an address, loopback not counted; and here are all containers.
in_space ip address add 10.240.0.1/22 dev lo
in_space ip address add fd00::1/64 dev lo

mkfifo "$work/stdin"
ip netns exec "$space" "$server" $resolver:53 <"$work/stdin" >"$work/said" &
exec 3>"$work/stdin"
for _ in $(seq 200); do
    grep -q '^ready$' "$work/said" && break
    sleep 0.05
done
grep -v '^ready$' "$work/said" >"$work/names"
count=$(wc -l <"$work/names")
[[ $count -gt 100 ]] || { echo "the server said nothing" >&2; exit 1; }
faults=0
fault() { echo "wrong: $1" >&2; faults=1; }
sorted() { tr ' ' '\n' | grep -v '^$' | sort -u | tr '\n' ' '; }

# Holds what a command says of each name to the zone. The names of 100 addresses do not fit into a datagram: `part` allows for
# resolvers without TCP.
check() {
    local what=$1 part=$2 name expected found
    shift 2
    while read -r name expected; do
        expected=$(sorted <<<"$expected")
        found=$("$@" "$name" 2>/dev/null | sorted) || true
        [[ $found == "$expected" ]] && continue
        if [[ $part == part && $(wc -w <<<"$expected") == 100 && $(wc -w <<<"$found") -ge 20 ]]; then
            [[ -z $(comm -23 <(tr ' ' '\n' <<<"$found" | sort) <(tr ' ' '\n' <<<"$expected" | sort)) ]] && continue
        fi
        fault "$what says of $name: $found"
    done <"$work/names"
    echo "$what: $count names"
}

short() { in_space "$dig" +short "@$resolver" "$@" | grep -v -e '^;' -e '^$'; }
with_dig() { short "$1" A; }
with_getent() { in_space getent ahostsv4 "$1" | cut -d' ' -f1; }
with_busybox() { in_space "$busybox" nslookup -type=a "$1" "$resolver" | grep -A9999 '^Name' | sed -n 's/^Address[^:]*: *//p'; }

network=pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c.private-network.internal
app=ap-6f7d6a1e-3f0e-4b4e-9d4c-0d9a3c1b2e4f.$network
quiet=ap-1b8f1d0a-92a5-4a62-9a0c-4a6c5a2f7d11.$network
for dig in dig kdig; do
    if ! command -v $dig >/dev/null; then
        left_out "$dig, which is not installed"
        continue
    fi
    check $dig whole with_dig
    # Status, and one of each kind of record.
    for line in "NOERROR idle.$quiet A" "NOERROR $quiet A" "NXDOMAIN 9.web.$app A" "NXDOMAIN no.$app A" \
        "REFUSED example.com A" "NOERROR 1.web.$app TXT"; do
        read -r status query <<<"$line"
        # shellcheck disable=SC2086
        in_space $dig "@$resolver" $query >"$work/out" 2>&1 || true
        grep -q "status: $status" "$work/out" || fault "$dig $query is not $status"
    done
    while IFS='|' read -r query expected; do
        # shellcheck disable=SC2086
        found=$(short $query | sort | tr '\n' ' ')
        [[ ${found,,} == "$expected" ]] || fault "$dig $query is $found"
    done <<LINES
1.web.$app AAAA|$(short "1.web.$app" AAAA) 
_3000._tcp.my-app-backend.$app SRV|0 0 3000 1.my-app-backend.$app. 0 0 3000 2.my-app-backend.$app. 0 0 3000 3.my-app-backend.$app. 
$network NS|$network. 
-x $(short "1.web.$app" A)|1.web.$app. 
-x $(short "1.web.$app" AAAA)|1.web.$app. 
LINES
done

check "glibc's getaddrinfo" whole with_getent
[[ $(in_space getent ahosts "1.web.$app" | cut -d' ' -f1 | sort -u | wc -l) == 2 ]] || fault "getaddrinfo of both families"
in_space getent ahosts "idle.$quiet" >/dev/null && fault "getaddrinfo of a type without containers"

if busybox=$(command -v busybox); then check "BusyBox" part with_busybox; else left_out "BusyBox, which is not installed"; fi

if command -v node >/dev/null; then
    cat >"$work/ask.js" <<'JS'
const dns = require("node:dns").promises, fs = require("node:fs");
const lines = fs.readFileSync(process.argv[2], "utf8").trim().split("\n").map((line) => line.split(" "));
(async () => {
  dns.setServers([process.argv[3]]);
  for (const [name, ...expected] of lines) {
    const found = (await dns.resolve4(name)).sort();
    if (found.join() !== expected.sort().join()) { console.error(`wrong: c-ares says of ${name}: ${found}`); process.exitCode = 1; }
  }
  console.log(`c-ares: ${lines.length} names`);
})();
JS
    in_space node "$work/ask.js" "$work/names" "$resolver" || faults=1
else
    left_out "c-ares, for which Node is not installed"
fi

if command -v nginx >/dev/null && command -v curl >/dev/null && command -v python3 >/dev/null; then
    # Something that listens at every container's address.
    mkdir "$work/www"
    echo here >"$work/www/index.html"
    ip netns exec "$space" python3 -m http.server --bind 0.0.0.0 --directory "$work/www" 3000 >/dev/null 2>&1 3>&- &
    http_pid=$!
    cat >"$work/nginx.conf" <<CONF
daemon off; pid $work/nginx.pid; error_log $work/nginx.log; user root;
events {}
http {
  access_log off; resolver $resolver ipv6=off;
  server {
    listen 127.0.0.1:8080;
    location / { proxy_pass http://\$arg_name:3000/index.html; add_header X-Upstream \$upstream_addr; proxy_connect_timeout 5s; }
  }
}
CONF
    ip netns exec "$space" nginx -c "$work/nginx.conf" 2>/dev/null 3>&- &
    nginx_pid=$!
    for _ in $(seq 200); do
        in_space curl -s -o /dev/null "http://127.0.0.1:8080/?name=1.web.$app" && in_space curl -s -o /dev/null http://10.240.0.1:3000 && break
        sleep 0.05
    done
    while read -r name expected; do
        found=$(in_space curl -s -D - -o /dev/null "http://127.0.0.1:8080/?name=$name" | tr -d '\r' | sed -n 's/^X-Upstream: \(.*\):3000$/\1/p')
        [[ -n $found && " $expected " == *" $found "* ]] || fault "nginx went for $name to: $found"
    done <"$work/names"
    echo "nginx: $count names"
else
    left_out "nginx, which needs nginx, curl and python3"
fi
exit $faults
