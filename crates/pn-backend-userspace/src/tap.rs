//! Watching what crosses the underlay.

use core::fmt;
use core::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

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

/// A tap that keeps every datagram in memory, without bound: for tests and demonstrations.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<(Direction, Vec<u8>)>>);

impl Recorder {
    /// Returns the datagrams that crossed so far, in order, each as often as somebody saw it.
    #[must_use]
    pub fn datagrams(&self) -> Vec<(Direction, Vec<u8>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl UnderlayTap for Recorder {
    fn datagram(&self, direction: Direction, _: SocketAddr, datagram: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((direction, datagram.to_vec()));
    }
}
