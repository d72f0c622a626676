//! What is wrong is told by its name, with what to do about it, and the rest of the plan is applied.

#![expect(clippy::unwrap_used, reason = "tests fail where something is missing")]

use crate::hosts;

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hosts::{Netns, Region, container, directory, explain, is_root, network};
use pn_core::backend::{Observed, OverlayBackend as _};
use pn_core::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_attached_is_refused_by_name() {
    if !is_root() {
        return;
    }
    let region = Region::start(1).await;
    let backend = region.hosts[0].linux();
    let refused = async |id: u128, path: &str| backend.attach(container(id), path).await.unwrap_err();
    let missing = refused(1, "/run/netns/linux-nobody").await;
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(
        missing.to_string().contains("/run/netns/linux-nobody") && missing.to_string().contains("ct-"),
        "{missing}"
    );
    assert_eq!(refused(1, "/etc/hostname").await.kind(), ErrorKind::Unsupported);
    assert_eq!(refused(1, "/proc/self/ns/mnt").await.kind(), ErrorKind::Unsupported);
    let own = region.hosts[0].netns.path();
    assert_eq!(refused(1, own.to_str().unwrap()).await.kind(), ErrorKind::Conflict);
    let netns = Netns::new("shared");
    backend.attach(container(1), netns.path()).await.unwrap();
    backend.attach(container(1), netns.path()).await.unwrap();
    let twice = refused(2, netns.path().to_str().unwrap()).await;
    assert_eq!(twice.kind(), ErrorKind::Conflict);
    assert!(explain(&twice).contains(&container(1).to_string()), "{}", explain(&twice));
    assert_eq!(backend.attached().await.unwrap(), [container(1)].into());
    backend.detach(container(1)).await.unwrap();
    backend.detach(container(1)).await.unwrap();
    assert!(backend.attached().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_is_what_was_looked_at() {
    if !is_root() {
        return;
    }
    let region = Region::start(1).await;
    let (backend, own, good) = (region.hosts[0].linux(), region.hosts[0].netns.path(), Netns::new("good"));
    // The path leads to a container's namespace and to the node's own by turns.
    let (path, next, stop) = (directory(), directory(), AtomicBool::new(false));
    let numbers = [&good.path(), &own].map(|path| std::fs::metadata(path).unwrap().ino());
    let kept = region.hosts[0].directory.join(region.hosts[0].id.to_string()).join(container(1).to_string());
    let point_at = |target: &PathBuf| {
        std::os::unix::fs::symlink(target, &next).unwrap();
        std::fs::rename(&next, &path).unwrap();
    };
    point_at(&own);
    let outcomes = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                point_at(&good.path());
                point_at(&own);
            }
        });
        let runtime = tokio::runtime::Handle::current();
        let attach = || {
            let outcome = runtime.block_on(backend.attach(container(1), &path));
            let found = outcome.is_ok().then(|| std::fs::metadata(&kept).unwrap().ino());
            runtime.block_on(backend.detach(container(1))).unwrap();
            found
        };
        let outcomes = tokio::task::block_in_place(|| (0..4000).map(|_| attach()).collect::<Vec<_>>());
        stop.store(true, Ordering::Relaxed);
        outcomes
    });
    std::fs::remove_file(&path).unwrap();
    let of = |number| outcomes.iter().filter(|found| **found == number).count();
    assert_eq!(of(Some(numbers[1])), 0, "the node's own namespace was attached");
    assert!(of(Some(numbers[0])) > 0 && of(None) > 0, "it did not change under way");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_reported_and_the_rest_is_applied() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (good, other) = (region.add(1, 1).await, region.add(1, 2).await);
    let (taken, unattached) = (region.add(1, 1).await, region.add_unattached(1, 1));
    // Somebody has an interface of the name, and it stays as it is.
    region.netns(taken).sh("ip link add pn0 type veth peer name x0 && ip addr add 198.51.100.7/24 dev pn0");
    let before = region.netns(taken).sh("ip -o addr; ip -o link; ip route");
    region.hosts[1].linux().apply(&region.state.node_plan(region.hosts[1].id)).await.into_result().unwrap();
    let backend = region.hosts[0].linux();
    for _ in 0..2 {
        let report = backend.apply(&region.state.node_plan(region.hosts[0].id)).await;
        let mut failures: Vec<&BackendError> = report.failures().collect();
        failures.sort_by_key(|error| error.kind() as u8);
        let texts: Vec<String> = failures.iter().map(|error| explain(error)).collect();
        let of = |kind| failures.iter().filter(|error| error.kind() == kind).count();
        assert_eq!((of(ErrorKind::Conflict), of(ErrorKind::NotFound)), (1, 1), "{texts:#?}");
        assert!(
            texts.iter().any(|text| text.contains(&unattached.to_string()) && text.contains("attach")),
            "{texts:?}"
        );
        let told = |text: &String| text.contains(&region.address(taken).to_string()) && text.contains("rename it");
        assert!(texts.iter().any(told), "{texts:?}");
        assert_eq!(region.netns(taken).sh("ip -o addr; ip -o link; ip route"), before);
        assert!(region.netns(good).works(&format!("ping -c 1 -W 10 {}", region.address(other))));
    }
    // Out of the way, it works.
    region.netns(taken).sh("ip link del pn0");
    let late = Netns::new("late");
    backend.attach(unattached, late.path()).await.unwrap();
    backend.apply(&region.state.node_plan(region.hosts[0].id)).await.into_result().unwrap();
    assert!(late.works(&format!("ping -c 1 -W 10 {}", region.address(other))));
    assert!(region.netns(taken).works(&format!("ping -c 1 -W 10 {}", region.address(other))));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_underlay_that_carries_less_than_was_said_is_told() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (a, b) = (region.add(1, 1).await, region.add(1, 2).await);
    region.hosts[1].linux().apply(&region.state.node_plan(region.hosts[1].id)).await.into_result().unwrap();
    region.hosts[0].netns.sh("ip link set eth0 mtu 1400");
    let (backend, plan) = (region.hosts[0].linux(), region.state.node_plan(region.hosts[0].id));
    for _ in 0..2 {
        let report = backend.apply(&plan).await;
        let failures: Vec<&BackendError> = report.failures().collect();
        let [failure] = *failures else { panic!("{failures:?}") };
        assert_eq!(failure.kind(), ErrorKind::Conflict);
        let told = failure.to_string();
        let parts = ["eth0", "192.0.2.1", "MTU 1500", "MTU 1400", "raise it, or register the node with 1400"];
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        assert!(region.netns(a).works(&format!("ping -c 1 -W 10 {}", region.address(b))), "the rest is not applied");
    }
    region.hosts[0].netns.sh("ip link set eth0 mtu 1500");
    backend.apply(&plan).await.into_result().unwrap();
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vni_that_another_device_has_is_told() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    if !region.hosts[0].has_transport() {
        println!("not looked at: devices of the kernel's VXLAN, where VXLAN ends in this process");
        return;
    }
    let (a, b) = (region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let (c, d) = (region.add(2, 1).await, region.add(2, 2).await);
    let vni = region.state.plan().networks[&network(2)].vni;
    region.hosts[1].linux().apply(&region.state.node_plan(region.hosts[1].id)).await.into_result().unwrap();
    let host = &region.hosts[0];
    host.sh_in("transport", &format!("ip link add x type vxlan id {vni} local 100.64.0.1 dstport 4789 nolearning"));
    let (backend, plan) = (host.linux(), region.state.node_plan(host.id));
    let reaches = |from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    for _ in 0..2 {
        let report = backend.apply(&plan).await;
        let failures: Vec<&BackendError> = report.failures().collect();
        assert!(failures.iter().any(|error| error.kind() == ErrorKind::Conflict), "{failures:?}");
        let told: Vec<String> = failures.into_iter().map(explain).collect();
        let parts = [&*network(2).to_string(), "another device has its VNI", "end what was started"];
        assert!(told.iter().any(|told| parts.iter().all(|part| told.contains(part))), "{told:?}");
        assert!(reaches(a, b), "what ran has suffered");
    }
    host.sh_in("transport", "ip link del x");
    backend.apply(&plan).await.into_result().unwrap();
    assert!(reaches(a, b) && reaches(c, d));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_vanished_is_reported_or_made_anew() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (good, gone, other) = (region.add(1, 1).await, region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let (backend, here) = (region.hosts[0].linux().clone(), region.hosts[0].id);
    let kept = region.hosts[0].directory.join(here.to_string());
    let reaches = |from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    // A container's, by which it is known to us: nobody but its owner can bring it back.
    hosts::sh(&format!("umount {}", kept.join(gone.to_string()).display()));
    for _ in 0..2 {
        let report = backend.apply(&region.state.node_plan(here)).await;
        let failures: Vec<&BackendError> = report.failures().collect();
        let [failure] = *failures else { panic!("{failures:?}") };
        assert_eq!(failure.kind(), ErrorKind::NotFound);
        let told = failure.to_string();
        assert!(told.contains(&gone.to_string()) && told.contains("attach its network namespace"), "{told}");
        assert!(reaches(good, other), "the rest is not applied");
    }
    backend.attach(gone, region.netns(gone).path()).await.unwrap();
    backend.apply(&region.state.node_plan(here)).await.into_result().unwrap();
    assert!(reaches(gone, other));
    // Our own are made anew.
    let transport = region.hosts[0].has_transport().then(|| "transport".to_owned());
    for place in [network(1).to_string()].into_iter().chain(transport) {
        hosts::sh(&format!("umount {}", kept.join(&place).display()));
        // As long as the kernel has not taken the one before down, its VNI is in the way; the next attempt finds it free.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while let Err(error) = backend.apply(&region.state.node_plan(here)).await.into_result() {
            assert!(std::time::Instant::now() < deadline, "{}", explain(&error));
        }
        hosts::eventually("packets", || reaches(good, other));
        assert!(reaches(good, gone), "{place}");
    }
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_namespace_cannot_be_read_holds_nobody_up() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (good, odd, other) = (region.add(1, 1).await, region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let (backend, here) = (region.hosts[0].linux().clone(), region.hosts[0].id);
    let reaches =
        |region: &Region, from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    // In its place is a namespace that no thread can look around in for links.
    let path = region.hosts[0].directory.join(here.to_string()).join(odd.to_string());
    hosts::sh(&format!("umount {0} && mount --bind /proc/self/ns/uts {0}", path.display()));
    let late = region.add(1, 1).await;
    region.hosts[1].linux().apply(&region.state.node_plan(region.hosts[1].id)).await.into_result().unwrap();
    for _ in 0..2 {
        let report = backend.apply(&region.state.node_plan(here)).await;
        let told: Vec<String> = report.failures().map(explain).collect();
        assert!(told.len() == 1 && told[0].contains(&odd.to_string()) && told[0].contains("read"), "{told:?}");
        for (from, to) in [(good, other), (late, good), (late, other), (odd, good), (odd, other)] {
            assert!(reaches(&region, from, to), "{from} to {to}");
        }
        // An agent that compares misses it, and nobody else.
        let observed = backend.observe().await.unwrap();
        let mut planned = Observed::from(&region.state.node_plan(here));
        planned.networks.get_mut(&network(1)).unwrap().endpoints.remove(&region.address(odd));
        assert_eq!(observed, planned);
    }
    // One that leaves goes.
    region.change(Change::Fail(odd));
    let report = backend.apply(&region.state.node_plan(here)).await;
    assert_eq!(report.failures().count(), 1, "{:?}", report.outcomes);
    assert!(!region.netns(odd).works("ping -c 1 -W 1 10.240.0.1"), "it is still connected");
    backend.attach(odd, region.netns(odd).path()).await.unwrap();
    backend.apply(&region.state.node_plan(here)).await.into_result().unwrap();
    assert!(reaches(&region, good, other) && reaches(&region, late, other));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_address_are_told_and_left_out() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (here, there) = (region.add(1, 1).await, region.add(1, 2).await);
    let (backend, host) = (region.hosts[0].linux().clone(), region.hosts[0].id);
    let doubtful: Vec<Node> = [3, 4].map(|n| hosts::node(n, PublicKey::new([n; 32]))).to_vec();
    let mut containers = Vec::new();
    for (n, node) in (100..).zip(&doubtful) {
        region.change(Change::AddNode(node.clone()));
        let slot = Slot::new(hosts::app(1), "web".parse().unwrap(), n).unwrap();
        region.change(Change::Start { container: container(n.into()), slot, node: node.id });
        containers.push(region.address(container(n.into())));
    }
    region.hosts[1].linux().apply(&region.state.node_plan(region.hosts[1].id)).await.into_result().unwrap();
    // The state refuses it, so they are plans that somebody else made.
    let [one, two] = [&doubtful[0], &doubtful[1]];
    let (mut of_tunnel, mut of_underlay) = (two.clone(), two.clone());
    (of_tunnel.tunnel_address, of_underlay.underlay) = (one.tunnel_address, one.underlay);
    for (shared, twin) in [("100.64.0.3", of_tunnel), ("192.0.2.3:51820", of_underlay)] {
        assert!(matches!(
            region.state.apply(Timestamp::ZERO, Change::UpdateNode(twin.clone())),
            Err(ApplyError::NodesShare { .. })
        ));
        let mut plan = region.state.node_plan(host);
        let mut peers = (*plan.peers).clone();
        peers.insert(twin.id, twin.into());
        plan.peers = peers.into();
        for _ in 0..2 {
            let report = backend.apply(&plan).await;
            let failures: Vec<&BackendError> = report.failures().collect();
            let [failure] = *failures else { panic!("{failures:?}") };
            assert_eq!(failure.kind(), ErrorKind::Conflict);
            let told = failure.to_string();
            let parts =
                [doubtful[0].id.to_string(), doubtful[1].id.to_string(), shared.to_owned(), "register".to_owned()];
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
            assert!(
                region.netns(here).works(&format!("ping -c 1 -W 10 {}", region.address(there))),
                "the rest is not applied"
            );
            // Nothing is sent to whom it might not be for, nor taken from there.
            let peers: Vec<IpAddr> =
                backend.observe().await.unwrap().peers.values().map(|peer| peer.tunnel_address).collect();
            assert_eq!(peers, [IpAddr::from([100, 64, 0, 2])]);
            let known = region.hosts[0].sh_in(&network(1).to_string(), "ip neigh; bridge fdb");
            assert!(
                containers.iter().all(|address| !known.contains(&address.to_string())) && !known.contains("100.64.0.3"),
                "{known}"
            );
            if region.hosts[0].has_transport() {
                assert!(!region.hosts[0].sh_in("transport", "nft list ruleset").contains("100.64.0.3"));
            }
        }
    }
    backend.apply(&region.state.node_plan(host)).await.into_result().unwrap();
    region.tear_down().await;
}

/// A plan in which a network is another. The state refuses such, so somebody else has made it.
fn with(plan: &NodePlan, n: u128, edit: impl FnOnce(&mut NetworkPlan)) -> NodePlan {
    let mut plan = plan.clone();
    let mut networks = (*plan.networks).clone();
    edit(Arc::make_mut(networks.get_mut(&network(n)).unwrap()));
    plan.networks = networks.into();
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_whose_packets_would_mix_stay_as_they_were_or_are_left_out() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    region.add_network(3, |_| ());
    let (a, b) = (region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let (backend, here) = (region.hosts[0].linux().clone(), region.hosts[0].id);
    let (c, d) = (region.add(2, 1).await, region.add(2, 2).await);
    let (e, f) = (region.add(3, 1).await, region.add(3, 2).await);
    region.hosts[1].linux().apply(&region.state.node_plan(region.hosts[1].id)).await.into_result().unwrap();
    let plan = region.state.node_plan(here);
    let reaches = |from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    let (kept, vni) = (region.hosts[0].directory.join(here.to_string()), |n| plan.networks[&network(n)].vni);
    let address = region.address(a);
    let outside = std::net::Ipv4Addr::new(10, 77, 0, 1);
    for (what, wrong) in [
        ("VNI", with(&plan, 2, |network| network.vni = vni(1))),
        ("both have 10.240.", with(&plan, 2, |network| network.endpoints[1].address = network.endpoints[0].address)),
        ("10.77.0.1", with(&plan, 2, |network| network.endpoints[0].address = outside)),
    ] {
        for _ in 0..2 {
            let report = backend.apply(&wrong).await;
            let told: Vec<String> = report.failures().map(explain).collect();
            assert!(report.failures().all(|error| error.kind() == ErrorKind::Conflict), "{told:?}");
            let parts = [what.to_owned(), network(2).to_string(), "as".to_owned()];
            assert!(told.iter().any(|told| parts.iter().all(|part| told.contains(part))), "{told:?}");
            assert!(reaches(a, b), "{what}: what ran has suffered");
            assert!(reaches(e, f), "{what}: the rest is not applied");
            assert!(!kept.join(network(2).to_string()).exists(), "{what}: something was made of it");
        }
    }
    // One VNI, one network, whatever `nft` is asked.
    if region.hosts[0].has_transport() {
        let allowed = region.hosts[0].sh_in("transport", "nft -j list set inet private_network senders4");
        assert_eq!(allowed.matches(&format!("{}, ", vni(1))).count(), 1, "{address}: {allowed}");
    }
    backend.apply(&plan).await.into_result().unwrap();
    assert!(reaches(a, b) && reaches(c, d) && reaches(e, f));
    // Both run, and one is to have the VNI of the other, which would have a third's.
    let mixed = with(&with(&plan, 1, |network| network.vni = vni(2)), 3, |network| network.vni = vni(1));
    let report = backend.apply(&mixed).await;
    let told: Vec<String> = report.failures().map(explain).collect();
    assert!(told.iter().any(|told| told.contains(&format!("network {}: another", network(3)))), "{told:?}");
    assert!(reaches(a, b) && reaches(c, d), "what ran has suffered");
    assert!(!kept.join(network(3).to_string()).exists(), "two networks have one VNI");
    backend.apply(&plan).await.into_result().unwrap();
    assert!(reaches(a, b) && reaches(c, d) && reaches(e, f));
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_vni_and_another_tunnel_address_are_taken() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    let (a, b) = (region.add(1, 1).await, region.add(1, 2).await);
    region.apply().await;
    let reaches = |from, to| {
        let ping = format!("ping -c 1 -W 1 {}", region.address(to));
        hosts::eventually("a packet's way", || region.netns(from).works(&ping));
    };
    reaches(a, b);
    let mut moved = region.state.node(region.hosts[0].id).unwrap().clone();
    moved.tunnel_address = [100, 64, 0, 77].into();
    let mut state = region.state.clone();
    state.apply(Timestamp::ZERO, Change::UpdateNode(moved)).unwrap();
    for edit in [|_: &mut NetworkPlan| (), |network: &mut NetworkPlan| network.vni = Vni::new(77).unwrap()] {
        for host in &region.hosts {
            let plan = with(&state.node_plan(host.id), 1, edit);
            let report = host.linux().apply(&plan).await;
            assert_eq!((report.failures().count(), report.is_unchanged()), (0, false), "{:?}", report.outcomes);
            assert_eq!(host.linux().observe().await.unwrap(), Observed::from(&plan));
            let again = host.linux().apply(&plan).await;
            assert!(again.is_unchanged(), "{:?}", again.outcomes);
        }
        reaches(a, b);
        reaches(b, a);
    }
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_are_not_for_this_node_are_refused_whole() {
    if !is_root() {
        return;
    }
    let mut region = Region::start(2).await;
    region.add(1, 1).await;
    let backend = region.hosts[0].linux().clone();
    let refused = async |plan: &NodePlan| backend.apply(plan).await.into_result().unwrap_err();
    assert_eq!(refused(&region.state.node_plan(region.hosts[1].id)).await.kind(), ErrorKind::WrongNode);
    let mut node = region.state.node(region.hosts[0].id).unwrap().clone();
    node.public_key = PublicKey::new([9; 32]);
    region.change(Change::UpdateNode(node));
    let other_key = region.state.node_plan(region.hosts[0].id);
    assert_eq!(refused(&other_key).await.kind(), ErrorKind::WrongNode);
    assert!(!region.hosts[0].directory.join(region.hosts[0].id.to_string()).join("transport").exists());
}

/// An `nft` that works unless it is told not to.
struct Fragile {
    program: String,
    broken: String,
}

impl Fragile {
    fn new(name: &str) -> Self {
        let at = |what: &str| format!("/tmp/linux-{}-{name}-{what}", std::process::id());
        let (program, broken) = (at("nft"), at("broken"));
        let script = format!("#!/bin/sh\n[ ! -e {broken} ] && exec nft \"$@\"; echo out of order >&2; exit 1\n");
        std::fs::write(&program, script).unwrap();
        hosts::sh(&format!("chmod 755 {program}"));
        Self { program, broken }
    }

    fn break_it(&self) {
        std::fs::write(&self.broken, "").unwrap();
    }

    fn mend(&self) {
        std::fs::remove_file(&self.broken).unwrap();
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        drop((std::fs::remove_file(&self.program), std::fs::remove_file(&self.broken)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_whose_filter_cannot_be_put_in_place_does_not_come_up() {
    if !is_root() {
        return;
    }
    let nft = Fragile::new("new");
    let mut region = Region::start_with(1, |_, builder| builder.nft(&nft.program)).await;
    let own = region.add(1, 1).await;
    region.apply().await;
    let place = network(2).to_string();
    region.add(2, 1).await;
    let backend = region.hosts[0].linux();
    nft.break_it();
    let report = backend.apply(&region.state.node_plan(region.hosts[0].id)).await;
    let failures: Vec<String> = report.failures().map(explain).collect();
    assert!(failures.iter().any(|text| text.contains(&place)), "{failures:?}");
    let links = region.hosts[0].sh_in(&place, "ip -o link");
    assert!(!links.contains("vxlan0") && !links.contains("br0"), "{links}");
    assert!(region.netns(own).works("ping -c 1 -W 10 169.254.53.53"), "the other network has gone, too");
    nft.mend();
    region.apply().await;
    region.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_lost_its_filter_carries_nothing_until_it_is_back() {
    if !is_root() {
        return;
    }
    let nft = Fragile::new("lost");
    let mut region = Region::start_with(2, |_, builder| builder.nft(&nft.program)).await;
    let (a, near, far) = (region.add(1, 1).await, region.add(1, 1).await, region.add(1, 2).await);
    let (other, other_near, other_far) = (region.add(2, 1).await, region.add(2, 1).await, region.add(2, 2).await);
    region.apply().await;
    let (backend, plan) = (region.hosts[0].linux().clone(), region.state.node_plan(region.hosts[0].id));
    let reaches = |from, to| region.netns(from).works(&format!("ping -c 1 -W 10 {}", region.address(to)));
    let is_cut = |from, to| !region.netns(from).works(&format!("ping -c 2 -i 0.2 -W 1 {}", region.address(to)));
    let of = |network| if network == 1 { [(a, near), (a, far)] } else { [(other, other_near), (other, other_far)] };
    assert!([1, 2].into_iter().flat_map(of).all(|(from, to)| reaches(from, to)));
    // What nobody has touched goes on without `nft`, which nobody asks then.
    nft.break_it();
    assert!(backend.apply(&plan).await.is_unchanged());
    assert!([1, 2].into_iter().flat_map(of).all(|(from, to)| reaches(from, to)));

    region.hosts[0].sh_in(&network(1).to_string(), "nft flush ruleset");
    for _ in 0..2 {
        let report = backend.apply(&plan).await;
        let told: Vec<String> = report.failures().map(explain).collect();
        assert!(told.len() == 1 && told[0].contains(&network(1).to_string()), "{told:?}");
        assert!(told[0].contains("out of order") && told[0].contains("nothing is carried"), "{told:?}");
        assert!(of(1).into_iter().all(|(from, to)| is_cut(from, to)), "packets pass without a filter");
        assert!(of(2).into_iter().all(|(from, to)| reaches(from, to)), "the other network has gone, too");
    }
    nft.mend();
    backend.apply(&plan).await.into_result().unwrap();
    assert!([1, 2].into_iter().flat_map(of).all(|(from, to)| reaches(from, to)));
    assert!(backend.apply(&plan).await.is_unchanged());

    if !region.hosts[0].has_transport() {
        return region.tear_down().await;
    }
    // The tunnel's, too: nothing is sent to other nodes, nor taken from them.
    nft.break_it();
    region.hosts[0].sh_in("transport", "nft flush ruleset");
    for _ in 0..2 {
        let report = backend.apply(&plan).await;
        let told: Vec<String> = report.failures().map(explain).collect();
        assert!(told.len() == 1 && told[0].contains("the tunnel's namespace"), "{told:?}");
        let [remote, local]: [Vec<_>; 2] = [1, 0].map(|n| [1, 2].map(|network| of(network)[n]).to_vec());
        assert!(remote.into_iter().all(|(from, to)| is_cut(from, to)), "packets pass without a filter");
        assert!(local.into_iter().all(|(from, to)| reaches(from, to)), "the networks have gone, too");
    }
    nft.mend();
    backend.apply(&plan).await.into_result().unwrap();
    assert!([1, 2].into_iter().flat_map(of).all(|(from, to)| reaches(from, to)));
    assert!(backend.apply(&plan).await.is_unchanged());
    region.tear_down().await;
}
