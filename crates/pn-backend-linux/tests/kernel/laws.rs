//! The laws of data planes, on real namespaces: what is applied is observed, whatever was there before, whoever interfered, and
//! wherever it stopped; and nothing else is touched.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::hosts;

use std::path::PathBuf;

use async_trait::async_trait;
use hosts::{Netns, Region, container, directory, is_root, network, run};
use pn_backend_linux::LinuxBackend;
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::*;
use pn_overlay::conformance;

/// A backend with namespaces that end with it.
#[derive(Debug)]
struct Guarded {
    backend: LinuxBackend,
    directory: PathBuf,
    _namespaces: Vec<Netns>,
}

#[async_trait]
impl OverlayBackend for Guarded {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    async fn apply(&self, plan: &NodePlan) -> Report {
        self.backend.apply(plan).await
    }

    async fn observe(&self) -> Result<Observed, BackendError> {
        self.backend.observe().await
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        run(&format!("umount -q {0}/*/* ; rm -rf {0}", self.directory.display()));
    }
}

async fn guarded(host: conformance::Host) -> Guarded {
    let netns = Netns::new("law");
    let directory = directory();
    let backend = LinuxBackend::builder(host.node.id)
        .listen(host.node.underlay)
        .private_key(host.private_key)
        .directory(&directory)
        .namespace(netns.path())
        .build()
        .await
        .unwrap();
    let mut namespaces = vec![netns];
    for n in 1..=6 {
        let netns = Netns::new(&format!("ct{n}"));
        backend.attach(container(n), netns.path()).await.unwrap();
        namespaces.push(netns);
    }
    Guarded { backend, directory, _namespaces: namespaces }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_laws_of_data_planes_hold() {
    if is_root() {
        conformance::overlay(guarded).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_it_stopped_the_next_apply_converges() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(1).await;
    let host = NodeId::from_u128(1);
    let other = hosts::node(2, PublicKey::new([2; 32]));
    region.change(Change::AddNode(other.clone()));
    let mut plans = vec![region.state.node_plan(host)];
    for app in [1, 2] {
        region.add(app, 1).await;
    }
    let slot = |n| Slot::new(hosts::app(1), "web".parse().unwrap(), n).unwrap();
    region.change(Change::Start { container: container(100), slot: slot(100), node: other.id });
    plans.push(region.state.node_plan(host));
    region.change(Change::Fail(container(100)));
    region.change(Change::Start { container: container(101), slot: slot(101), node: other.id });
    region.change(Change::Fail(container(2)));
    plans.push(region.state.node_plan(host));
    plans.push(NodePlan::empty(host, Generation::new(1 << 40)));

    let key = pn_overlay::PrivateKey::from_bytes([1; 32]);
    // Another backend each time, as after a crash.
    let Some(hosts::Host { plane, netns, directory, .. }) = region.hosts.pop() else { unreachable!("one was started") };
    drop(plane);
    let namespace = netns.path();
    let start = async || {
        let builder = LinuxBackend::builder(host).private_key(key.clone()).directory(&directory).namespace(&namespace);
        let backend = builder.build().await.unwrap();
        for n in [1, 2] {
            backend.attach(container(n), region.netns(container(n)).path()).await.unwrap();
        }
        backend
    };
    for pair in plans.windows(2) {
        let [from, to] = pair else { unreachable!("windows of two") };
        let mut stops = 0;
        loop {
            let backend = start().await;
            backend.apply(from).await.into_result().unwrap();
            let report = backend.apply_steps(to, stops).await;
            assert_eq!(report.failures().count(), 0, "{report:?}");
            let is_whole =
                report.generation == to.generation && backend.apply_steps(to, usize::MAX).await.is_unchanged();
            drop(backend);
            let backend = start().await;
            let report = backend.apply(to).await;
            assert_eq!(report.failures().count(), 0, "stopped after {stops} steps: {:?}", report.outcomes);
            assert_eq!(backend.observe().await.unwrap(), Observed::from(to), "stopped after {stops} steps");
            assert!(backend.apply(to).await.is_unchanged(), "stopped after {stops} steps");
            stops += 1;
            if is_whole {
                break;
            }
        }
        println!("generation {} to {}: {stops} places to stop", from.generation, to.generation);
    }
    let backend = start().await;
    for n in [1, 2] {
        backend.detach(container(n)).await.unwrap();
    }
    assert!(!directory.join(host.to_string()).exists(), "something is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn x9_what_others_break_is_repaired() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (a, b, c) = (region.add(1, 1).await, region.add(1, 2).await, region.add(1, 1).await);
    region.apply().await;
    let works =
        |region: &Region, from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    assert!(works(&region, a, b) && works(&region, a, c));
    let place = network(1).to_string();
    let breakages = [
        (place.as_str(), "ip link del vxlan0"),
        (&place, "ip link del br0"),
        (&place, "ip link del p0af00001"),
        (&place, "ip link set p0af00001 nomaster"),
        (&place, "ip link set br0 down"),
        (&place, "ip link set vxlan0 mtu 1000"),
        (&place, "ip link set br0 mtu 1000"),
        (&place, "bridge fdb del 02:00:0a:f0:00:02 dev vxlan0 self"),
        (&place, "bridge fdb del 02:00:0a:f0:00:02 dev vxlan0 master"),
        (&place, "bridge fdb replace 02:00:0a:f0:00:02 dev vxlan0 dst 100.64.0.9 self"),
        (&place, "bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst 100.64.0.9 self permanent"),
        (&place, "ip neigh del 10.240.0.2 dev br0"),
        (&place, "ip neigh replace 10.240.0.2 lladdr 02:00:00:00:00:01 dev br0 nud permanent"),
        (&place, "nft flush ruleset"),
        (&place, "nft delete table bridge private_network"),
        (&place, "nft flush chain bridge private_network prerouting"),
        (&place, "nft insert rule bridge private_network prerouting accept"),
        (&place, "nft flush set bridge private_network sources"),
        (&place, "bridge link set dev vxlan0 learning on flood on"),
        (&place, "ip addr flush dev br0"),
        (&place, "ip route flush dev br0"),
        ("transport", "nft flush ruleset"),
        ("transport", "nft delete table inet private_network"),
        ("transport", "ip link del tunnel0"),
        ("transport", "ip route del default"),
        ("transport", "ip link set tunnel0 mtu 900"),
        ("container", "ip link del pn0"),
        ("container", "ip link set pn0 down"),
        ("container", "ip link set pn0 mtu 900"),
        ("container", "ip addr del 10.240.0.1/22 dev pn0"),
        ("container", "ip link set pn0 down; ip link set pn0 name other0"),
        ("container", "ip link set pn0 address 02:00:00:00:00:77"),
    ];
    let wanted = Observed::from(&region.state.node_plan(region.hosts[0].id));
    for (place, line) in breakages {
        match place {
            "container" => drop(region.netns(a).sh(line)),
            place => drop(region.hosts[0].sh_in(place, line)),
        }
        let report = region.hosts[0].linux().apply(&region.state.node_plan(region.hosts[0].id)).await;
        let failures: Vec<String> = report.failures().map(hosts::explain).collect();
        assert!(failures.is_empty() && !report.is_unchanged(), "{place}: {line}: {failures:?}");
        assert_eq!(region.hosts[0].linux().observe().await.unwrap(), wanted, "{place}: {line}");
        let again = region.hosts[0].linux().apply(&region.state.node_plan(region.hosts[0].id)).await;
        assert!(again.is_unchanged(), "{place}: {line}: {:?}", again.outcomes);
        assert!(works(&region, a, b), "{place}: {line}: no traffic to the other host");
        assert!(works(&region, a, c), "{place}: {line}: no traffic on this host");
    }
    region.tear_down().await;
}
