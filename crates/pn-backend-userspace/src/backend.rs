//! The backend: a UDP socket, a driver, and the trait that plans are applied through.

use core::fmt;
use core::net::SocketAddr;
use core::num::NonZeroUsize;
use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::{io, thread};

use async_trait::async_trait;
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{
    BackendError, Capabilities, ContainerId, Encryption, ErrorKind, KeyScope, NetworkId, NodeId, NodePlan, PublicKey,
    Report, Resolver,
};
use pn_dns::OtherNames;
use pn_overlay::{DropCounters, PeerStatus, PrivateKey, Tunnel};
use tokio::sync::oneshot;

use crate::driver::{Command, Commands, Crew, Driver, Shared};
use crate::port::Port;
use crate::resolver::Answerer;
use crate::tap::UnderlayTap;
use crate::tun::{Interface, TapPort, Tun, TunPort};
use crate::underlay::{IsShared, Underlay};

/// A node's data plane in this process, for any user.
///
/// It is made with a [`builder`](Self::builder) inside a tokio runtime. Its driver has a thread of its own, which ends when the
/// last clone of it is dropped. Each container of the plan that runs on this node is a [`Port`], with sockets in this process,
/// or has an interface in a network namespace, once one is [attached](Self::attach).
#[derive(Clone)]
pub struct UserspaceBackend {
    shared: Arc<Shared>,
    commands: Arc<Commands>,
    local_addr: SocketAddr,
    public_key: PublicKey,
    threads: NonZeroUsize,
}

/// Options of a [`UserspaceBackend`].
#[derive(Debug, Clone)]
#[must_use = "nothing runs until it is built"]
pub struct Builder {
    node: NodeId,
    listen: SocketAddr,
    private_key: Option<PrivateKey>,
    resolver: Option<Arc<dyn Resolver>>,
    other_names: Option<Arc<dyn OtherNames>>,
    tap: Option<Arc<dyn UnderlayTap>>,
    drops: Arc<DropCounters>,
    threads: NonZeroUsize,
    has_sockets: bool,
}

impl Builder {
    /// Sets the underlay address to receive on; port 0 picks one. Without it, 0.0.0.0 and a port that is picked.
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets the node's key. Without it, a new one is made.
    pub fn private_key(mut self, key: PrivateKey) -> Self {
        self.private_key = Some(key);
        self
    }

    /// Sets who answers the DNS queries that containers send to their resolver's address. Without it, nobody does.
    pub fn resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Sets who answers queries for names that are not ours. Without it, they are refused.
    pub fn other_names(mut self, other_names: Arc<dyn OtherNames>) -> Self {
        self.other_names = Some(other_names);
        self
    }

    /// Sets who sees every datagram on the underlay.
    pub fn tap(mut self, tap: Arc<dyn UnderlayTap>) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Sets where dropped packets are counted. Without it, in counters of its own.
    pub fn drops(mut self, drops: Arc<DropCounters>) -> Self {
        self.drops = drops;
        self
    }

    /// Sets how many threads carry packets. Without it, one.
    ///
    /// The kernel spreads other nodes and containers' flows over them; the order in a flow is kept. More than one is for nodes that
    /// send to several others at a time and have processors to spare: what crosses between two nodes is sealed and opened by one
    /// thread at a time. Sockets in this process stay with the first.
    pub const fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Gives containers and resolvers no sockets in this process: packets reach containers by interfaces alone, and what is for one
    /// that has none is dropped. Without it, a container that has no interface yet answers as a machine on which nobody listens.
    pub const fn without_sockets(mut self) -> Self {
        self.has_sockets = false;
        self
    }

    /// Binds the socket and starts to carry packets, none yet.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`], [`ErrorKind::Conflict`] for an address in use, and [`ErrorKind::Io`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    #[expect(clippy::unused_async, reason = "it belongs into a runtime, and other backends have to wait here")]
    pub async fn build(self) -> Result<UserspaceBackend, BackendError> {
        let random = || {
            let mut octets = [0; 32];
            getrandom::fill(&mut octets).map(|()| octets).map_err(|error| {
                BackendError::new(ErrorKind::Io, "read", "the system's random numbers").with_source(error)
            })
        };
        let private_key = match self.private_key {
            Some(key) => key,
            None => PrivateKey::from_bytes(random()?),
        };
        let seed = random()?.first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets));
        let failed = |operation, object: String, error: io::Error| {
            BackendError::new(kind(&error), operation, object).with_source(error)
        };
        let is_shared = if self.threads == NonZeroUsize::MIN { IsShared::No } else { IsShared::Yes };
        let bind = |address| {
            Underlay::bind(address, is_shared)
                .map_err(|error| failed("bind", format!("underlay address {}", self.listen), error))
        };
        let underlay = bind(self.listen)?;
        let local_addr = underlay.local_addr();
        let driver_failed = |error| failed("start", format!("the driver of {}", self.node), error);
        let new_shared = || {
            let shared = Shared::new(self.node, seed, Arc::clone(&self.drops), self.has_sockets);
            Ok(Arc::new(shared.map_err(driver_failed)?))
        };
        let shared = new_shared()?;
        let (commands, receiver) = Commands::new(Arc::clone(&shared));
        let tunnel = Tunnel::new(private_key);
        let public_key = tunnel.public_key();
        let tunnel = Arc::new(RwLock::new(tunnel));
        let other_names = self.other_names;
        let answerer = self.resolver.map(|resolver| Answerer { resolver, other_names });
        let start = |underlay, shared, receiver, crew| {
            let (tunnel, answerer, tap) = (Arc::clone(&tunnel), answerer.clone(), self.tap.clone());
            let driver = Driver::new(underlay, tunnel, answerer, tap, shared, receiver, crew).map_err(driver_failed)?;
            let thread = thread::Builder::new().name("pn-driver".to_owned());
            thread.spawn(move || driver.run()).map(drop).map_err(driver_failed)
        };
        let mut others = Vec::new();
        for _ in 1..self.threads.get() {
            let other = new_shared()?;
            let (commands, receiver) = Commands::new(Arc::clone(&other));
            start(bind(local_addr)?, other, receiver, Crew::Other(Arc::clone(&shared)))?;
            others.push(commands);
        }
        start(underlay, Arc::clone(&shared), receiver, Crew::First(others))?;
        Ok(UserspaceBackend { shared, commands: Arc::new(commands), local_addr, public_key, threads: self.threads })
    }
}

/// Makes an interface, on a thread that may change its namespace.
async fn open(port: TunPort, interface: Interface, queues: NonZeroUsize) -> io::Result<Tun> {
    let (sender, receiver) = oneshot::channel();
    let open = move || drop(sender.send(Tun::open(port, interface, queues.get())));
    thread::Builder::new().name("pn-tun".to_owned()).spawn(open)?;
    receiver.await.map_err(|_| io::Error::other("the thread that makes the interface panicked"))?
}

fn kind(error: &io::Error) -> ErrorKind {
    let kinds = [
        (io::ErrorKind::PermissionDenied, ErrorKind::PermissionDenied),
        (io::ErrorKind::AddrInUse, ErrorKind::Conflict),
        (io::ErrorKind::ResourceBusy, ErrorKind::Conflict),
        (io::ErrorKind::NotFound, ErrorKind::NotFound),
    ];
    kinds.iter().find(|(kind, _)| *kind == error.kind()).map_or(ErrorKind::Io, |(_, kind)| *kind)
}

impl UserspaceBackend {
    /// Begins to describe the backend of a node.
    pub fn builder(node: NodeId) -> Builder {
        let listen = SocketAddr::from(([0, 0, 0, 0], 0));
        let threads = NonZeroUsize::MIN;
        let (private_key, resolver, other_names, tap) = (None, None, None, None);
        let drops = Arc::default();
        Builder { node, listen, private_key, resolver, other_names, tap, drops, threads, has_sockets: true }
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

    /// Returns the port of a container that the applied plan has on this node.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where it has not, or the container has an interface: apply a plan with it first.
    pub fn port(&self, container: ContainerId) -> Result<Port, BackendError> {
        self.shared.port(container).ok_or_else(|| self.not_here("open the port of", container))
    }

    /// Gives a container of the applied plan a TUN interface, with its address, the network's MTU, and routes to the network
    /// and to its resolver. It stays over plans and goes with the container, with [`detach`](Self::detach), and with the backend.
    ///
    /// The container's kernel then has the address, so [`port`](Self::port) has no sockets of it and those that are open end. An
    /// interface that it had before is replaced. What the container sends is checked as ever.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the applied plan does not have the container on this node, or the namespace is not there;
    /// [`ErrorKind::PermissionDenied`] without the right to open `/dev/net/tun` and to enter the namespace (root, or root of
    /// the user namespace it belongs to); [`ErrorKind::Conflict`] where the namespace has an interface of that name, or a plan
    /// that moves the container was applied meanwhile.
    ///
    /// # Cancel safety
    /// Dropped, it has happened or not; asked again, it replaces what is there.
    pub async fn attach(&self, container: ContainerId, port: TunPort) -> Result<(), BackendError> {
        let operation = "attach an interface to";
        let interface = self.ask(operation, container, |reply| Command::Interface(container, reply)).await?;
        let interface = interface.ok_or_else(|| self.not_here(operation, container))?;
        let tun = open(port, interface, self.threads).await;
        let tun = tun.map_err(|error| BackendError::new(kind(&error), operation, container).with_source(error))?;
        self.ask(operation, container, |reply| Command::Attach(container, Box::new(tun), reply)).await?
    }

    /// Takes a container's interface away and gives it sockets in this process again. Returns whether it had one.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub async fn detach(&self, container: ContainerId) -> Result<bool, BackendError> {
        self.ask("detach the interface of", container, |reply| Command::Detach(container, reply)).await
    }

    /// Lists the containers that have an interface of their own. One goes with its container or network, where a plan takes that
    /// away, and when somebody deletes it: whoever attached it attaches another.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub async fn attached(&self) -> Result<BTreeSet<ContainerId>, BackendError> {
        self.ask("list the interfaces of", self.shared.node, Command::Attached).await
    }

    /// Gives a network of the applied plan a TAP interface, which the caller makes a port of a bridge: through it the
    /// containers of this node are reached that have no interface of their own, and reach the others. It has no address. It
    /// stays over plans and goes with the network, with [`detach_network`](Self::detach_network), and with the backend.
    ///
    /// Every container has the MAC address of the plan. ARP does not cross: who is behind the bridge has static neighbours for
    /// all containers of the network (and for the resolver, at [`MacAddr::of_ipv4`](pn_core::MacAddr::of_ipv4) of its address,
    /// where it is to be reached here). What frames claim is checked as ever.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    ///
    /// # Cancel safety
    /// Dropped, it has happened or not; asked again, it replaces what is there.
    pub async fn attach_network(&self, network: NetworkId, port: TapPort) -> Result<(), BackendError> {
        let operation = "attach an interface to";
        let interface = self.ask(operation, network, |reply| Command::NetworkInterface(network, reply)).await?;
        let not_here = || {
            let object = format!("{network} on {}: the applied plan does not have it there", self.shared.node);
            BackendError::new(ErrorKind::NotFound, operation, object)
        };
        let tun = open(port.0, interface.ok_or_else(not_here)?, self.threads).await;
        let tun = tun.map_err(|error| BackendError::new(kind(&error), operation, network).with_source(error))?;
        self.ask(operation, network, |reply| Command::AttachNetwork(network, Box::new(tun), reply)).await?
    }

    /// Takes a network's interface away and gives its containers sockets in this process. Returns whether it had one.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub async fn detach_network(&self, network: NetworkId) -> Result<bool, BackendError> {
        self.ask("detach the interface of", network, |reply| Command::DetachNetwork(network, reply)).await
    }

    fn not_here(&self, operation: &'static str, container: ContainerId) -> BackendError {
        let object = format!("{container} on {}: the applied plan does not have it there", self.shared.node);
        BackendError::new(ErrorKind::NotFound, operation, object)
    }

    /// Returns how many packets were dropped, and why.
    #[must_use]
    pub fn drops(&self) -> &DropCounters {
        &self.shared.drops
    }

    /// Returns what is known of each peer: where it is, and how long ago its session was agreed upon.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, BackendError> {
        self.ask("list", "peers", Command::Peers).await
    }

    async fn ask<T>(
        &self,
        operation: &'static str,
        object: impl fmt::Display,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, BackendError> {
        let (sender, receiver) = oneshot::channel();
        if !self.commands.send(command(sender)) {
            return Err(BackendError::new(ErrorKind::Closed, operation, object));
        }
        receiver.await.map_err(|_| BackendError::new(ErrorKind::Closed, operation, object))
    }
}

impl fmt::Debug for UserspaceBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserspaceBackend")
            .field("node", &self.shared.node)
            .field("local_addr", &self.local_addr)
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl OverlayBackend for UserspaceBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("userspace", &[Encryption::WireGuard], &[KeyScope::Node])
    }

    async fn apply(&self, plan: &NodePlan) -> Report {
        let generation = plan.generation;
        let object = format!("generation {generation}");
        let report = self.ask("apply", object, |reply| Command::Apply(plan.clone(), reply)).await;
        report.unwrap_or_else(|error| Report::refused(generation, error))
    }

    async fn observe(&self) -> Result<Observed, BackendError> {
        self.ask("observe", self.shared.node, Command::Observe).await
    }
}
