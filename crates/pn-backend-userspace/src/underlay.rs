//! The node's UDP socket, in batches: what every data plane without the kernel's WireGuard sends and receives with.

use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

use pn_overlay::{DropCounters, DropReason, Outbox, Run};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

pub use crate::sys::Received;
use crate::sys::{self, MAX_MESSAGES};

/// What the kernel is asked to buffer in each direction. Only root gets more than `net.core.rmem_max`.
const SOCKET_BUFFER: usize = 8 << 20;

/// Datagrams that one system call sends: what every kernel with `UDP_SEGMENT` takes, and the most octets UDP carries.
const MAX_SEGMENTS: usize = 64;
pub(crate) const MAX_OCTETS: usize = 65_507;

/// The longest message the kernel hands over.
const MESSAGE: usize = 65_536;

/// Messages that are received at a time where they are large, so that they stay in the processor's cache until they are
/// opened.
const LARGE_MESSAGES: usize = 2;

/// How long a full socket is waited for. Then a batch is given up: the network is slower than we are, and who sends must hear
/// of it.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whether several sockets have one address, among which the kernel spreads what arrives, by sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsShared {
    /// It is alone.
    No,
    /// There are others.
    Yes,
}

/// A UDP socket that sends and receives batches: many datagrams of one destination as one message (`UDP_SEGMENT`, `UDP_GRO`), and
/// many messages with one system call. It does not wait for what arrives, and for room to send 100 ms at most; nothing that it sends is
/// fragmented.
///
/// ```
/// use pn_backend_userspace::underlay::{IsShared, Underlay};
/// use pn_overlay::{DropCounters, Outbox};
///
/// let mut a = Underlay::bind("127.0.0.1:0".parse().unwrap(), IsShared::No)?;
/// let mut b = Underlay::bind("127.0.0.1:0".parse().unwrap(), IsShared::No)?;
/// a.send(&mut Outbox::new(), &DropCounters::default());
/// assert_eq!(b.receive()?, (0, false));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Underlay {
    socket: UdpSocket,
    local_addr: SocketAddr,
    buffer: Box<[u8]>,
    received: [Received; MAX_MESSAGES],
    /// Whether the last messages were many datagrams each.
    is_large: bool,
    /// Whether the kernel cuts for us.
    has_segmentation: bool,
    /// How many messages the socket had not taken when that was counted last.
    not_taken: u32,
}

impl Underlay {
    /// Binds a socket; `is_shared` lets others of this user have the same address.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn bind(address: SocketAddr, is_shared: IsShared) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if is_shared == IsShared::Yes {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        // By force where we may.
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
            socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        }
        if sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
            socket.set_send_buffer_size(SOCKET_BUFFER)?;
        }
        socket.bind(&address.into())?;
        let socket = UdpSocket::from(socket);
        let local_addr = socket.local_addr()?;
        sys::forbid_fragments(socket.as_fd(), local_addr.is_ipv4())?;
        // Without it datagrams arrive one by one.
        let _: io::Result<()> = sys::enable_gro(socket.as_fd());
        let nothing = Received { from: local_addr, len: 0, segment: 0 };
        Ok(Self {
            socket,
            local_addr,
            buffer: vec![0; MAX_MESSAGES * MESSAGE].into_boxed_slice(),
            received: [nothing; MAX_MESSAGES],
            is_large: false,
            has_segmentation: true,
            not_taken: 0,
        })
    }

    /// Returns the address it is bound to.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Receives messages and returns how many there are, and whether there may be more.
    ///
    /// # Errors
    /// What some earlier datagram caused, as an ICMP message said: the next call goes on.
    pub fn receive(&mut self) -> io::Result<(usize, bool)> {
        let room = if self.is_large { LARGE_MESSAGES } else { MAX_MESSAGES };
        let (received, buffer) = (&mut self.received[..room], &mut self.buffer[..room * MESSAGE]);
        let count = match sys::receive(self.socket.as_fd(), buffer, received) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, false)),
            Err(error) => return Err(error),
        };
        let octets: usize = received[..count].iter().map(|message| message.len).sum();
        self.is_large = octets > count * (MESSAGE / 4);
        Ok((count, count == room))
    }

    /// Returns a message that the last call received.
    ///
    /// # Panics
    /// Where there were not so many.
    #[must_use]
    pub fn message(&self, n: usize) -> (Received, &[u8]) {
        let received = self.received[n];
        (received, &self.buffer[n * MESSAGE..n * MESSAGE + received.len])
    }

    /// Counts what the socket did not take since this was called last ([`DropReason::NotReceived`]): a system call, for once in a while.
    pub fn count_not_received(&mut self, drops: &DropCounters) {
        // A kernel that does not say it counts nothing.
        let not_taken = sys::not_taken(self.socket.as_fd()).unwrap_or(self.not_taken);
        drops.add(DropReason::NotReceived, not_taken.wrapping_sub(self.not_taken).into());
        self.not_taken = not_taken;
    }

    /// Sends what waits and empties the outbox. What cannot be sent is counted.
    pub fn send(&mut self, outbox: &mut Outbox, drops: &DropCounters) {
        let Self { socket, has_segmentation, .. } = self;
        let lose = |run: &Run<'_>, error: io::Error| {
            tracing::debug!(to = %run.to, %error, "datagrams were not sent");
            let count = run.octets.len().div_ceil(run.size.max(1)).max(1);
            drops.add(DropReason::SendFailed, count as u64);
        };
        let segments = if *has_segmentation { MAX_SEGMENTS } else { 1 };
        send_runs(socket, outbox.runs(segments, MAX_OCTETS), |run, error| {
            if run.octets.len() <= run.size || !is_about_segments(&error) {
                return lose(run, error);
            }
            // Where the device cannot, it never can; other errors may be this path's alone.
            *has_segmentation = error.raw_os_error() != Some(libc::EIO);
            let datagrams = run.octets.chunks(run.size);
            send_runs(socket, datagrams.map(|octets| Run { to: run.to, octets, size: octets.len() }), lose);
        });
        outbox.clear();
    }
}

/// Sends runs, as many with a system call as it takes; `fail` is given those that cannot be sent.
fn send_runs<'a>(
    socket: &UdpSocket,
    mut runs: impl Iterator<Item = Run<'a>> + Clone,
    mut fail: impl FnMut(&Run<'a>, io::Error),
) {
    loop {
        match sys::send(socket.as_fd(), runs.clone()) {
            Ok(0) => return,
            Ok(sent) => drop(runs.nth(sent - 1)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_writable(socket) => {}
            Err(error) => {
                if let Some(run) = runs.next() {
                    fail(&run, error);
                }
            }
        }
    }
}

/// Waits for room in a socket's queue.
fn is_writable(socket: &UdpSocket) -> bool {
    let mut writable = [PollFd::new(socket, PollFlags::OUT)];
    let patience = Timespec { tv_sec: 0, tv_nsec: PATIENCE.subsec_nanos().into() };
    poll(&mut writable, Some(&patience)).is_ok_and(|count| count > 0)
}

/// Tells whether the kernel or the network device refuses to cut.
fn is_about_segments(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
    )
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_socket_has_no_room_for_is_counted_once() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (mut from, mut to) =
            (Underlay::bind(any, IsShared::No).unwrap(), Underlay::bind(any, IsShared::No).unwrap());
        socket2::SockRef::from(&to.socket).set_recv_buffer_size(0).unwrap();
        let (drops, mut outbox, mut sent) = (DropCounters::default(), Outbox::new(), 0);
        to.count_not_received(&drops);
        assert_eq!(drops.get(DropReason::NotReceived), 0);
        for _ in 0..100 {
            // One message each, of which the smallest buffer holds a few.
            outbox.append(to.local_addr(), 1, |_| Ok::<_, ()>(Some(1))).unwrap();
            from.send(&mut outbox, &drops);
            sent += 1;
        }
        let received = (0..).map_while(|_| to.receive().ok().filter(|(count, _)| *count > 0)).map(|(count, _)| count);
        let received = received.sum::<usize>() as u64;
        (0..2).for_each(|_| to.count_not_received(&drops));
        assert_eq!(received + drops.get(DropReason::NotReceived), sent);
        assert!((1..sent).contains(&received), "{received} of {sent} arrived");
    }
}
