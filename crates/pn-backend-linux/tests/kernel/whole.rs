//! Large packets through the tunnel in this process: behind the kernel's VXLAN, behind bridges, and from one to the other.

#![expect(clippy::print_stdout, reason = "tests say what they did")]

use crate::hosts;

use hosts::{Region, eventually, is_root, network, sh};
use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_core::NodeId;
use pn_core::backend::{Observed, OverlayBackend as _};
use pn_overlay::PrivateKey;

/// Says whether this kernel takes large packets in tunnels; Linux does from 6.17 on.
async fn is_taken_whole() -> bool {
    let builder = LinuxBackend::builder(NodeId::from_u128(98)).directory(hosts::directory());
    let built = builder.tunnel(TunnelKind::UserSpace).build().await;
    let release = sh("uname -r");
    let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).take(2).collect();
    if version >= vec![6, 17] {
        built.map(drop).unwrap_or_else(|error| panic!("{release}: {}", hosts::explain(&error)));
        return true;
    }
    println!("ignored: Linux {} refuses large packets in tunnels", release.trim());
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn large_packets_cross_behind_vxlan_and_behind_bridges_and_mixed() {
    if !is_root() || !is_taken_whole().await {
        return;
    }
    let kinds =
        [TunnelKind::UserSpace, TunnelKind::UserSpaceBridged, TunnelKind::UserSpace, TunnelKind::UserSpaceBridged];
    let mut region = Region::start_with(4, |n, builder| builder.tunnel(kinds[usize::from(n) - 1])).await;
    region.add_network(3, |request| request.families = pn_core::Families::DualStack);
    let mut containers = Vec::new();
    for node in 1..=4 {
        assert_eq!(region.hosts[node - 1].linux().tunnel(), kinds[node - 1]);
        containers.push(region.add(3, node).await);
    }
    region.apply().await;
    let (sent, received) = (format!("/tmp/{}-sent", region.switch().0), format!("/tmp/{}-received", region.switch().0));
    sh(&format!("head -c 30000000 /dev/urandom > {sent}"));
    let prefix = pn_core::Ipv6Prefix::of_network(network(3));
    for (from, to) in [(0, 1), (1, 0), (0, 2), (1, 3)] {
        let (from, to) = (region.netns(containers[from]), containers[to]);
        let address = region.address(to);
        for (listen, connect) in [
            ("TCP4-LISTEN:9", format!("TCP4:{address}:9")),
            ("TCP6-LISTEN:9", format!("TCP6:[{}]:9", prefix.address(address))),
        ] {
            let mut server =
                region.netns(to).spawn(&format!("socat -u {listen},reuseaddr OPEN:{received},creat,trunc"));
            eventually("a transfer", || from.works(&format!("socat -u OPEN:{sent} {connect},connect-timeout=5")));
            assert!(server.0.wait().expect("it can be waited for").success());
            sh(&format!("cmp {sent} {received}"));
        }
        // Fragments have no ports and are merged by nobody.
        assert!(from.works(&format!("ping -c 1 -W 10 -s 20000 {address}")));
    }
    drop((std::fs::remove_file(&sent), std::fs::remove_file(&received)));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_kind_has_left_another_takes_over() {
    if !is_root() || !is_taken_whole().await {
        return;
    }
    let (whole, bridged) = (TunnelKind::UserSpace, TunnelKind::UserSpaceBridged);
    let mut region = Region::start_with(2, |_, builder| builder.tunnel(whole)).await;
    let (a, b) = (region.add(1, 1).await, region.add(1, 2).await);
    for kind in [whole, bridged, bridged, whole] {
        region.restart_as(1, PrivateKey::from_bytes([1; 32]), kind).await;
        region.apply().await;
        let (host, plan) = (&region.hosts[0], region.state.node_plan(region.hosts[0].id));
        assert_eq!(host.linux().observe().await.expect("it can be observed"), Observed::from(&plan), "{kind:?}");
        assert!(host.linux().apply(&plan).await.is_unchanged(), "{kind:?}");
        // What is sent under a session that the other end has lost is lost, too, and brings about another.
        let ping = |from, to| region.netns(from).works(&format!("ping -c 1 -W 1 {}", region.address(to)));
        eventually("packets", || ping(a, b) && ping(b, a));
        let is_device = host.sh_in(&network(1).to_string(), "ip -d link show vxlan0").contains("vxlan id");
        let has_transport = host.directory.join(host.id.to_string()).join("transport").exists();
        assert_eq!((is_device, has_transport), (kind == whole, kind == whole), "{kind:?}");
    }
    region.tear_down().await;
}
