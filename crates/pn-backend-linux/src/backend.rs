//! The backend: the trait that plans are applied through, in front of the thread that works in namespaces.

use core::fmt;
use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use pn_backend_userspace::underlay::{IsShared, Underlay};
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{
    BackendError, Capabilities, ContainerId, Encryption, ErrorKind, Generation, KeyScope, Limits, NodeId, NodePlan,
    PublicKey, Report,
};
use pn_dns::{Names, OtherNames};
use pn_overlay::{DropCounters, PrivateKey, Tunnel};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::encryptor::Encryptor;
use crate::firewall::Nft;
use crate::memory::Memory;
use crate::netns::Namespaces;
use crate::probe::{self, Features};
use crate::tunnel::Engine;
use crate::vtep::Vtep;
use crate::wireguard::{self, WireGuard};
use crate::worker::{Command, Worker, error};

/// A node's data plane in the Linux kernel.
///
/// It is made with a [`builder`](Self::builder) inside a tokio runtime. What it has made in the kernel stays when it is dropped,
/// and the next one of the node takes it over; the empty plan takes everything down. A tunnel in user space, though, lives in
/// this process.
///
/// Each container's network namespace is handed over with [`attach`](Self::attach) before a plan that has the container is
/// applied.
#[derive(Clone)]
pub struct LinuxBackend {
    node: NodeId,
    commands: mpsc::Sender<Command>,
    local_addr: SocketAddr,
    public_key: PublicKey,
    tunnel: TunnelKind,
    drops: Arc<DropCounters>,
    limits: Limits,
}

/// Who encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// The kernel's WireGuard.
    Kernel,
    /// WireGuard in this process behind the kernel's VXLAN, on a TAP device that large packets in it cross whole: Linux 6.17 and
    /// newer.
    UserSpace,
    /// WireGuard and VXLAN in this process, behind a TAP interface on the bridge of each network: any kernel.
    UserSpaceBridged,
}

/// What the kernel counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Status {
    /// The generation that was applied last.
    pub generation: Generation,
    /// How many packets were dropped, by reason: `forged_source` for what a container sent with another's address,
    /// neighbour discovery that is not about its sender or comes from another node, and IPv6 with extension headers;
    /// `unknown_destination`, `to_the_node` for what was sent to the node itself, `forged_tunnel` for VXLAN of a node that
    /// may not send it, and `other_tunnel` for what is no VXLAN. Where VXLAN ends in this process, the latter two are counted
    /// there, by claim: [`LinuxBackend::drops`].
    pub drops: BTreeMap<String, u64>,
}

/// Options of a [`LinuxBackend`].
#[derive(Debug)]
#[must_use = "nothing runs until it is built"]
pub struct Builder {
    node: NodeId,
    listen: SocketAddr,
    private_key: Option<PrivateKey>,
    resolver: Option<Arc<Names>>,
    other_names: Option<Arc<dyn OtherNames>>,
    directory: PathBuf,
    namespace: Option<PathBuf>,
    tunnel: Option<TunnelKind>,
    nft: PathBuf,
    believed: Duration,
}

impl Builder {
    /// Sets the underlay address to receive on; port 0 picks one. Without it, 0.0.0.0 and a port that is picked. The kernel's
    /// WireGuard listens on every address of the node.
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets the node's key. Without it, a new one is made.
    pub fn private_key(mut self, key: PrivateKey) -> Self {
        self.private_key = Some(key);
        self
    }

    /// Sets the names that answer the DNS queries that containers send to their resolver's address. Without it, nobody does.
    pub fn resolver(mut self, names: Arc<Names>) -> Self {
        self.resolver = Some(names);
        self
    }

    /// Sets who answers queries for names that are not ours. Without it, they are refused.
    pub fn other_names(mut self, other_names: Arc<dyn OtherNames>) -> Self {
        self.other_names = Some(other_names);
        self
    }

    /// Sets where namespaces are kept: `/run/private-networks` unless it is set. Each node has a folder in it.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Sets the network namespace that is the node: that of the process unless it is set.
    pub fn namespace(mut self, path: impl Into<PathBuf>) -> Self {
        self.namespace = Some(path.into());
        self
    }

    /// Sets the program that packet filters are changed with: `nft`, searched in PATH, unless it is set.
    pub fn nft(mut self, program: impl Into<PathBuf>) -> Self {
        self.nft = program.into();
        self
    }

    /// Sets who encrypts: the kernel if it can, or else this process, behind bridges, unless it is set.
    pub const fn tunnel(mut self, kind: TunnelKind) -> Self {
        self.tunnel = Some(kind);
        self
    }

    /// Sets how long what was read of containers' namespaces is believed while newer plans are applied: 10 s unless it is set.
    /// Zero has every plan read them all. A plan that is applied again, and [`observe`](OverlayBackend::observe), always do.
    pub const fn believe_for(mut self, time: Duration) -> Self {
        self.believed = time;
        self
    }

    /// Starts the thread, and checks what the machine can do before anything depends on it.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without CAP_SYS_ADMIN and CAP_NET_ADMIN, [`ErrorKind::NotFound`] without `nft`,
    /// [`ErrorKind::Unsupported`] for what the kernel lacks, [`ErrorKind::Conflict`] for an address in use, and
    /// [`ErrorKind::Io`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub async fn build(self) -> Result<LinuxBackend, BackendError> {
        let runtime = Handle::current();
        let (commands, receiver) = mpsc::channel();
        let (ready, started) = oneshot::channel();
        let node = self.node;
        let thread = thread::Builder::new().name("private-network".to_owned()).spawn(move || {
            match self.start(runtime) {
                Ok((worker, handle)) => {
                    // Nobody waits for it where the future was dropped; then there is nothing to do either.
                    if ready.send(Ok(handle)).is_ok() {
                        worker.run(&receiver);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        thread.map_err(|source| error("start the thread of", format!("node {node}"), source))?;
        let closed = |_| BackendError::new(ErrorKind::Closed, "start", format!("node {node}"));
        let started = started.await.map_err(closed)??;
        let Started { local_addr, public_key, tunnel, drops, limits } = started;
        tracing::info!(
            %node, ?tunnel, containers_of_a_network = limits.bridge_ports, neighbours = limits.neighbours, "started"
        );
        Ok(LinuxBackend { node, commands, local_addr, public_key, tunnel, drops, limits })
    }

    /// Does what has to be done on the thread itself.
    fn start(self, runtime: Handle) -> Result<(Worker, Started), BackendError> {
        let object = format!("node {}", self.node);
        let directory = self.directory.join(self.node.to_string());
        let denied = |operation, source: io::Error| {
            let is = |kind| source.kind() == kind;
            let remedy = if is(io::ErrorKind::PermissionDenied) {
                NEEDED
            } else if is(io::ErrorKind::StorageFull) {
                // What `unshare` says at the limit.
                ": raise the limit, sysctl user.max_net_namespaces"
            } else if is(io::ErrorKind::InvalidInput) {
                ": the kernel has to be built with CONFIG_NET_NS"
            } else {
                ""
            };
            error(operation, format!("{object}{remedy}"), source)
        };
        let namespaces = Namespaces::new(directory, self.namespace.as_deref())
            .map_err(|source| denied("enter the network namespace of", source))?;
        let probed = namespaces.scratch(|| Ok((probe::features()?, probe::filters(self.nft)?)));
        let (features, nft): (Features, Nft) =
            probed.map_err(|source| denied("make a network namespace on", source))??;
        let private_key = match self.private_key.clone() {
            Some(key) => key,
            None => PrivateKey::from_bytes(random()?),
        };
        let public_key = private_key.public_key();
        let kind = match (self.tunnel, features.has_wireguard) {
            (None | Some(TunnelKind::Kernel), true) => TunnelKind::Kernel,
            (None, false) | (Some(TunnelKind::UserSpaceBridged), _) => TunnelKind::UserSpaceBridged,
            (Some(TunnelKind::UserSpace), _) => {
                let object = "a TAP device that packets in tunnels cross whole";
                features.whole.map_err(|source| error("make", object, source))?;
                TunnelKind::UserSpace
            }
            (Some(TunnelKind::Kernel), false) => {
                let object = format!("{object} by the kernel: it needs its module, modprobe wireguard");
                return Err(BackendError::new(ErrorKind::Unsupported, "encrypt on", object));
            }
        };
        if kind != TunnelKind::Kernel {
            features.tun.clone()?;
        }
        let bind = |source| error("bind", format!("underlay address {}", self.listen), source);
        let drops = Arc::new(DropCounters::default());
        let (local_addr, encryptor) = match kind {
            TunnelKind::Kernel => {
                // A device that an earlier process left goes on to listen where it does.
                let left =
                    wireguard::read_device(&namespaces).map_err(|source| denied("read the tunnel of", source))?;
                let left = left.map(|device| device.identity.port).filter(|port| *port != 0);
                let local_addr = match left {
                    Some(port) if [0, port].contains(&self.listen.port()) => SocketAddr::new(self.listen.ip(), port),
                    // The port is free, as the socket shows that ends here.
                    _ => std::net::UdpSocket::bind(self.listen).and_then(|socket| socket.local_addr()).map_err(bind)?,
                };
                (local_addr, Encryptor::Kernel(WireGuard::new(private_key, local_addr.port())))
            }
            TunnelKind::UserSpace => {
                let underlay = Underlay::bind(self.listen, IsShared::No).map_err(bind)?;
                let local_addr = underlay.local_addr();
                let engine = Engine::new(underlay, Tunnel::new(private_key), Arc::clone(&drops));
                (local_addr, Encryptor::UserSpace(engine))
            }
            TunnelKind::UserSpaceBridged => {
                let vtep = Vtep::start(self.node, self.listen, private_key, Arc::clone(&drops), runtime.clone())?;
                (vtep.local_addr(), Encryptor::Vtep(Box::new(vtep)))
            }
        };
        let worker = Worker {
            node: self.node,
            public_key,
            namespaces,
            encryptor,
            nft,
            resolver: self.resolver,
            other_names: self.other_names,
            runtime,
            limits: features.limits,
            applied: Generation::ZERO,
            wanted: None,
            memory: Memory::new(self.believed),
            filters: BTreeMap::new(),
            servers: BTreeMap::new(),
        };
        Ok((worker, Started { local_addr, public_key, tunnel: kind, drops, limits: features.limits }))
    }
}

/// What the thread found out when it started.
struct Started {
    local_addr: SocketAddr,
    public_key: PublicKey,
    tunnel: TunnelKind,
    drops: Arc<DropCounters>,
    limits: Limits,
}

fn random() -> Result<[u8; 32], BackendError> {
    let mut octets = [0; 32];
    getrandom::fill(&mut octets)
        .map(|()| octets)
        .map_err(|error| BackendError::new(ErrorKind::Io, "read", "the system's random numbers").with_source(error))
}

/// What to do where something is denied.
pub(crate) const NEEDED: &str = ", which needs CAP_SYS_ADMIN and CAP_NET_ADMIN";

/// How long it is believed what containers' namespaces hold, unless something else is said.
const BELIEVED: Duration = Duration::from_secs(10);

/// Where namespaces are kept unless something else is said.
const DIRECTORY: &str = "/run/private-networks";

impl LinuxBackend {
    /// Begins to describe the backend of a node.
    pub fn builder(node: NodeId) -> Builder {
        let listen = SocketAddr::from(([0, 0, 0, 0], 0));
        let directory = PathBuf::from(DIRECTORY);
        let nft = PathBuf::from("nft");
        let (private_key, resolver, other_names) = (None, None, None);
        Builder {
            node,
            listen,
            private_key,
            resolver,
            other_names,
            directory,
            namespace: None,
            tunnel: None,
            nft,
            believed: BELIEVED,
        }
    }

    /// Returns the underlay address it receives on.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns the node's public key.
    #[must_use]
    pub const fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Returns who encrypts.
    #[must_use]
    pub const fn tunnel(&self) -> TunnelKind {
        self.tunnel
    }

    /// Returns how much the kernel holds: what it said of neighbours at the start (`gc_thresh3`), and how many containers of one
    /// network its bridges have ports for, which it tells nobody (`BR_MAX_PORTS` in Linux's net/bridge/br_private.h). A
    /// network with more of them is refused.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns how many packets this process dropped, and why; of those that the kernel dropped,
    /// [`status`](Self::status) tells.
    #[must_use]
    pub fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// Hands over the network namespace of a container: a path that `ip netns`, a container engine or `/proc` has for it. It is
    /// kept until it is [detached](Self::detach), whatever becomes of the path, the process and the plan: a plan that loses a
    /// container by mistake disconnects it, and the next one connects it again.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Unsupported`] for what is no network namespace, and [`ErrorKind::Conflict`] for
    /// the node's own or that of another container.
    pub async fn attach(&self, container: ContainerId, namespace: impl AsRef<Path>) -> Result<(), BackendError> {
        let path = namespace.as_ref().to_owned();
        self.ask("attach", |reply| Command::Attach(container, path, reply)).await?
    }

    /// Lets go of the network namespace of a container: when the container has ended, and its plan has gone.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]. One that was not attached is no fault.
    pub async fn detach(&self, container: ContainerId) -> Result<(), BackendError> {
        self.ask("detach", |reply| Command::Detach(container, reply)).await?
    }

    /// Lists the containers whose namespaces are kept.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and [`ErrorKind::Closed`].
    pub async fn attached(&self) -> Result<BTreeSet<ContainerId>, BackendError> {
        self.ask("list the containers of", Command::Attached).await?
    }

    /// Reads what the kernel counted.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and [`ErrorKind::Closed`].
    pub async fn status(&self) -> Result<Status, BackendError> {
        self.ask("read the status of", Command::Status).await?
    }

    /// Applies a plan as far as a number of steps, as a crash would: for tests.
    #[doc(hidden)]
    pub async fn apply_steps(&self, plan: &NodePlan, steps: usize) -> Report {
        let report = self.ask("apply", |reply| Command::Apply(plan.clone(), Some(steps), reply)).await;
        report.unwrap_or_else(|error| Report::refused(plan.generation, error))
    }

    async fn ask<T>(
        &self,
        operation: &'static str,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, BackendError> {
        let (sender, receiver) = oneshot::channel();
        let closed = || BackendError::new(ErrorKind::Closed, operation, format!("node {}", self.node));
        self.commands.send(command(sender)).map_err(|_| closed())?;
        receiver.await.map_err(|_| closed())
    }
}

impl fmt::Debug for LinuxBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxBackend")
            .field("node", &self.node)
            .field("local_addr", &self.local_addr)
            .field("public_key", &self.public_key)
            .field("tunnel", &self.tunnel)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl OverlayBackend for LinuxBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("linux", &[Encryption::WireGuard], &[KeyScope::Node])
    }

    async fn apply(&self, plan: &NodePlan) -> Report {
        let report = self.ask("apply", |reply| Command::Apply(plan.clone(), None, reply)).await;
        report.unwrap_or_else(|error| Report::refused(plan.generation, error))
    }

    async fn observe(&self) -> Result<Observed, BackendError> {
        self.ask("observe", Command::Observe).await?
    }
}
