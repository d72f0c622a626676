//! Nodes that are started anew, with the key they had and with the next one.

use crate::hosts;
use crate::matrix::within;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use hosts::{Region, explain, is_root};
use pn_backend_linux::TunnelKind;
use pn_core::Change;
use pn_core::backend::{Observed, OverlayBackend as _};
use pn_overlay::PrivateKey;

fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

/// Applies everything, and looks that each node is what its plan says.
async fn apply(region: &Region) {
    region.apply().await;
    for host in &region.hosts {
        let plan = region.state.node_plan(host.id);
        assert_eq!(host.linux().observe().await.expect("it can be observed"), Observed::from(&plan));
        let again = host.linux().apply(&plan).await;
        assert!(again.is_unchanged(), "{:?}", again.outcomes);
    }
}

/// What `wg` says of the tunnel of a node, if it is the kernel's.
fn show(region: &Region, node: usize, what: &str) -> Option<String> {
    let host = &region.hosts[node - 1];
    (host.linux().tunnel() == TunnelKind::Kernel).then(|| host.sh_in("transport", &format!("wg show tunnel0 {what}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn k3_a_node_takes_its_next_key_and_nobody_else_notices() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(3).await;
    let containers = [region.add(1, 1).await, region.add(1, 2).await, region.add(1, 3).await];
    let reaches = |region: &Region, from: usize, to: usize| {
        // What is sent under a session that the other end has lost is lost, too, and brings about another.
        let ping = format!("ping -c 1 -W 1 {}", region.address(containers[to - 1]));
        hosts::eventually("a packet's way", || region.netns(containers[from - 1]).works(&ping));
    };
    let all_reach_all = |region: &Region| {
        for (from, to) in [(1, 2), (2, 1), (2, 3), (3, 2), (3, 1), (1, 3)] {
            reaches(region, from, to);
        }
    };
    apply(&region).await;
    all_reach_all(&region);

    // Started anew with the key it had: the kernel's tunnel has gone on meanwhile, sessions and all.
    let handshakes = |region: &Region| show(region, 1, "latest-handshakes");
    let before = handshakes(&region);
    region.restart(1, key(1)).await;
    assert_eq!(region.hosts[0].linux().local_addr().port(), 51820);
    if before.is_some() {
        let ping = format!("ping -c 1 -W 10 {}", region.address(containers[0]));
        assert!(region.netns(containers[1]).works(&ping), "the kernel's tunnel did not go on");
    }
    apply(&region).await;
    all_reach_all(&region);
    assert_eq!(handshakes(&region), before);

    // The third is to have another key. The others learn of it and send nothing to it yet.
    let third = region.hosts[2].id;
    let (old, new) = (key(3).public_key(), key(33).public_key());
    region.change(Change::OfferKey { node: third, public_key: new });
    apply(&region).await;
    all_reach_all(&region);
    let allowed = |region: &Region, node| show(region, node, "allowed-ips");
    for node in [1, 2] {
        if let Some(allowed) = allowed(&region, node) {
            assert!(allowed.contains(&format!("{new}\t(none)")) && allowed.contains(&format!("{old}\t100.64.0.3/32")));
        }
    }
    // It takes over, in place: between the others nothing has changed.
    let between = |region: &Region| {
        let times = show(region, 1, "latest-handshakes")?;
        let second = key(2).public_key().to_string();
        times.lines().find(|line| line.starts_with(&second)).map(ToOwned::to_owned)
    };
    let before = between(&region);
    region.change(Change::PromoteKey(third));
    region.restart(3, key(33)).await;
    assert_eq!(region.hosts[2].linux().public_key(), new);
    apply(&region).await;
    all_reach_all(&region);
    assert_eq!(between(&region), before);
    for node in [1, 2] {
        if let Some(allowed) = allowed(&region, node) {
            assert!(
                allowed.contains(&format!("{new}\t100.64.0.3/32")) && !allowed.contains(&old.to_string()),
                "{allowed}"
            );
        }
    }
    // The old key opens nothing any more: a plan that still has it is not for this node.
    let mut plan = region.state.node_plan(third);
    let mut host = (**plan.host.as_ref().expect("it is known")).clone();
    host.public_key = old;
    plan.host = Some(host.into());
    let refused = region.hosts[2].linux().apply(&plan).await.into_result().expect_err("the key is another");
    assert!(explain(&refused).contains(&old.to_string()), "{}", explain(&refused));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_a_restart() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (here, there) = (region.add(1, 1).await, region.add(1, 2).await);
    apply(&region).await;
    let to = (region.address(here), 9);
    let listening = within(region.netns(here), move || TcpListener::bind(to).expect("nobody else listens"));
    let listener = listening.join().expect("it listens");
    let connecting = within(region.netns(there), move || TcpStream::connect(to).expect("somebody listens"));
    let (mut server, _) = listener.accept().expect("somebody connects");
    let mut client = connecting.join().expect("it connects");
    // Both ends speak all the time: somebody who answered in a container's place would end it.
    let (talking, quiet) = (Duration::from_millis(1), Duration::from_secs(60));
    server.set_read_timeout(Some(quiet)).expect("it can be set");
    let talk = std::thread::spawn(move || {
        for n in 0..3000_u16 {
            client.write_all(&n.to_be_bytes()).expect("the connection is there");
            std::thread::sleep(talking);
        }
    });
    let hear = std::thread::spawn(move || {
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).map(|_| heard)
    });
    for _ in 0..3 {
        region.restart(1, key(1)).await;
        apply(&region).await;
    }
    talk.join().expect("the connection is there");
    let heard = hear.join().expect("it hears").expect("the connection is there");
    assert_eq!(heard, (0..3000_u16).flat_map(u16::to_be_bytes).collect::<Vec<_>>());
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn k6_what_others_give_to_peers_is_taken_away() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    region.add(1, 1).await;
    region.add(1, 2).await;
    apply(&region).await;
    if region.hosts[0].linux().tunnel() == TunnelKind::Kernel {
        let (peer, stranger) = (key(2).public_key(), key(9).public_key());
        for line in [
            format!("wg set tunnel0 peer {peer} allowed-ips 100.64.0.2/32,0.0.0.0/0"),
            format!("wg set tunnel0 peer {peer} allowed-ips 100.64.0.0/10"),
            format!("wg set tunnel0 peer {stranger} allowed-ips 100.64.0.9/32"),
            format!("wg set tunnel0 peer {stranger}"),
            "wg set tunnel0 listen-port 51821".to_owned(),
        ] {
            region.hosts[0].sh_in("transport", &line);
            let report = region.hosts[0].linux().apply(&region.state.node_plan(region.hosts[0].id)).await;
            assert!(!report.is_unchanged(), "{line}");
            apply(&region).await;
            let allowed = show(&region, 1, "allowed-ips").unwrap_or_default();
            assert_eq!(allowed.trim(), format!("{peer}\t100.64.0.2/32"), "{line}");
            assert_eq!(show(&region, 1, "listen-port").unwrap_or_default().trim(), "51820", "{line}");
        }
    }
    region.tear_down().await;
}
