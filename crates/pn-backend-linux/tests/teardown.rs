//! What is not ours is left alone, and teardown leaves nothing. It counts what this process has open, so it has one of its own.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

#[path = "kernel/hosts/mod.rs"]
mod hosts;

use std::collections::BTreeSet;

use hosts::{Region, eventually, is_root, sh};

/// Everything of a namespace that others could have an interest in.
fn snapshot(netns: &str) -> String {
    let in_it = format!("ip netns exec {netns}");
    [
        "ip -o link",
        "ip -o addr",
        "ip -o route show table all",
        "ip -o rule",
        "ip -6 -o rule",
        // Those that somebody made; what the kernel learns by itself it forgets by itself.
        "ip neigh show nud permanent",
        "bridge fdb",
        "nft -s list ruleset",
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
    ]
    .map(|line| sh(&format!("{in_it} {line}")))
    .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_objects_are_left_alone_and_teardown_leaves_nothing() {
    if !is_root() {
        return;
    }
    let before = files();
    let mut region = Region::start(2).await;
    let a = region.add(1, 1).await;
    region.add(1, 2).await;
    region.add(2, 1).await;
    let host = &region.hosts[0];
    host.netns.sh("ip link add vxlan0 type vxlan id 1 dstport 4789 local 192.0.2.1 && ip link add br0 type bridge \
         && ip link set vxlan0 master br0 && ip addr add 10.240.0.1/22 dev br0 && ip link set br0 up");
    let rules = "table inet private_network; add table bridge mine; \
         add chain bridge mine c { type filter hook forward priority 0; }; add rule bridge mine c counter accept";
    host.netns.sh(&format!("nft \"add {rules}\"; ip rule add from 198.51.100.0/24 lookup 77 priority 777"));
    region.netns(a).sh(
        "ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip addr add 198.51.100.2/24 dev eth0 \
         && ip route add default via 198.51.100.1 && ip neigh add 198.51.100.1 lladdr 02:00:00:00:00:09 dev eth0 \
         && nft add table inet private_network && nft add chain inet private_network c \
         && nft add rule inet private_network c counter drop && ip rule add from 198.51.100.2 lookup 78 priority 778 \
         && ip route add 203.0.113.0/24 via 198.51.100.1 table 78 && ip -6 rule add from 2001:db8::/32 lookup 79",
    );
    let look = |region: &Region| [snapshot(&region.hosts[0].netns.0), snapshot(&region.netns(a).0)];
    eventually("addresses that nobody else has", || !look(&region)[0].contains("tentative"));
    let quiet = look(&region);
    let ours = [["counter", "lookup 77"], ["counter", "lookup 79"]];
    assert!(quiet.iter().zip(ours).all(|(look, ours)| ours.iter().all(|one| look.contains(one))), "{quiet:?}");
    region.apply().await;
    assert_eq!(look(&region)[0], quiet[0], "the host's own namespace was changed");
    let inside: BTreeSet<String> = look(&region)[1].lines().map(ToOwned::to_owned).collect();
    let lost: Vec<&str> = quiet[1].lines().filter(|line| !inside.contains(*line)).collect();
    assert_eq!(lost, Vec::<&str>::new(), "the container lost something of its own");

    region.tear_down().await;
    assert_eq!(look(&region), quiet, "something is left");
    for host in &region.hosts {
        assert!(!host.directory.join(host.id.to_string()).exists(), "namespaces are left");
    }
    let containers: Vec<String> = region.containers.values().map(|netns| netns.0.clone()).collect();
    drop(region);
    assert!(containers.iter().all(|name| !hosts::run(&format!("ip netns exec {name} true")).status.success()));
    // The thread and the sockets end as soon as the runtime gets to it.
    eventually("the end of threads and files", || files() <= before);
}

/// Counts this process's threads of ours and its open namespaces and devices.
fn files() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let threads = threads.filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("private-network"))
    });
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = open.filter(|file| {
        let target = std::fs::read_link(file.path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        target.starts_with("net:") || target == "/dev/net/tun"
    });
    threads.count() + open.count()
}
