//! The node's UDP socket, in batches.

use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

use pn_overlay::{DropCounters, DropReason, Outbox, Run};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sys::{self, MAX_MESSAGES, Received};

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

pub(crate) struct Underlay {
    socket: UdpSocket,
    local_addr: SocketAddr,
    buffer: Box<[u8]>,
    received: [Received; MAX_MESSAGES],
    /// Whether the last messages were many datagrams each.
    is_large: bool,
    /// Whether the kernel cuts for us.
    has_segmentation: bool,
}

impl Underlay {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
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
        })
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Receives messages and returns how many there are, and whether there may be more.
    pub(crate) fn receive(&mut self) -> io::Result<(usize, bool)> {
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

    /// Returns a message that was received.
    pub(crate) fn message(&self, n: usize) -> (Received, &[u8]) {
        let received = self.received[n];
        (received, &self.buffer[n * MESSAGE..n * MESSAGE + received.len])
    }

    /// Sends what waits and empties the outbox. What cannot be sent is counted.
    pub(crate) fn send(&mut self, outbox: &mut Outbox, drops: &DropCounters) {
        for run in outbox.runs(MAX_SEGMENTS, MAX_OCTETS) {
            let to = SockAddr::from(run.to);
            if run.octets.len() <= run.size || self.has_segmentation {
                match self.send_run(&to, &run) {
                    Ok(()) => continue,
                    Err(error) if run.octets.len() > run.size && is_about_segments(&error) => {
                        // Where the device cannot, it never can; other errors may be this path's alone.
                        self.has_segmentation = error.raw_os_error() != Some(libc::EIO);
                    }
                    Err(error) => {
                        let count = run.octets.len().div_ceil(run.size.max(1));
                        tracing::debug!(to = %run.to, %error, "datagrams were not sent");
                        (0..count).for_each(|_| drops.count(DropReason::SendFailed));
                        continue;
                    }
                }
            }
            for octets in run.octets.chunks(run.size) {
                if let Err(error) = self.send_run(&to, &Run { to: run.to, octets, size: octets.len() }) {
                    tracing::debug!(to = %run.to, %error, "a datagram was not sent");
                    drops.count(DropReason::SendFailed);
                }
            }
        }
        outbox.clear();
    }

    fn send_run(&self, to: &SockAddr, run: &Run<'_>) -> io::Result<()> {
        let segment = if run.octets.len() > run.size { u16::try_from(run.size).unwrap_or(0) } else { 0 };
        loop {
            match sys::send(self.socket.as_fd(), to, run.octets, segment) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut writable = [PollFd::new(&self.socket, PollFlags::OUT)];
                    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
                    if poll(&mut writable, Some(&patience))? == 0 {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }
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
