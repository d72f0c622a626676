//! Connections whose owner is gone.

use core::time::Duration;
use std::collections::VecDeque;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, State};

/// How many say goodbye at a time; beyond that the oldest is reset.
const MAX_ORPHANS: usize = 1024;

/// How long one that has said everything waits for the other side's goodbye, as long as Linux (`tcp_fin_timeout`).
const FIN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long one that still has something to say waits for the other side to take any of it.
const SEND_TIMEOUT: Duration = Duration::from_secs(180);

/// The connections that end by themselves. Nothing keeps one for ever, whatever the other side does.
#[derive(Debug, Default)]
pub(super) struct Orphans(VecDeque<Orphan>);

#[derive(Debug)]
struct Orphan {
    handle: SocketHandle,
    /// How it was last seen to come forward, and when: its state, and the octets that the other side has not taken.
    seen: Option<(State, usize, Duration)>,
}

impl Orphans {
    pub(super) fn push(&mut self, handle: SocketHandle) {
        self.0.push_back(Orphan { handle, seen: None });
    }

    pub(super) fn contains(&self, handle: SocketHandle) -> bool {
        self.0.iter().any(|orphan| orphan.handle == handle)
    }

    /// Resets those that came to nothing, and returns when to look again.
    pub(super) fn give_up(&mut self, sockets: &mut SocketSet<'_>, now: Duration) -> Option<Duration> {
        let excess = self.0.len().saturating_sub(MAX_ORPHANS);
        let mut next = None;
        for (n, orphan) in self.0.iter_mut().enumerate() {
            let socket = sockets.get_mut::<Socket<'_>>(orphan.handle);
            if !socket.is_open() {
                continue;
            }
            let (state, left) = (socket.state(), socket.send_queue());
            let since = match orphan.seen {
                Some((seen, before, since)) if (seen, before) == (state, left) => since,
                _ => now,
            };
            orphan.seen = Some((state, left, since));
            let deadline = since + if state == State::FinWait2 { FIN_TIMEOUT } else { SEND_TIMEOUT };
            // Nobody will read what arrives: a reset says so (RFC 9293 §3.6.1).
            if n < excess || socket.recv_queue() > 0 || now >= deadline {
                socket.abort();
            } else {
                next = next.into_iter().chain([deadline]).min();
            }
        }
        next
    }

    /// Frees those that have ended.
    pub(super) fn bury(&mut self, sockets: &mut SocketSet<'_>) {
        self.0.retain(|orphan| {
            let socket = sockets.get::<Socket<'_>>(orphan.handle);
            // An aborted socket keeps its addresses until its reset is sent.
            let gone = !socket.is_open() && (socket.state() == State::TimeWait || socket.local_endpoint().is_none());
            if gone {
                sockets.remove(orphan.handle);
            }
            !gone
        });
    }
}
