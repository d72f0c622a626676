//! What a kernel holds at most (N9): it is told at the start, and what is larger is refused before anything of it is made.

use crate::hosts;

use std::fmt::Write as _;

use hosts::{Netns, Region, explain, is_root, network};
use pn_core::backend::OverlayBackend as _;
use pn_core::*;
use pn_overlay::PrivateKey;

#[tokio::test(flavor = "multi_thread")]
async fn n9_the_kernel_holds_what_is_told_of_it() {
    if !is_root() {
        return;
    }
    let region = Region::start(1).await;
    let limits = region.hosts[0].linux().limits();
    let told = hosts::sh("ip ntable show name arp_cache | grep -o 'thresh3 [0-9]*' | head -1");
    assert_eq!(told.trim(), format!("thresh3 {}", limits.neighbours));
    // One port is the VXLAN device's; the kernel gives no more.
    let netns = Netns::new("ports");
    let mut batch = "link add br0 type bridge\n".to_owned();
    for n in (0..=limits.bridge_ports + 1).step_by(2) {
        writeln!(batch, "link add a{n} type veth peer name b{n}\nlink set a{n} master br0\nlink set b{n} master br0")
            .unwrap();
    }
    let file = format!("/tmp/{}.batch", netns.0);
    std::fs::write(&file, batch).unwrap();
    let refused = netns.run(&format!("ip -force -batch {file}"));
    std::fs::remove_file(&file).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Exchange full"), "{refused:?}");
    assert_eq!(netns.sh("ip -o link show master br0 | wc -l").trim(), (limits.bridge_ports + 1).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn n9_a_network_with_more_containers_than_ports_is_refused_and_the_rest_is_applied() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let large: Subnet = "10.240.0.0/20".parse().unwrap();
    for n in [3, 4] {
        region.add_network(n, |request| request.subnet = Some(large));
    }
    let (good, other) = (region.add(1, 1).await, region.add(1, 2).await);
    // One grows too large while it runs, the other was never any smaller.
    let (old, peer) = (region.add(3, 1).await, region.add(3, 2).await);
    region.apply().await;
    let reaches =
        |region: &Region, from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    assert!(reaches(&region, old, peer));
    let limit = region.hosts[0].linux().limits().bridge_ports;
    for n in [3, 4] {
        for _ in 0..=limit {
            region.add_unattached(n, 1);
        }
    }
    let here = region.hosts[0].id;
    for is_new in [false, false, true, false] {
        if is_new {
            // It knows only what it finds.
            region.restart(1, PrivateKey::from_bytes([1; 32])).await;
        }
        let backend = region.hosts[0].linux();
        let report = backend.apply(&region.state.node_plan(here)).await;
        let full: Vec<&BackendError> = report.failures().filter(|error| error.kind() == ErrorKind::Full).collect();
        let [three, four] = *full else { panic!("{:?}", report.failures().map(explain).collect::<Vec<_>>()) };
        for (error, n, count) in [(three, 3, limit + 2), (four, 4, limit + 1)] {
            let told = error.to_string();
            let parts = [
                network(n).to_string(),
                count.to_string(),
                limit.to_string(),
                "start some of them on other nodes".to_owned(),
            ];
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
            assert!(!error.is_retryable(), "trying again does not help");
        }
        assert_eq!(report.failures().count(), 2, "nothing else is wrong");
        let kept = region.hosts[0].directory.join(here.to_string());
        assert!(!kept.join(network(4).to_string()).exists(), "something was made of it");
        assert!(reaches(&region, good, other), "the rest is not applied");
        assert!(reaches(&region, old, peer), "what ran has suffered");
    }
    region.tear_down().await;
}
