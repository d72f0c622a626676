//! Figures, for a quiet machine: `cargo test --release -p pn-fleet --features etcd --test fleet -- --ignored --nocapture
//! --test-threads 1 measure`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Node, NodeId, Project, ProjectId,
    PublicKey, Region, Slot, Terms, Timestamp,
};
use pn_store::Registry;
use serde_json::Value;

use crate::machines::{Container, PATIENCE, is_root};
use crate::platform::Platform;
use crate::probe;

/// Three nodes and an etcd: from `pn start` to the name being answered on every node.
#[test]
#[ignore = "a measurement"]
fn measure_starts() {
    if !is_root() {
        return;
    }
    const STARTS: u32 = 100;
    let mut platform = Platform::with_etcd(3);
    platform.shop();
    platform.run(&["scale", &format!("my-app-backend:{}", STARTS + 4), "--app", "my-app"]);
    let watchers = [1, 2, 3].map(|node| platform.container("my-app", "my-app-backend", node).0);
    let suffix = platform.suffix("my-app");
    let revision = |platform: &Platform| {
        let status: Value = serde_json::from_str(&platform.etcdctl(&["endpoint", "status", "-w", "json"])).unwrap();
        status[0]["Status"]["header"]["revision"].as_u64().unwrap()
    };
    // Agents write what they count now and then, so that the least counts.
    let writes = (1..=3).map(|_| {
        let (before, start) = (revision(&platform), ["start", "my-app-backend", "--app", "my-app", "--node", "node1"]);
        let id = platform.json(&[&start[..], &["--no-wait"]].concat())["id"].as_str().unwrap().to_owned();
        let writes = revision(&platform) - before;
        platform.run(&["fail", &id]);
        writes
    });
    println!("{} writes for the start itself and the reports of three nodes", writes.min().unwrap());

    let (mut answered, mut returned) = (Vec::new(), Vec::new());
    let before = revision(&platform);
    for n in 0..STARTS {
        let index = (n + 4).to_string();
        let name = format!("{index}.my-app-backend.{suffix}");
        let container = platform.fleet.container(&format!("s{n}"));
        let (node, path) = (format!("node{}", n % 3 + 1), container.path());
        let mut pn = platform.pn(&["start", "my-app-backend", "--app", "my-app", "--index", &index, "--node", &node]);
        pn.args(["--netns", &path]).stdout(Stdio::null());
        let begun = Instant::now();
        let mut pn = pn.spawn().unwrap();
        answered.push(std::thread::scope(|scope| {
            let watch = |watcher: &Container| {
                watcher.inside(|| {
                    while probe::resolve(&name).is_err() {
                        assert!(begun.elapsed() < PATIENCE, "{name} is not answered");
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    begun.elapsed()
                })
            };
            let threads = watchers.each_ref().map(|watcher| scope.spawn(move || watch(watcher)));
            threads.map(|thread| thread.join().unwrap()).into_iter().max().unwrap()
        }));
        assert!(pn.wait().unwrap().success());
        returned.push(begun.elapsed());
    }
    let writes = f64::from(u32::try_from(revision(&platform) - before).unwrap()) / f64::from(STARTS);
    for (what, mut times) in [("answered on every node", answered), ("pn has returned", returned)] {
        times.sort();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("{STARTS} starts with an interface, until {what}: median {median:?}, p99 {p99:?}");
    }
    println!(
        "{writes:.1} writes for each until then: start, interface asked for and there, ready, three nodes' reports"
    );
}

/// What an agent needs for ten networks with a thousand containers each on other nodes.
#[test]
#[ignore = "a measurement"]
fn measure_memory() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    let agent = platform.agents[0].as_ref().unwrap().0.id();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned()
    };
    println!("no endpoint: {}", memory());
    let own: NodeId = platform.node(1).parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let registry = Registry::new(pn_store::connect(&platform.store).await.unwrap(), Region::default());
        let mut sessions = Vec::new();
        for n in 1..=10u8 {
            let (underlay, tunnel) = (([10, 9, 1, n], 51820).into(), [100, 64, 0, n].into());
            let (id, label) = (NodeId::from_u128(n.into()), format!("other{n}").parse().unwrap());
            let node = Node::new(id, label, underlay, tunnel, PublicKey::new([n; 32]));
            sessions.push(registry.join(node, Duration::from_secs(60)).await.unwrap());
        }
        for n in 1..=10u128 {
            let (project, network, app) = (ProjectId::from_u128(n), NetworkId::from_u128(n), AppId::from_u128(n));
            let terms = Terms {
                accepted_by: "ada".parse().unwrap(),
                version: "1".parse().unwrap(),
                accepted_at: Timestamp::ZERO,
            };
            for change in [
                Change::AddProject(Project::new(project, format!("p{n}").parse().unwrap())),
                Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)),
                Change::AddApp(App::new(app, project, format!("a{n}").parse().unwrap())),
                Change::Scale { app, formation: "web:1001".parse().unwrap() },
            ] {
                registry.apply(change).await.unwrap();
            }
            let mut last = None;
            for index in 1..=1001 {
                let slot = Slot::new(app, ContainerType::web(), index).unwrap();
                let container = ContainerId::from_u128(n << 32 | u128::from(index));
                let node = if index == 1001 { own } else { NodeId::from_u128(u128::from(index % 10 + 1)) };
                registry.apply(Change::Start { container, slot, node }).await.unwrap();
                last = Some(registry.apply(Change::Ready(container)).await.unwrap());
            }
            // The nodes beside have no agents, so wait for the one that has.
            let revision = last.unwrap().revision();
            let key = format!("applied/{network}/{own}").parse().unwrap();
            let begun = Instant::now();
            loop {
                let (_, entry) = pn_store::StoreExt::get_one(&**registry.store(), &key).await.unwrap();
                let applied = entry.and_then(|entry| String::from_utf8(entry.value).unwrap().parse().ok());
                if applied >= Some(revision.get()) {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "{network} is not applied");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            println!("{} remote endpoints on 10 nodes: {}", n * 1000, memory());
        }
    });
}
