//! The kernel's WireGuard, where the kernel has it: alone, and mixed with tunnels in user space. It needs few tools, so that it
//! also runs in the small virtual machine of ci/linux-wireguard.sh.

#![expect(clippy::print_stdout, reason = "tests say what they did")]

use crate::hosts;
use crate::matrix::within;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use hosts::{Region, is_root, network};
use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_core::backend::{Observed, OverlayBackend as _};
use pn_core::{Change, ErrorKind, NodeId};
use pn_overlay::PrivateKey;

/// Says whether this kernel has WireGuard. Where it must, one without it fails.
async fn has_wireguard() -> bool {
    if !is_root() {
        return false;
    }
    let builder = LinuxBackend::builder(NodeId::from_u128(99)).directory(hosts::directory());
    match builder.tunnel(TunnelKind::Kernel).build().await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", hosts::explain(&error));
            let required = std::env::var("PN_REQUIRE_WIREGUARD").as_deref() == Ok("1");
            assert!(!required, "a kernel with WireGuard is required: {}", hosts::explain(&error));
            println!("ignored: {error}; ci/linux-wireguard.sh boots one that has it");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_wireguard_and_user_space_mix() {
    if !has_wireguard().await {
        return;
    }
    let kinds = [TunnelKind::Kernel, TunnelKind::Kernel, TunnelKind::UserSpaceBridged];
    let mut region = Region::start_with(3, |n, builder| builder.tunnel(kinds[usize::from(n) - 1])).await;
    let mut containers = Vec::new();
    for node in 1..=3 {
        assert_eq!(region.hosts[node - 1].linux().tunnel(), kinds[node - 1]);
        containers.push(region.add(1, node).await);
    }
    region.apply().await;
    for host in &region.hosts {
        let plan = region.state.node_plan(host.id);
        assert_eq!(host.linux().observe().await.expect("it can be observed"), Observed::from(&plan));
        assert!(host.linux().apply(&plan).await.is_unchanged());
    }
    let all_reach_all = |region: &Region| {
        for from in &containers {
            for to in containers.iter().filter(|to| *to != from) {
                let ping = format!("ping -c 1 -W 10 {}", region.address(*to));
                assert!(region.netns(*from).works(&ping), "{from} does not reach {to}");
            }
        }
    };
    all_reach_all(&region);

    // What `wg` says of it.
    let show = |region: &Region, what: &str| region.hosts[0].sh_in("transport", &format!("wg show tunnel0 {what}"));
    let keys: Vec<String> = [2, 3].map(|n| PrivateKey::from_bytes([n; 32]).public_key().to_string()).to_vec();
    let endpoints = show(&region, "endpoints");
    for (key, n) in keys.iter().zip([2, 3]) {
        assert!(endpoints.contains(&format!("{key}\t192.0.2.{n}:51820")), "{endpoints}");
        assert!(show(&region, "allowed-ips").contains(&format!("{key}\t100.64.0.{n}/32")));
    }
    assert_eq!(show(&region, "public-key").trim(), PrivateKey::from_bytes([1; 32]).public_key().to_string());
    assert_eq!(show(&region, "listen-port").trim(), "51820");

    // K6: a peer that changes or goes leaves the sessions of the others alone.
    let handshake = |region: &Region, key: &str| {
        let times = show(region, "latest-handshakes");
        times.lines().find(|line| line.starts_with(key)).map(ToOwned::to_owned)
    };
    let before = handshake(&region, &keys[0]);
    assert!(before.as_deref().is_some_and(|line| !line.ends_with("\t0")), "{before:?}");
    let third = containers[2];
    region.change(Change::Fail(third));
    region.apply().await;
    assert_eq!(handshake(&region, &keys[1]), None);
    assert_eq!(handshake(&region, &keys[0]), before);

    // What others break is repaired.
    containers.pop();
    let all_reach_all = |region: &Region| {
        for (from, to) in [(containers[0], containers[1]), (containers[1], containers[0])] {
            let ping = format!("ping -c 1 -W 20 {}", region.address(to));
            assert!(region.netns(from).works(&ping), "{from} does not reach {to}");
        }
    };
    for line in
        ["wg set tunnel0 peer KEY remove", "ip link del tunnel0", "wg set tunnel0 peer KEY endpoint 192.0.2.9:1"]
    {
        region.hosts[0].sh_in("transport", &line.replace("KEY", &keys[0]));
        let plan = region.state.node_plan(region.hosts[0].id);
        let report = region.hosts[0].linux().apply(&plan).await;
        let failures: Vec<String> = report.failures().map(hosts::explain).collect();
        assert!(failures.is_empty() && !report.is_unchanged(), "{line}: {failures:?}");
        assert_eq!(
            region.hosts[0].linux().observe().await.expect("it can be observed"),
            Observed::from(&plan),
            "{line}"
        );
        all_reach_all(&region);
    }
    // Its socket is the host's, and VXLAN's is not.
    assert!(region.hosts[0].netns.sh("cat /proc/net/udp").contains(":CA6C "), "WireGuard does not listen");
    assert!(!region.hosts[0].netns.sh("cat /proc/net/udp").contains(":12B5 "), "VXLAN is open on the underlay");
    let links = region.hosts[0].sh_in(&network(1).to_string(), "ip link");
    assert!(links.contains("vxlan0") && !links.contains("tunnel0"), "{links}");
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is run by ci/linux-wireguard.sh, on a kernel that is old and has no WireGuard yet"]
async fn where_large_packets_in_tunnels_are_refused_vxlan_ends_in_this_process() {
    let mut region = Region::start(2).await;
    let containers = [region.add(1, 1).await, region.add(1, 2).await];
    assert!(region.hosts.iter().all(|host| host.linux().tunnel() == TunnelKind::UserSpaceBridged));
    region.apply().await;
    let address = region.address(containers[1]);
    assert!(region.netns(containers[0]).works(&format!("ping -c 1 -W 20 -s 20000 {address}")));
    // What the kernel hands over, and is given, whole.
    let body: Vec<u8> = (0..2_000_000_u32).map(|n| (n / 251 * 7 + n) as u8).collect();
    let listening =
        within(region.netns(containers[1]), move || TcpListener::bind((address, 9)).expect("nobody else does"));
    let listener = listening.join().expect("it listens");
    let sent = body.clone();
    let sender = within(region.netns(containers[0]), move || {
        TcpStream::connect((address, 9)).expect("it listens").write_all(&sent).expect("it reads");
    });
    let mut received = Vec::new();
    listener.accept().expect("somebody connects").0.read_to_end(&mut received).expect("it ends");
    sender.join().expect("everything was sent");
    assert!(received == body, "{} octets arrived", received.len());
    region.tear_down().await;
}
