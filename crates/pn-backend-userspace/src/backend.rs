//! The backend: a UDP socket, a driver, and the trait that plans are applied through.

use core::fmt;
use core::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use pn_core::backend::{Observed, OverlayBackend};
use pn_core::{
    BackendError, Capabilities, ContainerId, Encryption, ErrorKind, KeyScope, NodeId, NodePlan, PublicKey, Report,
    Resolver,
};
use pn_overlay::{DropCounters, PeerStatus, PrivateKey, Tunnel};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Command, Driver, Shared};
use crate::port::Port;
use crate::tap::UnderlayTap;

/// What the kernel is asked to buffer for the underlay socket, in each direction; it may give less.
const SOCKET_BUFFER: usize = 4 << 20;

/// A node's data plane in this process, for any user.
///
/// It is made with a [`builder`](Self::builder) inside a tokio runtime, where its driver runs until the last clone of it is
/// dropped. Each container of the plan that runs on this node is a [`Port`].
#[derive(Clone)]
pub struct UserspaceBackend {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    local_addr: SocketAddr,
    public_key: PublicKey,
}

/// Options of a [`UserspaceBackend`].
#[derive(Debug)]
#[must_use = "nothing runs until it is built"]
pub struct Builder {
    node: NodeId,
    listen: SocketAddr,
    private_key: Option<PrivateKey>,
    resolver: Option<Arc<dyn Resolver>>,
    tap: Option<Arc<dyn UnderlayTap>>,
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

    /// Sets who sees every datagram on the underlay.
    pub fn tap(mut self, tap: Arc<dyn UnderlayTap>) -> Self {
        self.tap = Some(tap);
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
        let bound = bind(self.listen).map_err(|error| {
            let kinds = [
                (std::io::ErrorKind::PermissionDenied, ErrorKind::PermissionDenied),
                (std::io::ErrorKind::AddrInUse, ErrorKind::Conflict),
            ];
            let kind = kinds.iter().find(|(kind, _)| *kind == error.kind()).map_or(ErrorKind::Io, |(_, kind)| *kind);
            BackendError::new(kind, "bind", format!("underlay address {}", self.listen)).with_source(error)
        })?;
        let (socket, local_addr) = bound;
        let shared = Arc::new(Shared::new(self.node, seed));
        let (commands, receiver) = mpsc::unbounded_channel();
        let tunnel = Tunnel::new(private_key);
        let public_key = tunnel.public_key();
        let driver = Driver::new(socket, tunnel, self.resolver, self.tap, Arc::clone(&shared), receiver);
        tokio::spawn(driver.run());
        Ok(UserspaceBackend { shared, commands, local_addr, public_key })
    }
}

fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&address.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let local_addr = socket.local_addr()?;
    Ok((socket, local_addr))
}

impl UserspaceBackend {
    /// Begins to describe the backend of a node.
    pub fn builder(node: NodeId) -> Builder {
        let listen = SocketAddr::from(([0, 0, 0, 0], 0));
        Builder { node, listen, private_key: None, resolver: None, tap: None }
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
    /// [`ErrorKind::NotFound`] where it has not: apply a plan with it first.
    pub fn port(&self, container: ContainerId) -> Result<Port, BackendError> {
        self.shared.port(container).ok_or_else(|| {
            let object = format!("{container} on {}: the applied plan does not have it there", self.shared.node);
            BackendError::new(ErrorKind::NotFound, "open the port of", object)
        })
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
        let closed = |_| BackendError::new(ErrorKind::Closed, operation, object);
        match self.commands.send(command(sender)) {
            Ok(()) => receiver.await.map_err(|_| closed(())),
            Err(_) => Err(closed(())),
        }
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
