//! UDP in a container.

use core::fmt;
use core::net::SocketAddr;
use std::io;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::port::PortInner;

/// A UDP socket of a container, for datagrams of up to 65 507 octets, or 65 527 by IPv6.
///
/// Those above the network's MTU travel in fragments. As everywhere, datagrams may be lost, and one that a receiver has no
/// room for is.
pub struct UdpSocket {
    port: Arc<PortInner>,
    local: SocketAddr,
    changed: Arc<Notify>,
}

impl UdpSocket {
    pub(crate) fn new(inner: Arc<PortInner>, port: u16) -> io::Result<Self> {
        let mut stack = inner.lock();
        let (port, changed) = stack.bind_udp(port)?;
        let local = SocketAddr::from((stack.addresses().v4, port));
        drop(stack);
        Ok(Self { port: inner, local, changed })
    }

    /// Sends a datagram and returns its length. Waits while the container sends faster than its packets leave.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a datagram that is too large, [`io::ErrorKind::HostUnreachable`] for an IPv6 address in
    /// a network that has none, [`io::ErrorKind::NotConnected`] once the container or the backend is gone.
    ///
    /// # Cancel safety
    /// The datagram is sent whole or not at all.
    pub async fn send_to(&self, payload: &[u8], to: impl Into<SocketAddr>) -> io::Result<usize> {
        let to = to.into();
        loop {
            let sent = self.port.lock().send_udp(self.local.port(), to, payload)?;
            self.port.wake();
            if sent {
                return Ok(payload.len());
            }
            tokio::task::yield_now().await;
        }
    }

    /// Receives a datagram: its length, and where it came from. What does not fit into the buffer is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] once the container or the backend is gone.
    ///
    /// # Cancel safety
    /// No datagram is lost.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let changed = self.changed.notified();
            let received = self.port.lock().receive_udp(self.local.port(), buffer)?;
            if let Some(received) = received {
                return Ok(received);
            }
            changed.await;
        }
    }

    /// Returns the IPv4 address it is bound to. Where the container has an IPv6 address, it is bound to that, too.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.port.lock().unbind_udp(self.local.port());
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("local_addr", &self.local).finish_non_exhaustive()
    }
}
