//! The laws of data planes, on real namespaces: what is applied is observed, whatever was there before, whoever interfered, and
//! wherever it stopped; and nothing else is touched.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::breakages::{self, Where};
use crate::hosts;

use std::collections::BTreeSet;
use std::path::PathBuf;

use async_trait::async_trait;
use hosts::{Netns, Region, container, directory, is_root, run};
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
    let builder = LinuxBackend::builder(host.node.id).listen(host.node.underlay).private_key(host.private_key);
    let builder = hosts::with_tunnel(builder.directory(&directory).namespace(netns.path()));
    let backend = builder.build().await.unwrap();
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
    region.add_network(3, |request| request.families = Families::DualStack);
    let mut plans = vec![region.state.node_plan(host)];
    for app in [1, 3] {
        region.add(app, 1).await;
    }
    let slot = |app, n| Slot::new(hosts::app(app), "web".parse().unwrap(), n).unwrap();
    region.change(Change::Start { container: container(100), slot: slot(1, 100), node: other.id });
    region.change(Change::Start { container: container(200), slot: slot(3, 200), node: other.id });
    plans.push(region.state.node_plan(host));
    region.change(Change::Fail(container(100)));
    region.change(Change::Start { container: container(101), slot: slot(1, 101), node: other.id });
    region.change(Change::Fail(container(200)));
    plans.push(region.state.node_plan(host));
    // Every link of every network gets another MTU.
    let mut smaller = region.state.node(host).unwrap().clone();
    smaller.underlay_mtu = 1400;
    region.change(Change::UpdateNode(smaller));
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
        let backend = hosts::with_tunnel(builder).build().await.unwrap();
        for n in [1, 2] {
            backend.attach(container(n), region.netns(container(n)).path()).await.unwrap();
        }
        backend
    };
    // What `ip`, `bridge` and `nft` say of every namespace that there is.
    let look = || {
        let kept = std::fs::read_dir(directory.join(host.to_string())).into_iter().flatten();
        let kept: BTreeSet<PathBuf> = kept.map(|place| place.unwrap().path()).collect();
        let looks = kept.iter().map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_here = |place| match place {
                Where::Transport => name == "transport",
                Where::Network => name.starts_with("pn-"),
                Where::Container => name.starts_with("ct-"),
            };
            let run = |place, line: &str| {
                let line = format!("nsenter --net={} sh -c '{line}'", path.display());
                if is_here(place) { hosts::sh(&line) } else { String::new() }
            };
            // The kernel says in its own time that a link has a carrier.
            let said = breakages::look(run).replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
            let is_told = |word: &&str| !["UP", "DOWN", "UNKNOWN"].contains(word);
            let words = |line: &str| line.split(' ').filter(is_told).collect::<Vec<_>>().join(" ");
            format!("{name}: {}", said.lines().map(words).collect::<Vec<_>>().join("\n"))
        });
        looks.collect::<Vec<_>>().join("\n")
    };
    for pair in plans.windows(2) {
        let [from, to] = pair else { unreachable!("windows of two") };
        let mut stops = 0;
        // What it is where nothing stops it.
        let backend = start().await;
        backend.apply(from).await.into_result().unwrap();
        backend.apply(to).await.into_result().unwrap();
        let whole = look();
        assert_eq!(whole.contains("pn0"), !to.networks.is_empty(), "{whole}");
        drop(backend);
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
            let found = look();
            assert!(found == whole, "stopped after {stops} steps: {}", breakages::difference(&whole, &found));
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
    std::fs::remove_dir(&directory).unwrap();
}
