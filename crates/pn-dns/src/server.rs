//! A name server on UDP and TCP for one network.

use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use pn_core::{BackendError, ErrorKind, NetworkId, Resolver, Transport};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// A name server for one network, on one address, over UDP and TCP.
///
/// Whatever arrives at its sockets comes from its network: the sender's address, which says nothing, is not looked at. The
/// resolver may change what it answers at any time; sockets and connections stay.
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
    network: NetworkId,
    address: SocketAddr,
    /// Dropped to stop the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl DnsServer {
    /// Prepares a server for a network.
    pub fn builder(network: NetworkId, resolver: Arc<dyn Resolver>) -> DnsServerBuilder {
        let service = Service { network, resolver, idle_timeout: IDLE_TIMEOUT, max_connections: MAX_CONNECTIONS };
        DnsServerBuilder { service }
    }

    /// Returns the network it answers for.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Returns the address it listens on, the same for UDP and TCP.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes its sockets and every connection, and returns when they are closed.
    pub async fn shutdown(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(network = %self.network, %error, "the name server had failed");
        }
    }
}

/// What a [`DnsServer`] is made from.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing before it binds"]
pub struct DnsServerBuilder {
    service: Service,
}

impl DnsServerBuilder {
    /// Sets how long a connection may take for its next query or for reading a reply: 10 s where nothing is said.
    pub const fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.service.idle_timeout = idle_timeout;
        self
    }

    /// Sets how many connections are open at most: 256 where nothing is said. One more is closed at once.
    pub const fn max_connections(mut self, max_connections: usize) -> Self {
        self.service.max_connections = max_connections;
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
        let (udp, tcp) = bind_both(address).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(self.start(address, udp, tcp))
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
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((tcp.local_addr()?, UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
        };
        let sockets = take().map_err(|source: io::Error| {
            BackendError::new(ErrorKind::Io, "use", "the sockets of a name server").with_source(source)
        });
        sockets.map(|(address, udp, tcp)| self.start(address, udp, tcp))
    }

    fn start(self, address: SocketAddr, udp: UdpSocket, tcp: TcpListener) -> DnsServer {
        let (stop, stopped) = oneshot::channel();
        let network = self.service.network;
        let task = tokio::spawn(self.service.run(udp, tcp, stopped));
        tracing::info!(%network, %address, "answering DNS");
        DnsServer { network, address, stop, task }
    }
}

/// Opens both sockets on one port.
async fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        let tcp = TcpListener::bind(address).await?;
        attempts -= 1;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            // Somebody else has the port for UDP: another one will do.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
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

/// What the tasks of a server share.
#[derive(Debug, Clone)]
struct Service {
    network: NetworkId,
    resolver: Arc<dyn Resolver>,
    idle_timeout: Duration,
    max_connections: usize,
}

impl Service {
    async fn run(self, udp: UdpSocket, tcp: TcpListener, stopped: oneshot::Receiver<()>) {
        let mut connections = JoinSet::new();
        tokio::select! {
            // It never gets a value: it ends when the server drops the other end.
            _ = stopped => {}
            () = self.serve_udp(&udp) => {}
            () = self.accept(&tcp, &mut connections) => {}
        }
        drop((udp, tcp));
        connections.shutdown().await;
    }

    async fn serve_udp(&self, socket: &UdpSocket) {
        let mut query = vec![0; MAX_MESSAGE];
        loop {
            let (len, client) = match socket.recv_from(&mut query).await {
                Ok(received) => received,
                Err(error) => {
                    self.pause("receive", &error).await;
                    continue;
                }
            };
            let Some(reply) = self.resolver.resolve(self.network, Transport::Udp, &query[..len]) else {
                continue;
            };
            if let Err(error) = socket.send_to(&reply, client).await {
                tracing::debug!(network = %self.network, %client, %error, "cannot send a DNS reply");
            }
        }
    }

    async fn accept(&self, listener: &TcpListener, connections: &mut JoinSet<()>) {
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) if connections.len() < self.max_connections => {
                    connections.spawn(self.clone().serve_connection(stream));
                }
                Ok((_, client)) => {
                    tracing::debug!(network = %self.network, %client, "too many DNS connections, closing this one");
                }
                Err(error) => self.pause("accept", &error).await,
            }
        }
    }

    async fn serve_connection(self, stream: TcpStream) {
        // Replies are written whole, so waiting for more to send only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(network = %self.network, %error, "cannot send DNS replies without delay");
        }
        // An error or a silence of the client ends the connection, and there is nobody to tell.
        let _: io::Result<()> = serve_stream(stream, self.network, &*self.resolver, self.idle_timeout).await;
    }

    /// Waits a little after an error of a socket, so that one that stays costs no processor time.
    async fn pause(&self, operation: &'static str, error: &io::Error) {
        tracing::warn!(network = %self.network, operation, %error, "a DNS socket failed");
        sleep(ERROR_PAUSE).await;
    }
}

/// Answers the queries of one connection of a network, each with its length before it (RFC 7766 §8), until the client closes
/// it. A query that gets no reply is passed over.
///
/// Connections come from anywhere: a socket, or a stack in this process.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] where the client takes longer than `idle` for its next query or for reading a reply, and the
/// stream's own.
///
/// # Panics
/// Outside a tokio runtime with time enabled.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    network: NetworkId,
    resolver: &dyn Resolver,
    idle: Duration,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut query = Vec::new();
    while timeout(idle, read_message(&mut stream, &mut query)).await?? {
        if let Some(reply) = resolver.resolve(network, Transport::Tcp, &query) {
            timeout(idle, write_message(stream.get_mut(), &reply)).await??;
        }
    }
    Ok(())
}

/// Reads a message, and returns whether there was one before the stream ended.
async fn read_message<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, message: &mut Vec<u8>) -> io::Result<bool> {
    if stream.fill_buf().await?.is_empty() {
        return Ok(false);
    }
    let len = stream.read_u16().await?;
    message.resize(usize::from(len), 0);
    stream.read_exact(message).await?;
    Ok(true)
}

/// Writes a message in one piece.
async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}

/// How long a connection may be idle where nothing else is said.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections may be open where nothing else is said.
const MAX_CONNECTIONS: usize = 256;

/// The longest DNS message, in octets.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// How many ports are tried for one that is free for UDP and TCP.
const PORT_ATTEMPTS: u32 = 16;

/// How long a socket rests after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
