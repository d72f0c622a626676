//! A container's place in its network: where its sockets are made.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pn_core::{ContainerId, NetworkId};
use pn_dns::stub;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::driver::Shared;
use crate::netstack::{Addresses, Netstack};
use crate::tcp::{TcpListener, TcpStream};
use crate::udp::UdpSocket;

/// How long one DNS query waits for its answer, and how often it is asked.
const DNS_TIMEOUT: Duration = Duration::from_secs(1);
const DNS_ATTEMPTS: u32 = 3;

/// How long each of several addresses is tried.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The port DNS servers listen on.
pub(crate) const DNS_PORT: u16 = 53;

/// A container's sockets, in this process and without privileges.
///
/// TCP and UDP on any port from 1 to 65 535; what is sent crosses the container's network and no other. The types implement
/// tokio's traits, so libraries such as hyper run on them unchanged.
///
/// Cheap to clone, and keeps nothing alive: the container belongs to the plan, and the data plane to its
/// [`UserspaceBackend`](crate::UserspaceBackend). Every socket fails with [`io::ErrorKind::NotConnected`] once a plan without
/// the container is applied, and once the last clone of the backend is dropped, whoever still holds ports.
#[derive(Clone)]
pub struct Port(pub(crate) Arc<PortInner>);

pub(crate) struct PortInner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) owner: Owner,
    pub(crate) network: NetworkId,
    pub(crate) addresses: Addresses,
    pub(crate) resolver: Ipv4Addr,
    stack: Mutex<Netstack>,
    /// Whether it waits to be polled already.
    pub(crate) is_queued: AtomicBool,
}

/// Whose sockets a stack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Container(ContainerId),
    /// The network's resolver on this node.
    Resolver(NetworkId),
}

/// What a connection is made to: an address, or a name and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// An address of the network and a port.
    Address(SocketAddr),
    /// `NAME:PORT` or `ADDRESS:PORT`, the address in brackets where it is one of IPv6.
    Text(String),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<SocketAddrV4> for Target {
    fn from(address: SocketAddrV4) -> Self {
        Self::Address(address.into())
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Target {
    fn from(address: (I, u16)) -> Self {
        Self::Address(address.into())
    }
}

impl From<&str> for Target {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The name cannot be asked for.
    #[error("{name:?} is not a domain name")]
    Name {
        /// The name.
        name: String,
    },
    /// The network has no such name (NXDOMAIN).
    #[error("{name} does not exist in this network")]
    NoSuchName {
        /// The name.
        name: String,
    },
    /// The name exists and has no address now, as one of a type without containers (NODATA).
    #[error("{name} has no address now: no container with that name is ready")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// The resolver refused or failed.
    #[error("the resolver answered {name} with rcode {rcode}")]
    Failed {
        /// The name.
        name: String,
        /// The DNS response code: 2 SERVFAIL, 5 REFUSED.
        rcode: u16,
    },
    /// Nobody answered, or not in a way that can be understood.
    #[error("the resolver did not answer {name}")]
    NoAnswer {
        /// The name.
        name: String,
        /// What went wrong last.
        source: io::Error,
    },
}

impl From<ResolveError> for io::Error {
    fn from(error: ResolveError) -> Self {
        let kind = match &error {
            ResolveError::Name { .. } => io::ErrorKind::InvalidInput,
            ResolveError::NoSuchName { .. } | ResolveError::NoAddress { .. } => io::ErrorKind::NotFound,
            ResolveError::Failed { .. } => io::ErrorKind::Other,
            ResolveError::NoAnswer { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("owner", &self.0.owner)
            .field("network", &self.0.network)
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl Port {
    /// Returns the container's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.0.addresses.v4
    }

    /// Returns the container's IPv6 address, if its network has any.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.0.addresses.v6
    }

    /// Returns the container's network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.0.network
    }

    /// Listens for TCP connections on a port of every address the container has; 0 picks one.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`], and [`io::ErrorKind::NotConnected`] once the container or the backend is gone.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::new(Arc::clone(&self.0), port)
    }

    /// Opens a UDP socket on a port of every address the container has; 0 picks one.
    ///
    /// # Errors
    /// As [`listen`](Self::listen).
    pub fn bind_udp(&self, port: u16) -> io::Result<UdpSocket> {
        UdpSocket::new(Arc::clone(&self.0), port)
    }

    /// Connects to an address, or to a name, which the network's resolver is asked for and whose addresses are tried in the
    /// order of its answer: for 10 s each, or 60 s where there is one.
    ///
    /// # Errors
    /// That of the last address: [`io::ErrorKind::ConnectionRefused`], [`io::ErrorKind::HostUnreachable`] where the network has no such address,
    /// [`io::ErrorKind::TimedOut`], those of [`ResolveError`], and those of [`listen`](Self::listen).
    ///
    /// # Cancel safety
    /// A dropped attempt leaves no connection behind.
    pub async fn connect(&self, target: impl Into<Target>) -> io::Result<TcpStream> {
        let (addresses, port) = match target.into() {
            Target::Address(to) => (vec![to.ip()], to.port()),
            Target::Text(text) => match text.parse::<SocketAddr>() {
                Ok(to) => (vec![to.ip()], to.port()),
                Err(_) => {
                    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is not HOST:PORT"));
                    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
                    let port = port.parse().map_err(|_| bad())?;
                    (self.resolve(host).await?.into_iter().map(IpAddr::from).collect(), port)
                }
            },
        };
        // One that is alone has the time of every connection.
        let patience = if addresses.len() > 1 { ATTEMPT_TIMEOUT } else { Duration::MAX };
        let mut last = None;
        for address in addresses {
            let attempt = TcpStream::connect(Arc::clone(&self.0), SocketAddr::new(address, port));
            match timeout(patience, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = Some(error),
                Err(elapsed) => last = Some(elapsed.into()),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    /// Asks the network's resolver for the IPv4 addresses of a name, which every container has: a real query over UDP, and TCP where the answer is cut.
    ///
    /// # Errors
    /// Why there is no address.
    pub async fn resolve(&self, name: &str) -> Result<Vec<Ipv4Addr>, ResolveError> {
        let owned = || name.to_owned();
        let id = self.0.shared.random_id();
        let query = stub::query(name, id).map_err(|_| ResolveError::Name { name: owned() })?;
        let reply = self.ask(&query, id, name).await;
        match reply.map_err(|source| ResolveError::NoAnswer { name: owned(), source })? {
            stub::Reply::Addresses(addresses) | stub::Reply::Truncated(addresses) => Ok(addresses),
            stub::Reply::NxDomain => Err(ResolveError::NoSuchName { name: owned() }),
            stub::Reply::NoData => Err(ResolveError::NoAddress { name: owned() }),
            stub::Reply::Failed(rcode) => Err(ResolveError::Failed { name: owned(), rcode }),
        }
    }

    async fn ask(&self, query: &[u8], id: u16, name: &str) -> io::Result<stub::Reply> {
        let server = SocketAddr::from((self.0.resolver, DNS_PORT));
        let socket = self.bind_udp(0)?;
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        let mut buffer = vec![0; usize::from(u16::MAX)];
        for _ in 0..DNS_ATTEMPTS {
            socket.send_to(query, server).await?;
            let answer = timeout(DNS_TIMEOUT, async {
                loop {
                    let (len, from) = socket.recv_from(&mut buffer).await?;
                    // What is not the answer to this question may come late, or from somebody who guesses.
                    if from == server
                        && let Ok(reply) = stub::addresses(id, name, &buffer[..len])
                    {
                        return Ok::<_, io::Error>(reply);
                    }
                }
            });
            match answer.await {
                Ok(Ok(stub::Reply::Truncated(_))) => return self.ask_over_tcp(query, id, name).await,
                Ok(answer) => return answer,
                Err(elapsed) => last = elapsed.into(),
            }
        }
        Err(last)
    }

    async fn ask_over_tcp(&self, query: &[u8], id: u16, name: &str) -> io::Result<stub::Reply> {
        let server = SocketAddr::from((self.0.resolver, DNS_PORT));
        let exchange = async {
            let mut stream = TcpStream::connect(Arc::clone(&self.0), server).await?;
            let len = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            stream.write_all(&[&len.to_be_bytes()[..], query].concat()).await?;
            let len = stream.read_u16().await?;
            let mut reply = vec![0; len.into()];
            stream.read_exact(&mut reply).await?;
            stub::addresses(id, name, &reply).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        timeout(DNS_TIMEOUT * DNS_ATTEMPTS, exchange).await?
    }

    /// Sends an IP packet as the container's kernel would put it on the wire, whatever it says: for probes and tests.
    ///
    /// It is checked like every other packet of the container.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where the container sends faster than its packets leave, and
    /// [`io::ErrorKind::NotConnected`] once the container or the backend is gone.
    pub fn send_raw(&self, packet: &[u8]) -> io::Result<()> {
        let sent = self.0.lock().send_raw(packet)?;
        self.0.wake();
        if sent { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl PortInner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        owner: Owner,
        network: NetworkId,
        resolver: Ipv4Addr,
        stack: Netstack,
    ) -> Self {
        let (addresses, stack, is_queued) = (stack.addresses(), Mutex::new(stack), AtomicBool::new(false));
        Self { shared, owner, network, addresses, resolver, stack, is_queued }
    }

    /// Returns the stack; nothing that holds it waits for anything.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Netstack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the stack polled soon.
    pub(crate) fn wake(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            self.shared.enqueue(Arc::clone(self));
        }
    }
}
