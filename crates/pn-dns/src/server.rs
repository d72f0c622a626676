//! A name server on UDP and TCP for one network.

mod limit;
mod tcp;
mod turn;
mod udp;

use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroUsize;
use core::time::Duration;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, thread};

use pn_core::{BackendError, ErrorKind, NetworkId};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinError, JoinHandle};

use self::limit::Limiter;
pub use self::limit::RateLimit;
use self::tcp::Connections;
pub use self::tcp::serve_stream;
use self::udp::Workers;
use crate::answer::View;
use crate::cookie::{Cookies, Secret};
use crate::counts::{Counters, Counts};
use crate::names::{Freshness, Names, Published};
use crate::other_names::{OtherNames, Transfers};

/// A name server for one network, on one address, over UDP and TCP.
///
/// Whatever arrives at its sockets comes from its network: the sender's address, which says nothing, is not looked at. The
/// names may change at any time; sockets and connections stay.
///
/// UDP is answered by threads of its own, one for each processor, each with a socket of its own on the one port
/// (`SO_REUSEPORT`); TCP by tasks of the runtime.
///
/// Bind it to the address that clients ask: from the unspecified address, replies may leave with another source.
///
/// When it is dropped it closes its sockets and connections as soon as the runtime gets to it; [`shutdown`](Self::shutdown)
/// waits for that.
///
/// ```
/// use std::sync::Arc;
///
/// use pn_core::NetworkId;
/// use pn_dns::{DnsServer, Names};
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let names = Arc::new(Names::new(1));
/// let server = DnsServer::builder(NetworkId::from_u128(1), names).bind("127.0.0.1:0".parse()?).await?;
/// assert_ne!(server.local_addr().port(), 0);
/// server.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping a server stops it"]
pub struct DnsServer {
    service: Arc<Service>,
    address: SocketAddr,
    /// Dropped to stop the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl DnsServer {
    /// Prepares a server for a network.
    pub fn builder(network: NetworkId, names: Arc<Names>) -> DnsServerBuilder {
        DnsServerBuilder { service: Service::new(network, names), workers: None }
    }

    /// Returns the network it answers for.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.service.network
    }

    /// Returns the address it listens on, the same for UDP and TCP.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns what became of the queries it got.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.service.counters.read()
    }

    /// Closes its sockets and every connection, and returns when they are closed.
    pub async fn shutdown(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(network = %self.service.network, %error, "the name server had failed");
        }
    }
}

/// What a [`DnsServer`] is made from.
#[derive(Debug)]
#[must_use = "a builder does nothing before it binds"]
pub struct DnsServerBuilder {
    service: Service,
    workers: Option<NonZeroUsize>,
}

impl DnsServerBuilder {
    /// Sets how long a connection may take for its next query or for reading a reply: 10 s where nothing is said.
    pub const fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.service.idle_timeout = idle_timeout;
        self
    }

    /// Sets how many connections are open at most: 256 where nothing is said. For one more, the one that has asked nothing
    /// for the longest time is closed.
    pub const fn max_connections(mut self, max_connections: usize) -> Self {
        self.service.max_connections = max_connections;
        self
    }

    /// Sets how many threads answer UDP: as many as there are processors where nothing is said.
    pub const fn workers(mut self, workers: NonZeroUsize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets who is asked for names of other zones. They are refused where nobody is.
    pub fn other_names(mut self, other_names: Arc<dyn OtherNames>) -> Self {
        self.service.other_names = Some(other_names);
        self
    }

    /// Sets who hands zones to secondaries. Transfers are refused where nobody does.
    pub fn transfers(mut self, transfers: Arc<dyn Transfers>) -> Self {
        self.service.transfers = Some(transfers);
        self
    }

    /// Sets what the server calls itself to those who ask (NSID, RFC 5001): at most 128 octets of it.
    pub fn nsid(mut self, nsid: &[u8]) -> Self {
        self.service.nsid = Some(nsid.iter().copied().take(MAX_NSID).collect());
        self
    }

    /// Sets the secrets of cookies (RFC 7873): they are made with the first and checked with all. Servers behind one address
    /// have the same. Cookies are passed over where none is set.
    pub fn cookie_secrets(mut self, secrets: &[Secret]) -> Self {
        self.service.secrets = secrets.into();
        self
    }

    /// Limits the replies that one client gets over UDP. Nothing is limited where nothing is said.
    pub fn limit(mut self, limit: RateLimit) -> Self {
        self.service.limiter = Some(Limiter::new(limit, self.service.names.seed()));
        self
    }

    /// Opens the sockets and starts to answer. Port 0 means any port that is free for UDP and TCP.
    ///
    /// # Errors
    /// A [`BackendError`] that names the address.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    ///
    /// # Cancel safety
    /// When it is dropped, nothing stays open.
    pub async fn bind(self, address: SocketAddr) -> Result<DnsServer, BackendError> {
        let failed = |source| bind_error(address, source);
        let workers = self.workers.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let (sockets, tcp) = bind_both(address, workers).await.map_err(failed)?;
        self.start(sockets, tcp)
    }

    /// Starts to answer on sockets that are bound already, in another network namespace for example. Both have one address.
    ///
    /// # Errors
    /// A [`BackendError`] where the sockets cannot be used.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub fn serve(self, udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> Result<DnsServer, BackendError> {
        let take = || {
            udp.set_nonblocking(false)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, TcpListener::from_std(tcp)?))
        };
        let sockets = take().map_err(|source: io::Error| {
            BackendError::new(ErrorKind::Io, "use", "the sockets of a name server").with_source(source)
        });
        sockets.and_then(|(udp, tcp)| self.start(vec![udp], tcp))
    }

    fn start(self, sockets: Vec<std::net::UdpSocket>, tcp: TcpListener) -> Result<DnsServer, BackendError> {
        let used = |source| BackendError::new(ErrorKind::Io, "use", "the sockets of a name server").with_source(source);
        let address = tcp.local_addr().map_err(used)?;
        let service = Arc::new(self.service);
        let workers = Workers::start(&service, sockets).map_err(used)?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(Arc::clone(&service), workers, tcp, stopped));
        tracing::info!(network = %service.network, %address, "answering DNS");
        Ok(DnsServer { service, address, stop, task })
    }
}

/// Answers until it is stopped, and then closes everything.
async fn run(service: Arc<Service>, workers: Workers, tcp: TcpListener, stopped: oneshot::Receiver<()>) {
    let mut connections = Connections::default();
    tokio::select! {
        // It never gets a value: it ends when the server drops the other end.
        _ = stopped => {}
        () = connections.accept(&service, &tcp) => {}
    }
    drop(tcp);
    connections.shutdown().await;
    workers.stop();
    // Threads end as soon as they are woken.
    let _: Result<(), JoinError> = tokio::task::spawn_blocking(|| workers.join()).await;
}

/// Opens a listener, and on its port so many UDP sockets.
async fn bind_both(address: SocketAddr, workers: usize) -> io::Result<(Vec<std::net::UdpSocket>, TcpListener)> {
    let mut attempts = if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        let tcp = TcpListener::bind(address).await?;
        attempts -= 1;
        let address = tcp.local_addr()?;
        match (0..workers).map(|_| udp::bind(address, workers > 1)).collect() {
            Ok(sockets) => return Ok((sockets, tcp)),
            // Somebody else has the port for UDP: another one will do.
            Err(error) if io::Error::kind(&error) == io::ErrorKind::AddrInUse && attempts > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn bind_error(address: SocketAddr, source: io::Error) -> BackendError {
    let kind = if source.kind() == io::ErrorKind::PermissionDenied {
        ErrorKind::PermissionDenied
    } else if source.kind() == io::ErrorKind::AddrInUse {
        ErrorKind::Conflict
    } else {
        ErrorKind::Io
    };
    BackendError::new(kind, "bind", format_args!("address {address}")).with_source(source)
}

/// What the threads and tasks of a server share.
#[derive(Debug)]
struct Service {
    network: NetworkId,
    names: Arc<Names>,
    other_names: Option<Arc<dyn OtherNames>>,
    transfers: Option<Arc<dyn Transfers>>,
    nsid: Option<Box<[u8]>>,
    secrets: Box<[Secret]>,
    limiter: Option<Limiter>,
    idle_timeout: Duration,
    max_connections: usize,
    /// One permit for each question that somebody else is asked at a time.
    asking: Arc<Semaphore>,
    counters: Counters,
}

impl Service {
    fn new(network: NetworkId, names: Arc<Names>) -> Self {
        Self {
            network,
            names,
            other_names: None,
            transfers: None,
            nsid: None,
            secrets: Box::default(),
            limiter: None,
            idle_timeout: IDLE_TIMEOUT,
            max_connections: MAX_CONNECTIONS,
            asking: Arc::new(Semaphore::new(MAX_ASKING)),
            counters: Counters::default(),
        }
    }

    /// Returns what a client of the network sees.
    fn view<'a>(&'a self, published: &'a Published, freshness: Freshness, client: IpAddr, now: u32) -> View<'a> {
        let cookies = self.cookies(client, now);
        View { nsid: self.nsid.as_deref(), cookies, ..published.view(self.network, freshness) }
    }

    /// Returns what the cookies of a client are made of.
    fn cookies(&self, client: IpAddr, now: u32) -> Option<Cookies<'_>> {
        let client = client.to_canonical();
        (!self.secrets.is_empty()).then_some(Cookies { secrets: &self.secrets, client, now })
    }
}

/// Returns the seconds since 1970, in a circle.
fn unix_time() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

/// How long a connection may be idle where nothing else is said.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections may be open where nothing else is said.
const MAX_CONNECTIONS: usize = 256;

/// How many questions others are asked at a time.
const MAX_ASKING: usize = 1024;

/// The longest identifier, in octets, so that it fits with everything else.
const MAX_NSID: usize = 128;

/// How many ports are tried for one that is free for UDP and TCP.
const PORT_ATTEMPTS: u32 = 16;

/// How long a socket rests after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
