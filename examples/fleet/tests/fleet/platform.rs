//! Machines with agents, and the product's use case on them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::machines::{Container, Fleet, Machine, Running, succeed, text, wait_for};
use crate::stream::Stream;

/// How long a node is believed to be alive that is not heard from.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// Machines with agents, and where their state is kept.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) fleet: Fleet,
    pub(crate) machines: Vec<Machine>,
    pub(crate) agents: Vec<Option<Running>>,
    pub(crate) etcd: Option<(Machine, Running)>,
    pub(crate) store: String,
}

/// The use case: a hidden backend on one machine, what is to reach it on another, and a connection between the two.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The backend's id.
    pub(crate) backend_id: String,
    pub(crate) waf: Container,
    /// The name of the backend's container.
    pub(crate) name: String,
    pub(crate) stream: Stream,
}

impl Platform {
    /// Starts agents on so many machines, over an etcd on another.
    pub(crate) fn with_etcd(count: u8) -> Self {
        let mut fleet = Fleet::new();
        let machine = fleet.machine("etcd", 100);
        let etcd = start_etcd(&fleet, &machine);
        let store = format!("etcd://{}:2379/pn", machine.address);
        Self::start(fleet, Some((machine, etcd)), store, count)
    }

    /// Starts one agent over a file.
    pub(crate) fn with_sqlite() -> Self {
        let fleet = Fleet::new();
        let store = format!("sqlite:{}", fleet.dir.join("state.sqlite").display());
        Self::start(fleet, None, store, 1)
    }

    fn start(mut fleet: Fleet, etcd: Option<(Machine, Running)>, store: String, count: u8) -> Self {
        let machines = (1..=count).map(|n| fleet.machine(&format!("node{n}"), n)).collect();
        let mut platform = Self { fleet, machines, agents: Vec::new(), etcd, store };
        for n in 0..count.into() {
            platform.agents.push(None);
            platform.start_agent(n, &[]);
        }
        platform.wait_until_joined();
        platform
    }

    pub(crate) fn wait_until_joined(&self) {
        let count = self.machines.len();
        wait_for("every agent has joined", || {
            let nodes = self.json(&["nodes"]);
            let alive = nodes.as_array().unwrap().iter().filter(|node| node["alive"] == true).count();
            if alive == count { Ok(()) } else { Err(nodes.to_string()) }
        });
    }

    /// Starts the agent of a machine, numbered from 0, with more arguments.
    pub(crate) fn start_agent(&mut self, n: usize, arguments: &[&str]) {
        self.agents[n] = Some(Running::start(self.agent(n).args(arguments)));
    }

    /// Prepares the agent of a machine.
    pub(crate) fn agent(&self, n: usize) -> Command {
        let machine = &self.machines[n];
        let mut agent = machine.command(env!("CARGO_BIN_EXE_pn-agent"));
        agent.args([
            "--store",
            &self.store,
            "--node",
            &format!("node{}", n + 1),
            "--lease",
            &LEASE.as_secs().to_string(),
        ]);
        agent.args(["--underlay", &machine.address.to_string()]);
        agent.arg("--key-file").arg(self.fleet.dir.join(format!("node{}.key", n + 1)));
        agent.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()));
        agent
    }

    /// Kills the agent of a machine as nothing can refuse.
    pub(crate) fn kill_agent(&mut self, n: usize) {
        self.agents[n].take().unwrap().kill();
    }

    /// Asks the agent of a machine to end, and waits until it has.
    pub(crate) fn stop_agent(&mut self, n: usize) {
        self.agents[n].take().unwrap().terminate();
    }

    /// Prepares `pn` on the first machine.
    pub(crate) fn pn(&self, arguments: &[&str]) -> Command {
        let mut pn = self.machines[0].command(env!("CARGO_BIN_EXE_pn"));
        pn.env("PN_STORE", &self.store).args(arguments);
        pn
    }

    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        succeed(&mut self.pn(arguments))
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.run(&[arguments, &["--format", "json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
    }

    /// Makes a project with a private network, and in it `my-app`, hidden, and `waf`.
    pub(crate) fn shop(&self) {
        self.run(&["projects-add", "shop"]);
        self.run(&["projects-enable-private-network", "shop", "--accept-terms", "ada@example.com"]);
        self.run(&["create", "my-app", "--project", "shop"]);
        self.run(&["scale", "web:0", "my-app-backend:3", "--app", "my-app"]);
        self.run(&["create", "waf", "--project", "shop"]);
    }

    /// Starts a container on a machine, numbered from 1, and returns its namespace and its id.
    #[track_caller]
    pub(crate) fn container(&mut self, app: &str, container_type: &str, node: usize) -> (Container, String) {
        let number = self.fleet.count();
        let container = self.fleet.container(&format!("c{number}"));
        let (node, path) = (format!("node{node}"), container.path());
        let started = self.json(&["start", container_type, "--app", app, "--node", &node, "--netns", &path]);
        assert_eq!(started["environment"].as_object().unwrap().len(), 3, "{started}");
        (container, started["id"].as_str().unwrap().to_owned())
    }

    /// Makes the shop, its backend on the first machine, what is to reach it on the second, and a connection between the two.
    #[track_caller]
    pub(crate) fn pair(&mut self) -> Pair {
        self.shop();
        let (backend, backend_id) = self.container("my-app", "my-app-backend", 1);
        let (waf, _) = self.container("waf", "web", 2);
        let name = format!("1.my-app-backend.{}", self.suffix("my-app"));
        let stream = Stream::start(&backend, &waf, &name, &self.fleet.dir);
        Pair { backend_id, waf, name, stream }
    }

    /// Runs `etcdctl`, an eye of its own.
    #[track_caller]
    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> String {
        let (machine, _) = self.etcd.as_ref().unwrap();
        etcdctl(machine, arguments)
    }

    /// Returns the id of a node.
    pub(crate) fn node(&self, n: usize) -> String {
        let nodes = self.json(&["nodes"]);
        let name = format!("node{n}");
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == name.as_str());
        node.unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Returns the id of an app.
    pub(crate) fn app(&self, name: &str) -> String {
        let apps = self.json(&["apps"]);
        let app = apps.as_array().unwrap().iter().find(|app| app["name"] == name);
        app.unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Returns what the names of an app's containers end with: the app's own name.
    pub(crate) fn suffix(&self, app: &str) -> String {
        let name = self.names(app).swap_remove(0);
        name[name.find("ap-").unwrap()..].to_owned()
    }

    pub(crate) fn names(&self, app: &str) -> Vec<String> {
        let page = self.json(&["--app", app, "private-networks-domain-names", "--per-page", "50"]);
        page["data"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }
}

/// Lists what the kernel's data plane of a node keeps, which is nothing in user space.
pub(crate) fn kept(node: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(Path::new("/run/private-networks").join(node)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Starts an etcd and waits until it answers.
pub(crate) fn start_etcd(fleet: &Fleet, machine: &Machine) -> Running {
    let url = format!("http://{}:2379", machine.address);
    let mut etcd = machine.command("etcd");
    etcd.arg("--data-dir").arg(fleet.dir.join("etcd"));
    etcd.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--logger=zap", "--log-level=error"]);
    let running = Running::start(&mut etcd);
    wait_for("etcd answers", || {
        let health =
            machine.command("curl").args(["-sS", "--max-time", "1", &format!("{url}/health")]).output().unwrap();
        if health.stdout.starts_with(b"{\"health\":\"true\"") { Ok(()) } else { Err(text(&health.stderr)) }
    });
    running
}

#[track_caller]
pub(crate) fn etcdctl(machine: &Machine, arguments: &[&str]) -> String {
    let endpoint = format!("http://{}:2379", machine.address);
    let mut etcdctl = machine.command("etcdctl");
    succeed(etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint]).args(arguments))
}
