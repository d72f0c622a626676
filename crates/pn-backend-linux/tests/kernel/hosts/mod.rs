//! Hosts and containers as network namespaces, on one Ethernet; and the commands that look at them with other eyes than ours.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail where something is missing, and say what they leave out"
)]

pub(crate) mod netns;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pn_backend_linux::{Builder, LinuxBackend, TunnelKind};
use pn_backend_userspace::UserspaceBackend;
use pn_core::*;
use pn_dns::Names;
use pn_overlay::PrivateKey;

pub(crate) use netns::{Netns, directory, eventually, is_root, run, sh};

/// A data plane, in the kernel or in this process.
#[derive(Debug)]
pub(crate) enum Plane {
    Linux(LinuxBackend),
    UserSpace(UserspaceBackend),
}

/// A node.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) netns: Netns,
    pub(crate) plane: Plane,
    pub(crate) names: Arc<Names>,
    pub(crate) directory: PathBuf,
}

impl Host {
    pub(crate) fn linux(&self) -> &LinuxBackend {
        match &self.plane {
            Plane::Linux(backend) => backend,
            Plane::UserSpace(_) => panic!("a node in user space"),
        }
    }

    /// Returns whether VXLAN is the kernel's, which has a namespace for its sockets.
    pub(crate) fn has_transport(&self) -> bool {
        self.linux().tunnel() != TunnelKind::UserSpaceBridged
    }

    /// Runs a command line in one of the namespaces that the backend keeps.
    pub(crate) fn sh_in(&self, place: &str, line: &str) -> String {
        sh(&self.line_in(place, line))
    }

    pub(crate) fn line_in(&self, place: &str, line: &str) -> String {
        let path = self.directory.join(self.id.to_string()).join(place);
        format!("nsenter --net={} sh -c '{}'", path.display(), line.replace('\'', r"'\''"))
    }
}

/// Some hosts on one Ethernet, the state they follow, and containers.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) state: State,
    pub(crate) hosts: Vec<Host>,
    pub(crate) containers: BTreeMap<ContainerId, Netns>,
    families: Families,
    next: u128,
    switch: Netns,
}

pub(crate) fn network(n: u128) -> NetworkId {
    NetworkId::from_u128(n)
}

pub(crate) fn app(n: u128) -> AppId {
    AppId::from_u128(n)
}

pub(crate) fn container(n: u128) -> ContainerId {
    ContainerId::from_u128(n)
}

/// Of which families the addresses of nodes are: on the underlay, and in the tunnel. IPv4 both, unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Families {
    pub(crate) is_underlay_ipv6: bool,
    pub(crate) is_tunnel_ipv6: bool,
}

impl Families {
    pub(crate) fn underlay(self, n: u8) -> SocketAddr {
        let address: IpAddr =
            if self.is_underlay_ipv6 { [0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()].into() } else { [192, 0, 2, n].into() };
        SocketAddr::from((address, 51820))
    }

    pub(crate) fn tunnel(self, n: u8) -> IpAddr {
        if self.is_tunnel_ipv6 { [0xfd64, 0, 0, 0, 0, 0, 0, n.into()].into() } else { [100, 64, 0, n].into() }
    }

    /// What a node is made of besides its data plane.
    pub(crate) fn node(self, n: u8, key: PublicKey) -> Node {
        let label = format!("node-{n}").parse().unwrap();
        Node::new(NodeId::from_u128(n.into()), label, self.underlay(n), self.tunnel(n), key)
    }
}

fn builder(node: &Node, key: PrivateKey, names: &Arc<Names>, directory: &Path, netns: &Netns) -> Builder {
    let builder = LinuxBackend::builder(node.id).listen(node.underlay).private_key(key).resolver(Arc::clone(names));
    with_tunnel(builder.directory(directory).namespace(netns.path()))
}

/// Has a data plane encrypt as this machine does by itself, or, where `PN_TUNNEL=vxlan` asks for it, in this process behind the
/// kernel's VXLAN.
pub(crate) fn with_tunnel(builder: Builder) -> Builder {
    match std::env::var("PN_TUNNEL").as_deref() {
        Ok("vxlan") => builder.tunnel(TunnelKind::UserSpace),
        Ok(other) => panic!("PN_TUNNEL={other}: it is vxlan, or is not set"),
        Err(_) => builder,
    }
}

/// A node whose addresses are of IPv4.
pub(crate) fn node(n: u8, key: PublicKey) -> Node {
    Families::default().node(n, key)
}

impl Region {
    /// Starts nodes in the kernel, and networks 1 and 2 that have the same addresses.
    pub(crate) async fn start(nodes: u8) -> Self {
        Self::start_with(nodes, |_, builder| builder).await
    }

    pub(crate) async fn start_with(nodes: u8, edit: impl Fn(u8, Builder) -> Builder) -> Self {
        Self::start_over(Families::default(), nodes, edit).await
    }

    pub(crate) async fn start_over(families: Families, nodes: u8, edit: impl Fn(u8, Builder) -> Builder) -> Self {
        let switch = Netns::new("switch");
        switch.sh("ip link add br0 type bridge && ip link set br0 up");
        let state = State::new(pn_core::Region::default());
        let (hosts, containers) = (Vec::new(), BTreeMap::new());
        let mut region = Self { state, families, hosts, containers, next: 0, switch };
        for n in 1..=nodes {
            let netns = region.plug(n);
            let names = Arc::new(Names::new(n.into()));
            let key = PrivateKey::from_bytes([n; 32]);
            let directory = directory();
            let node = families.node(n, key.public_key());
            let backend = edit(n, builder(&node, key, &names, &directory, &netns)).build().await.unwrap();
            region.change(Change::AddNode(node.clone()));
            region.hosts.push(Host { id: node.id, netns, plane: Plane::Linux(backend), names, directory });
        }
        for n in [1, 2] {
            region.add_network(n, |_| ());
        }
        region
    }

    /// Ends the data plane of a node (from 1) and starts another with a key, as an agent that is started anew does.
    pub(crate) async fn restart(&mut self, node: usize, key: PrivateKey) {
        let kind = self.hosts[node - 1].linux().tunnel();
        self.restart_as(node, key, kind).await;
    }

    /// Does the same, and another encrypts.
    pub(crate) async fn restart_as(&mut self, node: usize, key: PrivateKey, kind: TunnelKind) {
        let known = self.state.node(self.hosts[node - 1].id).unwrap().clone();
        let Host { id, netns, plane, names, directory } = self.hosts.remove(node - 1);
        let Plane::Linux(before) = plane else { panic!("a node in user space") };
        drop(before);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let backend = loop {
            // The socket of a tunnel in this process ends as soon as its thread gets to it.
            match builder(&known, key.clone(), &names, &directory, &netns).tunnel(kind).build().await {
                Ok(backend) => break backend,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{}", explain(&error)),
            }
        };
        self.hosts.insert(node - 1, Host { id, netns, plane: Plane::Linux(backend), names, directory });
    }

    /// Makes the namespace of a host and plugs it into the Ethernet.
    pub(crate) fn plug(&self, n: u8) -> Netns {
        let netns = Netns::new(&format!("host{n}"));
        let switch = &self.switch.0;
        sh(&format!(
            "ip -n {switch} link add h{n} type veth peer name eth0 netns {host} && ip -n {switch} link set h{n} mtu 9000 master br0 up \
             && ip -n {host} addr add 192.0.2.{n}/24 dev eth0 && ip -n {host} addr add 2001:db8::{n:x}/64 dev eth0 nodad \
             && ip -n {host} link set eth0 up",
            host = netns.0
        ));
        netns
    }

    /// Adds a node in user space.
    pub(crate) fn add_user_space_node(&mut self, n: u8) {
        let netns = self.plug(n);
        let (names, key) = (Arc::new(Names::new(n.into())), PrivateKey::from_bytes([n; 32]));
        let node = self.families.node(n, key.public_key());
        let id = node.id;
        let builder = UserspaceBackend::builder(id).listen(node.underlay).private_key(key);
        let builder = builder.resolver(names.clone());
        let (path, runtime) = (netns.path(), tokio::runtime::Handle::current());
        // Its socket stays in the namespace of the thread that opens it.
        let thread = std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            runtime.block_on(builder.build())
        });
        let backend = thread.join().unwrap().unwrap();
        self.change(Change::AddNode(node));
        self.hosts.push(Host { id, netns, plane: Plane::UserSpace(backend), names, directory: directory() });
    }

    pub(crate) fn switch(&self) -> &Netns {
        &self.switch
    }

    pub(crate) fn add_network(&mut self, n: u128, edit: impl FnOnce(&mut NetworkRequest)) {
        let project = ProjectId::from_u128(n);
        let label = || "test".parse().unwrap();
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        let mut request = NetworkRequest::new(project, network(n), terms);
        edit(&mut request);
        self.change(Change::AddProject(Project::new(project, label())));
        self.change(Change::EnablePrivateNetwork(request));
        self.change(Change::AddApp(App::new(app(n), project, label())));
        self.change(Change::Scale { app: app(n), formation: "web:3000".parse().unwrap() });
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.state.apply(Timestamp::ZERO, change).unwrap();
    }

    /// Starts a ready container of an app on a node (from 1), in a namespace of its own.
    pub(crate) async fn add(&mut self, app_number: u128, node: usize) -> ContainerId {
        let container = self.add_unattached(app_number, node);
        let netns = Netns::new(&format!("ct{}", self.next));
        if let Plane::Linux(backend) = &self.hosts[node - 1].plane {
            backend.attach(container, netns.path()).await.unwrap();
        }
        self.containers.insert(container, netns);
        container
    }

    pub(crate) fn add_unattached(&mut self, app_number: u128, node: usize) -> ContainerId {
        self.next += 1;
        let container = container(self.next);
        let slot = Slot::new(app(app_number), "web".parse().unwrap(), self.next as u32).unwrap();
        self.change(Change::Start { container, slot, node: self.hosts[node - 1].id });
        self.change(Change::Ready(container));
        container
    }

    /// Makes every node what the state says, names last.
    pub(crate) async fn apply(&self) {
        for host in &self.hosts {
            let plan = self.state.node_plan(host.id);
            let report = match &host.plane {
                Plane::Linux(backend) => backend.apply(&plan).await,
                Plane::UserSpace(backend) => backend.apply(&plan).await,
            };
            let failures: Vec<String> = report.failures().map(explain).collect();
            assert!(failures.is_empty(), "{failures:#?}");
        }
        for host in &self.hosts {
            let plan = self.state.node_plan(host.id);
            host.names.publish(&plan.zones()).await.into_result().unwrap();
        }
    }

    pub(crate) fn address(&self, container: ContainerId) -> std::net::Ipv4Addr {
        self.state.container(container).unwrap().address
    }

    pub(crate) fn netns(&self, container: ContainerId) -> &Netns {
        &self.containers[&container]
    }

    /// Takes every node down.
    pub(crate) async fn tear_down(&self) {
        for host in &self.hosts {
            if let Plane::Linux(backend) = &host.plane {
                let empty = NodePlan::empty(host.id, Generation::new(u64::MAX));
                backend.apply(&empty).await.into_result().unwrap();
                for container in backend.attached().await.unwrap() {
                    backend.detach(container).await.unwrap();
                }
            }
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for host in &self.hosts {
            // What a test that failed left behind.
            run(&format!("umount -q {0}/*/* ; rm -rf {0}", host.directory.display()));
        }
    }
}

/// Says an error with its causes.
pub(crate) fn explain(error: &BackendError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
