//! What is made, as `ip` and `bridge` list it, and what a newer plan reads again.

use crate::hosts;

use std::time::Duration;

use hosts::{Netns, Region, container, is_root, network};
use pn_core::backend::{Observed, OverlayBackend as _};
use pn_core::*;

/// Looks for words that follow each other.
fn says(said: &str, words: &str) -> bool {
    said.split_whitespace().collect::<Vec<_>>().join(" ").contains(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn x1_x2_x3_x11_x14_n5_n7_n10_a_network_is_what_it_has_to_be() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (here, there) = (region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let (host, place) = (&region.hosts[0], network(1).to_string());
    let vni = region.state.plan().networks[&network(1)].vni;
    let vxlan = host.sh_in(&place, "ip -d link show vxlan0");
    // X1: no learning. X14: the port. X11: made elsewhere, where its socket is.
    let of_vxlan = format!("vxlan id {vni} local 100.64.0.1");
    let of_the_device = [&*of_vxlan, "dstport 4789", "nolearning", "df set", "link-netnsid"];
    let of_the_interface = ["tun type tap", "vnet_hdr on persist off"];
    let words = if host.has_transport() { &of_the_device[..] } else { &of_the_interface };
    for words in words {
        assert!(says(&vxlan, words), "{words}: {vxlan}");
    }
    let sockets = "cat /proc/net/udp | grep -c \":12B5 \" || true";
    let count = |place: &str| host.sh_in(place, sockets).trim().to_owned();
    assert_eq!(count(&place), "0");
    assert!(!host.has_transport() || count("transport") == "1");
    // X3: nothing is flooded, and no question crosses the tunnel.
    for (port, suppress) in [("vxlan0", "on"), ("p0af00001", "off")] {
        let flags = host.sh_in(&place, &format!("bridge -d link show dev {port}"));
        for words in ["learning off flood off mcast_flood off bcast_flood off", &format!("neigh_suppress {suppress}")] {
            assert!(says(&flags, words), "{port}: {words}: {flags}");
        }
    }
    // X2: who is elsewhere is known before anybody asks, in all three tables.
    let (address, mac) = (region.address(there), MacAddr::of_ipv4(region.address(there)));
    assert!(says(&host.sh_in(&place, "ip neigh"), &format!("{address} dev br0 lladdr {mac} PERMANENT")));
    let fdb = host.sh_in(&place, "bridge fdb");
    assert!(says(&fdb, &format!("{mac} dev vxlan0 master br0 static")), "{fdb}");
    assert!(!host.has_transport() || says(&fdb, &format!("{mac} dev vxlan0 dst 100.64.0.2")), "{fdb}");
    // N7: an Ethernet address follows from the address. N10: names fit, and an alias says whose an interface is.
    let own = region.address(here);
    let inner = region.netns(here).sh("ip -d link show pn0");
    let alias = format!("alias private-network {} {here}", network(1));
    assert!(says(&inner, &format!("link/ether {}", MacAddr::of_ipv4(own))) && says(&inner, &alias), "{inner}");
    for line in host.sh_in(&place, "ip -o link").lines() {
        let name = line.split_whitespace().nth(1).unwrap().trim_end_matches(':').split('@').next().unwrap();
        assert!(name.len() <= 15, "{name}");
    }
    // N5: the resolver is none of the network's addresses.
    let resolver = host.sh_in(&place, "ip -o -4 addr show dev br0");
    assert!(says(&resolver, "inet 169.254.53.53/32") && !resolver.contains("10.240."), "{resolver}");
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x7_a_container_that_moves_here_leaves_nothing_that_points_away() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (stays, moves) = (region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let (address, slot) = (region.address(moves), region.state.container(moves).unwrap().slot);
    let ping = format!("ping -c 1 -W 10 {address}");
    assert!(region.netns(stays).works(&ping));
    region.change(Change::Fail(moves));
    let (moved, netns) = (container(1000), Netns::new("moved"));
    region.hosts[0].linux().attach(moved, netns.path()).await.unwrap();
    region.change(Change::Start { container: moved, slot, node: region.hosts[0].id });
    region.change(Change::Ready(moved));
    assert_eq!(region.address(moved), address, "its slot has it back at once");
    region.apply().await;
    let fdb = region.hosts[0].sh_in(&network(1).to_string(), "bridge fdb");
    let mac = MacAddr::of_ipv4(address);
    assert!(says(&fdb, &format!("{mac} dev p0af00002 master br0 static")), "{fdb}");
    assert!(!says(&fdb, &format!("{mac} dev vxlan0")) && !fdb.contains("dst "), "{fdb}");
    assert!(region.netns(stays).works(&ping) && netns.works(&format!("ping -c 1 -W 10 {}", region.address(stays))));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_plan_believes_what_was_read_of_containers_and_only_for_a_while() {
    if !is_root() {
        return;
    }
    let day = Duration::from_secs(86_400);
    for (believed, is_read_again) in [(day, false), (Duration::ZERO, true)] {
        let mut region = Region::start_with(1, |_, builder| builder.believe_for(believed)).await;
        let (a, b) = (region.add(1, 1).await, region.add(1, 1).await);
        region.apply().await;
        let reaches = |region: &Region| region.netns(a).works(&format!("ping -c 1 -W 2 {}", region.address(b)));
        let has = |region: &Region| region.netns(a).sh("ip addr show dev pn0").contains("10.240.0.1/22");
        assert!(reaches(&region) && has(&region));
        region.netns(a).sh("ip addr del 10.240.0.1/22 dev pn0");
        region.add(1, 1).await;
        region.apply().await;
        assert_eq!(has(&region), is_read_again);
        // A comparison, and the same plan again, read everything.
        let (backend, plan) = (region.hosts[0].linux().clone(), region.state.node_plan(region.hosts[0].id));
        assert_eq!(backend.observe().await.unwrap() == Observed::from(&plan), is_read_again);
        assert_eq!(backend.apply(&plan).await.is_unchanged(), is_read_again);
        assert!(has(&region) && reaches(&region));
        // A link that is gone has no port in the network's namespace, which is read each time.
        region.netns(a).sh("ip link del pn0");
        region.add(1, 1).await;
        region.apply().await;
        assert!(has(&region) && reaches(&region));
        // After a failure nothing is believed.
        region.netns(a).sh("ip addr del 10.240.0.1/22 dev pn0");
        let taken = region.add(1, 1).await;
        region.netns(taken).sh("ip link add pn0 type veth peer name x0");
        let report = backend.apply(&region.state.node_plan(region.hosts[0].id)).await;
        assert_eq!(report.failures().count(), 1, "{:?}", report.outcomes);
        region.netns(taken).sh("ip link del pn0");
        region.add(1, 1).await;
        region.apply().await;
        assert!(has(&region) && reaches(&region));
        region.tear_down().await;
    }
}
