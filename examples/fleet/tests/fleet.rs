//! `pn` and `pn-agent` on several machines: real programs, a real etcd, and network namespaces for machines and containers.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail where something is missing, and say what they did"
)]

#[path = "fleet/mod.rs"]
mod machines;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pn_core::{AppId, Change, ContainerId, NodeId, Region, Slot};
use pn_fleet::interface::{self, Progress};
use pn_store::Registry;
use serde_json::Value;

use machines::{Container, Fleet, Machine, Running, fail, is_root, succeed, wait_for};

/// Machines with agents, and where their state is kept.
struct Platform {
    fleet: Fleet,
    machines: Vec<Machine>,
    agents: Vec<Option<Running>>,
    etcd: Option<(Machine, Running)>,
    store: String,
}

impl Platform {
    /// Starts agents on so many machines, over an etcd on another.
    fn with_etcd(count: u8) -> Self {
        let mut fleet = Fleet::new();
        let machine = fleet.machine("etcd", 100);
        let etcd = start_etcd(&fleet, &machine);
        let store = format!("etcd://{}:2379/pn", machine.address);
        Self::start(fleet, Some((machine, etcd)), store, count)
    }

    /// Starts one agent over a file.
    fn with_sqlite() -> Self {
        let fleet = Fleet::new();
        let store = format!("sqlite:{}", fleet.dir.join("state.sqlite").display());
        Self::start(fleet, None, store, 1)
    }

    fn start(mut fleet: Fleet, etcd: Option<(Machine, Running)>, store: String, count: u8) -> Self {
        let machines = (1..=count).map(|n| fleet.machine(&format!("node{n}"), n)).collect();
        let mut platform = Self { fleet, machines, agents: Vec::new(), etcd, store };
        for n in 0..count.into() {
            platform.agents.push(None);
            platform.start_agent(n, "userspace");
        }
        platform.wait_until_joined();
        platform
    }

    fn wait_until_joined(&self) {
        let count = self.machines.len();
        wait_for("every agent has joined", || {
            let nodes = self.json(&["nodes"]);
            let alive = nodes.as_array().unwrap().iter().filter(|node| node["alive"] == true).count();
            if alive == count { Ok(()) } else { Err(nodes.to_string()) }
        });
    }

    fn start_agent(&mut self, n: usize, backend: &str) {
        let machine = &self.machines[n];
        let mut agent = machine.command(env!("CARGO_BIN_EXE_pn-agent"));
        agent.args(["--store", &self.store, "--node", &format!("node{}", n + 1), "--lease", "3"]);
        agent.args(["--backend", backend]);
        agent.args(["--underlay", &machine.address.to_string()]);
        agent.arg("--key-file").arg(self.fleet.dir.join(format!("node{}.key", n + 1)));
        agent.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()));
        self.agents[n] = Some(Running::start(&mut agent));
    }

    /// Prepares `pn` on the first machine.
    fn pn(&self, arguments: &[&str]) -> Command {
        let mut pn = self.machines[0].command(env!("CARGO_BIN_EXE_pn"));
        pn.env("PN_STORE", &self.store).args(arguments);
        pn
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        succeed(&mut self.pn(arguments))
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.run(&[arguments, &["--format", "json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
    }

    /// Makes a project with a private network, and in it `my-app`, hidden, and `waf`.
    fn shop(&self) {
        self.run(&["projects-add", "shop"]);
        self.run(&["projects-enable-private-network", "shop", "--accept-terms", "ada@example.com"]);
        self.run(&["create", "my-app", "--project", "shop"]);
        self.run(&["scale", "web:0", "my-app-backend:3", "--app", "my-app"]);
        self.run(&["create", "waf", "--project", "shop"]);
    }

    /// Starts a container on a machine, numbered from 1, and returns its namespace and its id.
    #[track_caller]
    fn container(&mut self, app: &str, container_type: &str, node: usize) -> (Container, String) {
        let number = self.fleet.count();
        let container = self.fleet.container(&format!("c{number}"));
        let (node, path) = (format!("node{node}"), container.path());
        let started = self.json(&["start", container_type, "--app", app, "--node", &node, "--netns", &path]);
        assert_eq!(started["environment"].as_object().unwrap().len(), 3, "{started}");
        (container, started["id"].as_str().unwrap().to_owned())
    }

    /// Returns what the names of an app's containers end with: the app's own name.
    fn suffix(&self, app: &str) -> String {
        let name = self.names(app).swap_remove(0);
        name[name.find("ap-").unwrap()..].to_owned()
    }

    fn names(&self, app: &str) -> Vec<String> {
        let page = self.json(&["--app", app, "private-networks-domain-names", "--per-page", "50"]);
        page["data"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }
}

fn start_etcd(fleet: &Fleet, machine: &Machine) -> Running {
    let url = format!("http://{}:2379", machine.address);
    let mut etcd = machine.command("etcd");
    etcd.arg("--data-dir").arg(fleet.dir.join("etcd"));
    etcd.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--logger=zap", "--log-level=error"]);
    let running = Running::start(&mut etcd);
    wait_for("etcd answers", || {
        let health =
            machine.command("curl").args(["-sS", "--max-time", "1", &format!("{url}/health")]).output().unwrap();
        if health.stdout.starts_with(b"{\"health\":\"true\"") { Ok(()) } else { Err(machines::text(&health.stderr)) }
    });
    running
}

/// The addresses that a name has, as a container's resolver says.
fn resolve(from: &Container, name: &str) -> BTreeSet<String> {
    let output = succeed(from.command("dig").args(["+short", "+tries=2", "+time=2", name, "A"]));
    output.lines().map(str::to_owned).collect()
}

#[test]
fn from_nothing_to_curl_between_machines_with_pn_alone() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(3);
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (other, _) = platform.container("my-app", "my-app-backend", 2);
    let (waf, _) = platform.container("waf", "web", 3);
    let dir = platform.fleet.dir.clone();
    let _servers = [backend.serve(3000, "one", &dir), other.serve(3000, "two", &dir)];

    let names = platform.names("my-app");
    let suffix = platform.suffix("my-app");
    for (n, page) in [(1, "one"), (2, "two")] {
        let url = format!("http://{n}.my-app-backend.{suffix}:3000/");
        wait_for("the backend answers", || match waf.fetch(&url) {
            Ok(body) if body == page => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    // What the product lists is what resolves, on every node.
    let expected =
        ["my-app-backend.", "1.my-app-backend.", "2.my-app-backend."].map(|label| format!("{label}{suffix}"));
    assert_eq!(names.iter().collect::<BTreeSet<_>>(), expected.iter().collect());
    for name in &names {
        let planned: BTreeSet<String> = platform.run(&["resolve", name]).lines().map(str::to_owned).collect();
        for container in [&backend, &other, &waf] {
            assert_eq!(resolve(container, name), planned, "{name}");
        }
    }
    // Nothing leads out of the network, or in.
    assert!(waf.fetch("http://10.9.0.100:2379/health").is_err());
    let status = platform.json(&["status"]);
    assert!(status.as_array().unwrap().iter().all(|node| node["failures"] == Value::Array(Vec::new())), "{status}");
}

#[test]
fn one_machine_needs_a_file_and_nothing_else() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_sqlite();
    platform.shop();
    let (backend, id) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 1);
    let _server = backend.serve(3000, "hello", &platform.fleet.dir.clone());
    let name = platform.suffix("my-app");
    let url = format!("http://my-app-backend.{name}:3000/");
    wait_for("the backend answers", || {
        waf.fetch(&url).and_then(|body| if body == "hello" { Ok(()) } else { Err(body) })
    });

    // Stopped, it has no name; drained, it is gone.
    platform.run(&["stop", &id]);
    wait_for("its name is gone", || match resolve(&waf, &format!("1.my-app-backend.{name}")) {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    });
    wait_for("the container is gone", || {
        let left = platform.json(&["ps", "--app", "my-app"]);
        if left == Value::Array(Vec::new()) { Ok(()) } else { Err(left.to_string()) }
    });
    wait_for("its interface is gone", || {
        let links = succeed(backend.command("ip").args(["-br", "link"]));
        if links.contains("pn0") { Err(links) } else { Ok(()) }
    });
}

#[test]
fn the_kernel_and_user_space_mix_in_one_network() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.agents[1].take().unwrap().terminate();
    platform.start_agent(1, "linux");
    platform.wait_until_joined();
    platform.shop();
    let (in_user_space, _) = platform.container("my-app", "my-app-backend", 1);
    let (in_the_kernel, _) = platform.container("my-app", "my-app-backend", 2);
    let dir = platform.fleet.dir.clone();
    let _servers = [in_user_space.serve(3000, "one", &dir), in_the_kernel.serve(3000, "two", &dir)];
    let suffix = platform.suffix("my-app");
    for (from, to, page) in [(&in_the_kernel, 1, "one"), (&in_user_space, 2, "two")] {
        let url = format!("http://{to}.my-app-backend.{suffix}:3000/");
        wait_for("they reach each other", || match from.fetch(&url) {
            Ok(body) if body == page => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let status = platform.json(&["status"]);
    let of = |key: &str| status.as_array().unwrap().iter().map(|node| node[key].to_string()).collect::<Vec<_>>();
    assert_ne!(of("backend")[0], of("backend")[1], "{status}");
    // Stopped in good order, an agent leaves nothing in the kernel.
    let node = platform.json(&["nodes"]).as_array().unwrap().iter().find(|node| node["name"] == "node2").unwrap()["id"]
        .clone();
    platform.agents[1].take().unwrap().terminate();
    let nodes = platform.json(&["nodes"]);
    let left = nodes.as_array().unwrap().iter().find(|known| known["id"] == node).unwrap();
    assert_eq!(left["alive"], false, "its names go at once: {nodes}");
    let left = std::fs::read_dir(Path::new("/run/private-networks").join(node.as_str().unwrap()));
    let left: Vec<_> = left.into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let links = succeed(platform.machines[1].command("ip").args(["-br", "link"]));
    assert_eq!(links.lines().count(), 2, "only lo and eth0 are to be left: {links}");
}

#[test]
fn bad_input_says_what_is_wrong_and_changes_nothing() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_sqlite();
    platform.shop();
    let before = platform.run(&["projects-details", "shop", "--format", "json"]);
    let check = |arguments: &[&str], status: i32, message: &str| {
        let complaint = fail(&mut platform.pn(arguments), status);
        assert!(complaint.contains(message), "{arguments:?}: {complaint}");
    };
    check(&["--store", "mysql://x", "projects"], 1, "\"mysql://x\" is no store");
    check(&["--store", "etcd://127.0.0.1:1/pn", "projects"], 1, "the store");
    check(&["ps"], 2, "--app");
    check(&["frobnicate"], 2, "frobnicate");
    check(&["ps", "--app", "none"], 1, "there is no app none");
    check(&["projects-add", "shop"], 1, "there is a project shop already");
    check(&["scale", "web:1", "Web:2", "--app", "my-app"], 1, "differ only by case");
    check(&["private-networks-domain-names", "--app", "my-app", "--per-page", "51"], 1, "1 to 50");
    let start = ["start", "my-app-backend", "--app", "my-app", "--node", "node1", "--netns"];
    check(&[&start[..], &["/nowhere"]].concat(), 1, "no network namespace at /nowhere");
    check(&[&start[..], &["/etc/passwd"]].concat(), 1, "/etc/passwd is not a network namespace");
    check(&["start", "my-app-backend", "--app", "my-app", "--node", "node9"], 1, "there is no node node9");
    check(&["start", "worker", "--app", "my-app", "--node", "node1"], 1, "has no type worker");
    check(&["create", "records", "--project", "shop", "--hds"], 1, "HDS");
    check(&["resolve", "1.web.nowhere"], 2, "1.web.nowhere");
    assert_eq!(platform.run(&["projects-details", "shop", "--format", "json"]), before);
    assert_eq!(platform.json(&["ps", "--app", "my-app"]), Value::Array(Vec::new()));

    let mut rival = platform.machines[0].command(env!("CARGO_BIN_EXE_pn-agent"));
    rival.args(["--store", &platform.store, "--node", "node1", "--underlay", "10.9.0.1:51821"]);
    rival.arg("--key-file").arg(platform.fleet.dir.join("rival.key"));
    let complaint = fail(&mut rival, 1);
    assert!(complaint.contains("another agent with another key is node node1, and alive"), "{complaint}");
}

/// As many as `PN_CYCLES` says, or enough to notice what stays of each.
#[test]
fn containers_that_come_and_go_leave_nothing() {
    if !is_root() {
        return;
    }
    let cycles: u32 = std::env::var("PN_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(100);
    let mut platform = Platform::with_sqlite();
    platform.shop();
    let inside = platform.fleet.container("cycle");
    let node: NodeId = platform.json(&["nodes"])[0]["id"].as_str().unwrap().parse().unwrap();
    let app: AppId =
        platform.json(&["apps"]).as_array().unwrap().iter().find(|app| app["name"] == "my-app").unwrap()["id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
    let agent = platform.agents[0].as_ref().unwrap().0.id();
    let has = || {
        let count = |what| std::fs::read_dir(format!("/proc/{agent}/{what}")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let memory: usize = memory.trim().trim_end_matches(" kB").parse().unwrap();
        (count("fd"), count("task"), platform.fleet.there(), memory)
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = Registry::new(runtime.block_on(pn_store::connect(&platform.store)).unwrap(), Region::default());
    let cycle = |n: u32| {
        let (container, slot) =
            (ContainerId::from_u128(n.into()), Slot::new(app, "my-app-backend".parse().unwrap(), 1));
        runtime.block_on(async {
            let store = &**registry.store();
            interface::want(store, node, container, Path::new(&inside.path())).await.unwrap();
            registry.apply(Change::Start { container, slot: slot.unwrap(), node }).await.unwrap();
            let settled = interface::settled(store, node, container, machines::PATIENCE).await.unwrap();
            assert!(matches!(settled, Some(Progress::Ready { .. })), "{settled:?}");
            // Its name goes first, as `pn fail` does.
            let stopped = registry.apply(Change::Stop(container)).await.unwrap();
            let network = stopped.network_of_container(container).unwrap();
            registry.synced(stopped.revision(), network, machines::PATIENCE).await.unwrap();
            registry.apply(Change::Fail(container)).await.unwrap();
            interface::forget(store, node, container).await.unwrap();
        });
        wait_for("the interface is gone", || {
            let links = succeed(inside.command("ip").args(["-br", "link"]));
            if links.contains("pn0") { Err(links) } else { Ok(()) }
        });
    };
    (1..=20).for_each(cycle);
    let before = has();
    (21..=20 + cycles).for_each(cycle);
    // Threads of the runtime come and go.
    wait_for("descriptors, threads and namespaces are what they were", || {
        let after = has();
        let is_same = after.0 <= before.0 && after.1 <= before.1 + 2 && after.2 == before.2;
        if is_same { Ok(()) } else { Err(format!("{after:?} after {before:?}")) }
    });
    let after = has();
    println!("{cycles} cycles: {before:?} and then {after:?} (descriptors, threads, namespaces, kB)");
    assert!(after.3 < before.3 + 8_192, "{after:?} after {before:?}");
}

#[test]
fn two_command_lines_race_for_the_same_slots() {
    if !is_root() {
        return;
    }
    let platform = Platform::with_etcd(1);
    platform.shop();
    platform.run(&["scale", "my-app-backend:100", "--app", "my-app"]);
    let start = ["start", "my-app-backend", "--app", "my-app", "--node", "node1", "--no-wait"];
    let racers: Vec<_> = (0..200)
        .map(|_| {
            platform.pn(&start).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    let won = racers.into_iter().map(|mut racer| racer.wait().unwrap()).filter(|status| status.success()).count();
    assert_eq!(won, 100);
    let containers = platform.json(&["ps", "--app", "my-app"]);
    let of = |key: &str| containers.as_array().unwrap().iter().map(|c| c[key].to_string()).collect::<BTreeSet<_>>();
    assert_eq!((of("address").len(), of("name").len()), (100, 100));
}

#[test]
fn an_agent_that_is_killed_comes_back_and_others_do_not_notice() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(3);
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let (third, _) = platform.container("my-app", "my-app-backend", 3);
    let dir = platform.fleet.dir.clone();
    let _servers = [backend.serve(3000, "one", &dir), third.serve(3000, "three", &dir)];
    let name = platform.suffix("my-app");
    let stream = Stream::start(&backend, &waf, &format!("1.my-app-backend.{name}"), &dir);
    for _ in 0..10 {
        platform.agents[2].take().unwrap().kill();
        platform.start_agent(2, "userspace");
        let begun = Instant::now();
        let url = format!("http://2.my-app-backend.{name}:3000/");
        wait_for("the killed node is back", || waf.fetch(&url));
        let elapsed = begun.elapsed();
        println!("back after {elapsed:?}");
        assert!(elapsed < Duration::from_secs(8), "{elapsed:?}");
    }
    stream.assert_intact();
}

#[test]
fn traffic_goes_on_without_the_store_and_changes_follow_when_it_is_back() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let dir = platform.fleet.dir.clone();
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    let stream = Stream::start(&backend, &waf, &name, &dir);
    let (machine, etcd) = platform.etcd.take().unwrap();
    etcd.kill();
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        assert_eq!(resolve(&waf, &name).len(), 1, "L4: names are answered without the store");
        std::thread::sleep(Duration::from_millis(100));
    }
    platform.etcd = Some((machine.clone(), start_etcd(&platform.fleet, &machine)));
    let (_, id) = platform.container("my-app", "my-app-backend", 2);
    assert!(platform.run(&["ps", "--app", "my-app"]).contains(&id));
    stream.assert_intact();
}

#[test]
fn a_deleted_store_is_held_and_restored() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.shop();
    let (backend, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let dir = platform.fleet.dir.clone();
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    let stream = Stream::start(&backend, &waf, &name, &dir);
    let file = dir.join("backup");
    platform.run(&["backup", file.to_str().unwrap()]);
    let plan = platform.run(&["plan", "node1"]);

    let (machine, _) = platform.etcd.as_ref().unwrap();
    let endpoint = format!("http://{}:2379", machine.address);
    succeed(machine.command("etcdctl").env("ETCDCTL_API", "3").args(["--endpoints", &endpoint, "del", "--prefix", ""]));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(resolve(&waf, &name).len(), 1, "L3: what was deleted by accident is answered still");
    platform.run(&["restore", file.to_str().unwrap()]);
    assert_eq!(platform.run(&["plan", "node1"]), plan);
    wait_for("nothing is held", || {
        let status = platform.json(&["status"]);
        let fine = status.as_array().unwrap().iter().all(|node| node["held"].is_null() && node["alive"] == true);
        if fine { Ok(()) } else { Err(status.to_string()) }
    });
    stream.assert_intact();
    drop(backend);
}

#[test]
fn history_that_is_gone_is_not_missed() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.shop();
    let (_, first) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    assert_eq!(resolve(&waf, &name).len(), 1);
    platform.agents[1].take().unwrap().kill();
    platform.run(&["fail", &first]);
    let (_, _) = platform.container("my-app", "my-app-backend", 1);
    let (machine, _) = platform.etcd.as_ref().unwrap();
    let endpoint = format!("http://{}:2379", machine.address);
    let etcdctl = |arguments: &[&str]| {
        succeed(machine.command("etcdctl").env("ETCDCTL_API", "3").args(["--endpoints", &endpoint]).args(arguments))
    };
    let status: Value = serde_json::from_str(&etcdctl(&["endpoint", "status", "-w", "json"])).unwrap();
    etcdctl(&["compact", &status[0]["Status"]["header"]["revision"].to_string()]);
    platform.start_agent(1, "userspace");
    wait_for("it has caught up", || {
        let planned: BTreeSet<String> = platform.run(&["resolve", &name]).lines().map(str::to_owned).collect();
        let found = waf.command("dig").args(["+short", "+tries=1", "+time=1", &name]).output().unwrap();
        let found: BTreeSet<String> = machines::text(&found.stdout).lines().map(str::to_owned).collect();
        if found == planned { Ok(()) } else { Err(format!("{found:?} instead of {planned:?}")) }
    });
}

#[test]
fn a_node_that_is_cut_off_loses_its_names_and_rejoins() {
    if !is_root() {
        return;
    }
    let mut platform = Platform::with_etcd(2);
    platform.shop();
    let (_, _) = platform.container("my-app", "my-app-backend", 1);
    let (waf, _) = platform.container("waf", "web", 2);
    let name = format!("1.my-app-backend.{}", platform.suffix("my-app"));
    assert_eq!(resolve(&waf, &name).len(), 1);
    platform.machines[0].cable("down");
    let begun = Instant::now();
    wait_for(
        "its names vanish",
        || if resolve(&waf, &name).is_empty() { Ok(()) } else { Err("still there".to_owned()) },
    );
    // The lease is 3 s, and this machine is slow.
    println!("names vanished after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    platform.machines[0].cable("up");
    wait_for("it has rejoined", || if resolve(&waf, &name).len() == 1 { Ok(()) } else { Err("no name".to_owned()) });
}

/// A connection between two containers that carries numbered lines until it is looked at.
struct Stream {
    client: Running,
    server: Running,
    received: std::path::PathBuf,
}

const LISTEN: &str = "
import socket, sys
listener = socket.create_server(('', 9000))
connection, _ = listener.accept()
with open(sys.argv[1], 'wb', 0) as received:
    while octets := connection.recv(65536):
        received.write(octets)
";

const SEND: &str = "
import itertools, socket, sys, time
while True:
    try:
        connection = socket.create_connection((sys.argv[1], 9000), 5)
        break
    except OSError:
        time.sleep(0.1)
connection.settimeout(None)
for n in itertools.count(1):
    connection.sendall(str(n).encode() + bytes([10]))
    time.sleep(0.005)
";

impl Stream {
    fn start(server: &Container, client: &Container, name: &str, dir: &Path) -> Self {
        let received = dir.join("received");
        let server = Running::start(server.command("python3").args(["-c", LISTEN]).arg(&received));
        let client = Running::start(client.command("python3").args(["-c", SEND, name]));
        let stream = Self { client, server, received };
        wait_for("the first lines", || match stream.lines().len() {
            0 => Err("nothing yet".to_owned()),
            _ => Ok(()),
        });
        stream
    }

    fn lines(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.received).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Checks that it still carries lines, and that none was lost.
    #[track_caller]
    fn assert_intact(self) {
        let before = self.lines().len();
        wait_for("more lines", || match self.lines().len() {
            now if now > before + 10 => Ok(()),
            now => Err(format!("{before} and then {now}")),
        });
        let lines = self.lines();
        assert!(lines.iter().copied().eq(1..=lines.len() as u64), "a line is missing or out of order");
        drop((self.client, self.server));
    }
}
