//! Watching what crosses the underlay.

use core::fmt;
use core::net::SocketAddr;

/// Which way a datagram went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// This node sent it.
    Sent,
    /// This node received it.
    Received,
}

/// Sees every datagram of a node's underlay socket, for captures and tests.
///
/// It is called in the data path: what it does is paid by every packet.
pub trait UnderlayTap: fmt::Debug + Send + Sync {
    /// Sees a datagram and the other node's address.
    fn datagram(&self, direction: Direction, peer: SocketAddr, datagram: &[u8]);
}
