//! The node's UDP socket, in batches that the kernel cuts and puts together.

use core::net::SocketAddr;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use pn_overlay::{DropCounters, DropReason, Outbox};

/// What the kernel is asked to buffer for the socket, in each direction.
const SOCKET_BUFFER: usize = 8 << 20;

/// Datagrams that one system call sends, and the most octets UDP carries.
const MAX_SEGMENTS: usize = 64;
const MAX_OCTETS: usize = 65_507;

/// How many milliseconds a full socket is waited for before a batch is given up.
const PATIENCE: u8 = 100;

#[derive(Debug)]
pub(crate) struct Underlay {
    socket: UdpSocket,
    pub(crate) buffer: Box<[u8]>,
    control: Vec<u8>,
    /// Whether the kernel cuts for us.
    has_segmentation: bool,
}

impl Underlay {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        // By force, which root may; the limit of others otherwise.
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER)?;
        }
        // Without it datagrams arrive one by one.
        let _: nix::Result<()> = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        socket.set_nonblocking(true)?;
        let (buffer, control) = (vec![0; 65_536].into_boxed_slice(), nix::cmsg_space!(i32));
        Ok(Self { socket, buffer, control, has_segmentation: true })
    }

    /// Receives datagrams of one sender: who that is, how many octets, and how many of them each datagram has.
    pub(crate) fn receive(&mut self) -> io::Result<(SocketAddr, usize, usize)> {
        let mut buffers = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffers, Some(&mut self.control), flags)?;
        let segment = message.cmsgs()?.find_map(|control| {
            let ControlMessageOwned::UdpGroSegments(size) = control else {
                return None;
            };
            usize::try_from(size).ok().filter(|size| *size > 0)
        });
        let from = message.address.and_then(|address| {
            let ipv4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
            ipv4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
        });
        let from = from.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok((from, message.bytes, segment.unwrap_or(message.bytes).max(1)))
    }

    /// Sends what waits and empties the outbox. What cannot be sent is counted.
    pub(crate) fn send(&mut self, outbox: &mut Outbox, drops: &DropCounters) {
        for run in outbox.runs(MAX_SEGMENTS, MAX_OCTETS) {
            let to = SockaddrStorage::from(run.to);
            let is_many = run.octets.len() > run.size;
            if is_many && self.has_segmentation {
                match self.send_one(&to, run.octets, u16::try_from(run.size).ok()) {
                    Ok(()) => continue,
                    // Where the device cannot cut, it never can; other errors may be this path's alone.
                    Err(error) => self.has_segmentation = error != Errno::EIO,
                }
            }
            for octets in run.octets.chunks(run.size.max(1)) {
                if let Err(error) = self.send_one(&to, octets, None) {
                    tracing::debug!(to = %run.to, %error, "a datagram was not sent");
                    drops.count(DropReason::SendFailed);
                }
            }
        }
        outbox.clear();
    }

    fn send_one(&self, to: &SockaddrStorage, octets: &[u8], segment: Option<u16>) -> nix::Result<()> {
        let (buffers, segment) = ([IoSlice::new(octets)], segment.as_ref().map(ControlMessage::UdpGsoSegments));
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg(self.socket.as_raw_fd(), &buffers, segment.as_slice(), flags, Some(to)) {
                Err(Errno::EAGAIN) => {
                    if poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLOUT)], PATIENCE)? == 0 {
                        return Err(Errno::EAGAIN);
                    }
                }
                result => return result.map(drop),
            }
        }
    }
}

impl AsFd for Underlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
