//! An etcd of a test's own, in a directory and on ports of its own.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Node, NodeId, Project, ProjectId,
    PublicKey, Slot, Terms, Timestamp,
};
use pn_store::{Registry, Revision};
use tempfile::TempDir;

/// A running etcd; it ends with this.
pub(crate) struct Etcd {
    process: Child,
    pub(crate) dir: TempDir,
    pub(crate) client: SocketAddr,
    peer: SocketAddr,
    arguments: Vec<String>,
}

impl Etcd {
    /// Starts one; `None`, and a word about it, where there is no etcd here and none is required.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new()).await
    }

    /// Starts one with more arguments, which may name files in its directory.
    pub(crate) async fn start_with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        if !is_here() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("store-etcd-").tempdir().unwrap();
        let arguments = arguments(dir.path());
        let (client, peer) = free_ports();
        let process = spawn(dir.path(), client, peer, &arguments);
        let mut etcd = Self { process, dir, client, peer, arguments };
        let begun = Instant::now();
        while !etcd.answers() {
            assert!(begun.elapsed() < Duration::from_secs(60), "etcd does not answer");
            if etcd.process.try_wait().unwrap().is_some() {
                // Somebody else was faster on a port.
                (etcd.client, etcd.peer) = free_ports();
                std::fs::remove_dir_all(etcd.dir.path().join("data")).ok();
                etcd.process = spawn(etcd.dir.path(), etcd.client, etcd.peer, &etcd.arguments);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(etcd)
    }

    /// Starts three that are one cluster.
    pub(crate) async fn start_cluster() -> Option<[Self; 3]> {
        if !is_here() {
            return None;
        }
        let ports = [free_ports(), free_ports(), free_ports()];
        let named = ports.iter().enumerate().map(|(n, (_, peer))| format!("member{n}=http://{peer}"));
        let cluster = named.collect::<Vec<_>>().join(",");
        let mut number = 0;
        let mut members = ports.map(|(client, peer)| {
            let dir = tempfile::Builder::new().prefix("store-etcd-").tempdir().unwrap();
            // Of an argument that is given twice, the last counts.
            let arguments = vec![format!("--name=member{number}"), format!("--initial-cluster={cluster}")];
            number += 1;
            let process = spawn(dir.path(), client, peer, &arguments);
            Self { process, dir, client, peer, arguments }
        });
        for member in &mut members {
            member.until_it_answers().await;
        }
        Some(members)
    }

    async fn until_it_answers(&mut self) {
        let begun = Instant::now();
        while !self.answers() {
            assert!(begun.elapsed() < Duration::from_secs(60), "etcd does not answer");
            assert!(self.process.try_wait().unwrap().is_none(), "etcd has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The address of a store in it.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.client)
    }

    /// Ends it at once, as a machine that fails does.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends it a signal, as `kill` names it.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Starts it again, with what it had.
    pub(crate) async fn restart(&mut self) {
        self.process = spawn(self.dir.path(), self.client, self.peer, &self.arguments);
        self.until_it_answers().await;
    }

    /// Runs `etcdctl`, an eye of its own.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let scheme = if self.is_tls() { "https" } else { "http" };
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([format!("--endpoints={scheme}://{}", self.client)])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Reads what it counts.
    pub(crate) fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.client).unwrap();
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Saves what it has, and returns the file.
    pub(crate) fn save(&self) -> PathBuf {
        let snapshot = self.dir.path().join("snapshot.db");
        self.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
        snapshot
    }

    /// Ends it, and starts it again with what it had when a file was saved.
    pub(crate) async fn go_back_to(&mut self, snapshot: &Path) {
        self.kill();
        let data = self.dir.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let peer = format!("http://{}", self.peer);
        let mut command = Command::new("etcdctl");
        let command = command.env("ETCDCTL_API", "3").args(["snapshot", "restore", "--name=default"]).arg(snapshot);
        let command = command.arg(format!("--initial-cluster=default={peer}"));
        let command = command.arg(format!("--initial-advertise-peer-urls={peer}")).arg("--data-dir").arg(data);
        assert!(command.output().unwrap().status.success());
        self.restart().await;
    }

    fn is_tls(&self) -> bool {
        self.arguments.iter().any(|argument| argument.starts_with("--cert-file"))
    }

    fn answers(&self) -> bool {
        // With TLS a connection has to do: there is no client certificate here.
        if self.is_tls() {
            return TcpStream::connect(self.client).is_ok();
        }
        let endpoint = format!("--endpoints=http://{}", self.client);
        let mut command = Command::new("etcdctl");
        let command = command.env("ETCDCTL_API", "3").args([&endpoint, "--command-timeout=1s", "endpoint", "status"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Makes a node's record.
pub(crate) fn node(n: u8) -> Node {
    let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
    Node::new(NodeId::from_u128(n.into()), "n".parse().unwrap(), underlay, tunnel, PublicKey::new([n; 32]))
}

/// Makes a network with an app of up to 100 containers.
pub(crate) async fn make_network(registry: &Registry) {
    let (project, app) = (ProjectId::from_u128(1), AppId::from_u128(1));
    let text = || "x".parse().unwrap();
    let terms = Terms { accepted_by: text(), version: text(), accepted_at: Timestamp::ZERO };
    for change in [
        Change::AddProject(Project::new(project, text())),
        Change::EnablePrivateNetwork(NetworkRequest::new(project, NetworkId::from_u128(1), terms)),
        Change::AddApp(App::new(app, project, text())),
        Change::Scale { app, formation: "web:100".parse().unwrap() },
    ] {
        registry.apply(change).await.unwrap();
    }
}

/// Starts a container on a node, ready at once.
pub(crate) async fn start(registry: &Registry, n: u32, on: u8) -> Revision {
    let slot = Slot::new(AppId::from_u128(1), ContainerType::web(), n).unwrap();
    let container = ContainerId::from_u128(n.into());
    registry.apply(Change::Start { container, slot, node: NodeId::from_u128(on.into()) }).await.unwrap();
    registry.apply(Change::Ready(container)).await.unwrap().revision()
}

/// Says whether there is an etcd; where one must be, it is a failure that there is none.
fn is_here() -> bool {
    let status = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    if let Err(error) = &status {
        assert_ne!(std::env::var("PN_REQUIRE_ROOT").as_deref(), Ok("1"), "etcd is required here: {error}");
        println!("ignored: there is no etcd here ({error}); Debian has it as etcd-server");
    }
    status.is_ok()
}

fn free_ports() -> (SocketAddr, SocketAddr) {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, two) = (bind(), bind());
    (one.local_addr().unwrap(), two.local_addr().unwrap())
}

fn spawn(dir: &Path, client: SocketAddr, peer: SocketAddr, arguments: &[String]) -> Child {
    let scheme = if arguments.iter().any(|argument| argument.starts_with("--cert-file")) { "https" } else { "http" };
    Command::new("etcd")
        .arg(format!("--data-dir={}", dir.join("data").display()))
        .arg(format!("--listen-client-urls={scheme}://{client}"))
        .arg(format!("--advertise-client-urls={scheme}://{client}"))
        .arg(format!("--listen-peer-urls=http://{peer}"))
        .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
        .arg(format!("--initial-cluster=default=http://{peer}"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
