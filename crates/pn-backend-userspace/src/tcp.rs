//! TCP in a container: listeners and streams.

use core::fmt;
use core::net::SocketAddr;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;
use std::sync::Arc;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, State};
use smoltcp::wire::IpEndpoint;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::port::PortInner;

/// Accepts TCP connections to a port of a container.
///
/// Dropping it closes the port and resets connections that were not accepted.
pub struct TcpListener {
    port: Arc<PortInner>,
    local: SocketAddr,
    changed: Arc<Notify>,
}

impl TcpListener {
    pub(crate) fn new(inner: Arc<PortInner>, port: u16) -> io::Result<Self> {
        let mut stack = inner.lock();
        let (port, changed) = stack.listen(port)?;
        let local = SocketAddr::from((stack.addresses().v4, port));
        drop(stack);
        Ok(Self { port: inner, local, changed })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] once the container or the backend is gone.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let changed = self.changed.notified();
            let accepted = self.port.lock().accept(self.local.port())?;
            if let Some(handle) = accepted {
                // Others may wait too, and a permit is one for all that came before.
                self.changed.notify_one();
                let stream = TcpStream { port: Arc::clone(&self.port), handle, is_shut_down: false };
                let Ok(peer) = stream.peer_addr() else {
                    // It was reset before anybody looked.
                    continue;
                };
                return Ok((stream, peer));
            }
            changed.await;
        }
    }

    /// Returns the IPv4 address it listens on. Where the container has an IPv6 address, it listens there, too, on the same port.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.port.lock().unlisten(self.local.port());
        self.port.wake();
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("local_addr", &self.local).finish_non_exhaustive()
    }
}

/// A TCP connection of a container.
///
/// Reading ends with 0 octets once the other side has closed, and with [`io::ErrorKind::ConnectionReset`] where it broke
/// off, or [`io::ErrorKind::TimedOut`] where it has been silent for 180 s though it was asked for a sign of life. Dropping the
/// stream sends what was written, and closes.
pub struct TcpStream {
    port: Arc<PortInner>,
    handle: SocketHandle,
    is_shut_down: bool,
}

impl TcpStream {
    pub(crate) async fn connect(port: Arc<PortInner>, to: SocketAddr) -> io::Result<Self> {
        let handle = port.lock().connect(to)?;
        // From here on dropping the attempt gives the socket back.
        let stream = Self { port, handle, is_shut_down: false };
        stream.port.wake();
        core::future::poll_fn(|context| stream.poll_connected(context, to)).await?;
        Ok(stream)
    }

    fn poll_connected(&self, context: &Context<'_>, to: SocketAddr) -> Poll<io::Result<()>> {
        let mut stack = self.port.lock();
        match stack.connected(self.handle) {
            None => {
                stack.tcp(self.handle).register_send_waker(context.waker());
                Poll::Pending
            }
            Some(Ok(())) => Poll::Ready(Ok(())),
            Some(Err(kind)) => {
                stack.check_open()?;
                Poll::Ready(Err(io::Error::new(kind, format!("cannot connect to {to}: {kind}"))))
            }
        }
    }

    /// Returns the address of this side.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] once the connection has ended.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint(Socket::local_endpoint)
    }

    /// Returns the address of the other side.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] once the connection has ended.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint(Socket::remote_endpoint)
    }

    fn endpoint(&self, of: impl FnOnce(&Socket<'static>) -> Option<IpEndpoint>) -> io::Result<SocketAddr> {
        let endpoint = of(self.port.lock().tcp(self.handle)).ok_or(io::ErrorKind::NotConnected)?;
        Ok(SocketAddr::new(endpoint.addr.into(), endpoint.port))
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stack = self.port.lock();
        if let Some(rest) = stack.rest(self.handle) {
            let len = io::Read::read(rest, buffer.initialize_unfilled())?;
            buffer.advance(len);
            return Poll::Ready(Ok(()));
        }
        let socket = stack.tcp(self.handle);
        let window_was_small = socket.recv_queue() * 2 > socket.recv_capacity();
        let received = socket.recv(|octets| {
            let len = octets.len().min(buffer.remaining());
            buffer.put_slice(&octets[..len]);
            (len, len)
        });
        match received {
            Ok(0) if buffer.remaining() > 0 => {
                socket.register_recv_waker(context.waker());
                Poll::Pending
            }
            Ok(_) => {
                drop(stack);
                if window_was_small {
                    // The other side may be waiting to hear that there is room again.
                    self.port.wake();
                }
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => Poll::Ready(Err(stack.broken(self.handle))),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let mut stack = self.port.lock();
        let socket = stack.tcp(self.handle);
        match socket.send_slice(octets) {
            Ok(0) if !octets.is_empty() => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            Ok(written) => {
                drop(stack);
                self.port.wake();
                Poll::Ready(Ok(written))
            }
            Err(_) => {
                let is_broken = !self.is_shut_down && socket.state() == State::Closed;
                Poll::Ready(Err(if is_broken { stack.broken(self.handle) } else { io::ErrorKind::BrokenPipe.into() }))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // As with the kernel's sockets, what was written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down = true;
        self.port.lock().tcp(self.handle).close();
        self.port.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.port.lock().release(self.handle);
        self.port.wake();
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("local_addr", &self.local_addr().ok())
            .field("peer_addr", &self.peer_addr().ok())
            .finish()
    }
}
