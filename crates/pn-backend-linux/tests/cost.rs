//! What a large node costs: 200 containers in 100 networks. It has a process of its own, so that no other test is in its way.

#[path = "kernel/hosts/mod.rs"]
mod hosts;

use std::time::{Duration, Instant};

use hosts::{Region, explain, is_root, network};
use pn_core::*;

/// The CI machine is slow and shared; what is noted in the README was measured by itself.
const NOISE: u32 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_node_is_programmed_in_time() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    for n in 3..=100 {
        region.add_network(n, |_| ());
    }
    for n in 1..=100 {
        region.add(n, 1).await;
        region.add(n, 1).await;
        region.add_unattached(n, 2);
    }
    let here = region.hosts[0].id;
    let backend = region.hosts[0].linux().clone();
    let apply = async |region: &Region, what: &str, limit: Duration| {
        let plan = region.state.node_plan(here);
        let start = Instant::now();
        let report = backend.apply(&plan).await;
        let took = start.elapsed();
        let failures: Vec<String> = report.failures().map(explain).collect();
        assert!(failures.is_empty(), "{failures:#?}");
        println!("{what}: {took:?}, {} changes", report.outcomes.len());
        assert!(took < limit * NOISE, "{what} took {took:?}");
    };
    let (soon, at_once) = (Duration::from_secs(2), Duration::from_millis(100));
    apply(&region, "100 networks with 200 containers from nothing", soon).await;
    apply(&region, "nothing changed", at_once).await;
    region.add(1, 1).await;
    apply(&region, "one container more here", at_once).await;
    let remote = region.add_unattached(1, 2);
    apply(&region, "one container more elsewhere", at_once).await;
    region.change(Change::Fail(remote));
    apply(&region, "one container less elsewhere", at_once).await;

    // A network that is full, from nothing: a /22 of 1 022.
    // The address of the one that went rests.
    let slots = 1021 - region.state.plan().networks[&network(1)].endpoints.len();
    for _ in 0..slots {
        region.add_unattached(1, 2);
    }
    apply(&region, "1017 containers more elsewhere", soon).await;
    region.tear_down().await;
}
