//! Watching what crosses the underlay.

use core::fmt;
use core::net::SocketAddr;
use std::collections::HashSet;
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

    /// Looks through what crossed so far: for what nodes sent that is no WireGuard message, and for pieces of bodies.
    #[must_use]
    pub fn inspect<'a>(&self, bodies: impl IntoIterator<Item = &'a [u8]>) -> Inspection {
        let pieces: HashSet<&[u8]> = bodies.into_iter().flat_map(|body| body.windows(PIECE)).collect();
        let mut found = Inspection { pieces: pieces.len(), ..Inspection::default() };
        for (direction, datagram) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            found.in_clear += usize::from(datagram.windows(PIECE).any(|window| pieces.contains(window)));
            if *direction == Direction::Sent {
                found.sent += 1;
                found.foreign += usize::from(!is_wireguard(datagram));
            }
        }
        found
    }
}

/// What a [`Recorder`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Inspection {
    /// Datagrams that nodes sent.
    pub sent: usize,
    /// Those of them that are no WireGuard messages.
    pub foreign: usize,
    /// Datagrams, sent or received, that hold a piece of a body as it is.
    pub in_clear: usize,
    /// Different pieces of 16 octets that were looked for.
    pub pieces: usize,
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, foreign, in_clear, pieces } = self;
        write!(
            f,
            "{sent} datagrams sent, {foreign} of them not WireGuard; {in_clear} hold one of {pieces} pieces in clear"
        )
    }
}

/// Pieces of this many octets are not alike by chance.
const PIECE: usize = 16;

/// Tells by type, reserved octets and length (the WireGuard paper, §5.4).
fn is_wireguard(datagram: &[u8]) -> bool {
    match datagram {
        [1, 0, 0, 0, ..] => datagram.len() == 148,
        [2, 0, 0, 0, ..] => datagram.len() == 92,
        [3, 0, 0, 0, ..] => datagram.len() == 64,
        [4, 0, 0, 0, ..] => datagram.len() >= 32,
        _ => false,
    }
}

impl UnderlayTap for Recorder {
    fn datagram(&self, direction: Direction, _: SocketAddr, datagram: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((direction, datagram.to_vec()));
    }
}
