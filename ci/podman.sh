#!/usr/bin/env bash
# Containers that Podman runs, each on a node of its own, in a private network of the kernel's data plane: they resolve each
# other's names and reach each other. Needs root on Debian for its packages: podman runc busybox-static curl
# iproute2 nftables python3.
# The image is made here; nothing is fetched, and nothing of it is left.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -z ${PN_BINARIES:-} ]]; then
    cargo build --locked --release --quiet -p pn-fleet --bins
    PN_BINARIES=$(cargo metadata --locked --no-deps --format-version 1 |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release
fi
work=$(mktemp -d) name=podman-$$
store=sqlite:$work/state.sqlite
podman() {
    command podman --root "$work/storage" --runroot "$work/run" --storage-driver vfs --runtime runc --cgroup-manager cgroupfs "$@"
}
pn() { "$PN_BINARIES/pn" --store "$store" "$@"; }
agents=()
clean() {
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
    for agent in "${agents[@]}"; do kill "$agent" 2>/dev/null && wait "$agent" || true; done
    for namespace in a b backend waf; do ip netns delete "$name-$namespace" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT

# Two nodes on one cable.
for node in a b; do ip netns add "$name-$node"; done
ip link add eth0 netns "$name-a" type veth peer name eth0 netns "$name-b"
for node in a:192.0.2.1 b:192.0.2.2; do
    at=$name-${node%%:*} address=${node#*:}
    ip -n "$at" address add "$address/24" dev eth0
    ip -n "$at" link set eth0 up
    ip netns exec "$at" "$PN_BINARIES/pn-agent" --store "$store" --node "node-${node%%:*}" --underlay "$address" --backend linux \
        --key-file "$work/${node%%:*}.key" 2>"$work/${node%%:*}.log" &
    agents+=($!)
done

# The image: BusyBox, and curl with what it needs.
mkdir -p "$work/root"/{bin,etc,tmp,proc,sys,dev,www}
cp /bin/busybox "$work/root/bin/"
for applet in sh nslookup httpd sleep; do ln -s busybox "$work/root/bin/$applet"; done
cp "$(command -v curl)" "$work/root/bin/"
ldd "$work/root/bin/curl" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$work/root$(dirname "$library")" && cp -L "$library" "$work/root$library"
done
echo "hello from the backend" >"$work/root/www/index.html"
tar -C "$work/root" -cf "$work/image.tar" .
image=localhost/$name
podman import --quiet "$work/image.tar" "$image" >/dev/null

# A project, an app, and a container of it on each node, in a namespace that is there before Podman comes.
pn projects-add shop >/dev/null
pn projects-enable-private-network shop --accept-terms you@example.com >/dev/null
pn create my-app --project shop >/dev/null
pn scale web:1 my-app-backend:1 --app my-app >/dev/null
for _ in $(seq 300); do
    nodes=$(pn status --format json | grep -o '"node-[ab]"' | sort -u | wc -l)
    [[ $nodes != 2 ]] || break
    sleep 0.1
done
for container in backend waf; do ip netns add "$name-$container"; done
pn start my-app-backend --app my-app --node node-b --netns "/run/netns/$name-backend"
pn start web --app my-app --node node-a --netns "/run/netns/$name-waf"

# What a container needs besides its namespace: the resolver of its network.
echo "nameserver 169.254.53.53" >"$work/resolv.conf"
run() {
    podman run --network "ns:/run/netns/$name-$1" --volume "$work/resolv.conf:/etc/resolv.conf:ro" \
        --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 "${@:2}"
}
run backend --detach "$image" /bin/httpd -f -p 3000 -h /www >/dev/null
backend=$(pn private-networks-domain-names --app my-app --format json |
    python3 -c 'import json, sys; print(next(n for n in json.load(sys.stdin)["data"] if n.startswith("1.my-app-backend.")))')
said=$(run waf --rm "$image" /bin/sh -c "
    for _ in 1 2 3 4 5 6 7 8 9 10; do nslookup $backend >/dev/null 2>&1 && break; sleep 0.5; done
    nslookup $backend && curl --silent --max-time 10 http://$backend:3000/")
echo "$said"
grep -q "hello from the backend" <<<"$said"
# And nothing else: neither other names nor the nodes.
for elsewhere in example.com 192.0.2.1 192.0.2.2; do
    if run waf --rm "$image" /bin/curl --silent --show-error --max-time 5 "http://$elsewhere/" 2>"$work/said"; then
        echo "a container reaches $elsewhere" && exit 1
    fi
    cat "$work/said"
done
echo "containers of Podman resolve and reach each other, on two nodes"
