//! The system calls that have no safe wrapper elsewhere: TUN's `ioctl`s, and UDP in batches with segmentation offload; and
//! code for processors that have more than every processor has.

#![expect(unsafe_code, reason = "the one file of the crate that may; each block says why it holds")]

use core::mem::{size_of, zeroed};
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use core::ptr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use pn_core::InterfaceName;
use pn_overlay::Run;

/// The most messages that one [`send`] or [`receive`] takes.
pub(crate) const MAX_MESSAGES: usize = 32;

/// Room for one control message that holds an `int`.
const CONTROL_LEN: usize = 32;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// What arrived in one message.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// How many octets there are.
    pub len: usize,
    /// How many of them each datagram has; the last may have fewer.
    pub segment: usize,
}

/// `struct ifreq` with flags in its union.
#[repr(C)]
struct InterfaceRequest {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes the open `/dev/net/tun` an interface (`TUNSETIFF`).
pub(crate) fn set_interface(tun: BorrowedFd<'_>, name: InterfaceName, flags: libc::c_int) -> io::Result<()> {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: flags as libc::c_short, rest: [0; 22] };
    for (to, octet) in request.name.iter_mut().zip(name.as_str().bytes()) {
        *to = octet as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which has the size and layout of `InterfaceRequest`, and keeps no
    // pointer to it.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, ptr::from_mut(&mut request)) })
}

/// Sets which offloads the reader of a TUN device understands (`TUNSETOFFLOAD`).
pub(crate) fn set_offloads(tun: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Has the kernel hand over datagrams of one sender as one message (`UDP_GRO`).
pub(crate) fn enable_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Forbids fragmentation, whatever the kernel believes of the path (`IP_PMTUDISC_PROBE`).
pub(crate) fn forbid_fragments(socket: BorrowedFd<'_>, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 {
        set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    } else {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    }
}

fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an `int` that lives through the call, and `len` is its size.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), len) })
}

/// Returns how many messages a socket did not take since it was opened (`SO_MEMINFO`, `SK_MEMINFO_DROPS`). It begins again at 2³².
pub(crate) fn not_taken(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut figures = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = size_of_val(&figures) as libc::socklen_t;
    // SAFETY: the pointers are to numbers that live through the call, and `len` is the size of the first.
    check(unsafe {
        let figures = ptr::from_mut(&mut figures).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, figures, ptr::from_mut(&mut len))
    })?;
    Ok(figures[SK_MEMINFO_DROPS])
}

/// Where `SO_MEMINFO` says it (linux/sock_diag.h).
const SK_MEMINFO_DROPS: usize = 8;

/// What is handed to the kernel for a number of messages.
struct Messages {
    names: [libc::sockaddr_in6; MAX_MESSAGES],
    vectors: [libc::iovec; MAX_MESSAGES],
    controls: [Control; MAX_MESSAGES],
    headers: [libc::mmsghdr; MAX_MESSAGES],
}

impl Messages {
    const fn new() -> Self {
        // SAFETY: all of these are integers and pointers, for which zero is a value.
        let (names, vectors, headers) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self { names, vectors, controls: [Control([0; CONTROL_LEN]); MAX_MESSAGES], headers }
    }

    /// Makes a message of some octets, with room for a name and a control message. What is returned is for as long as neither this
    /// value nor the octets move.
    fn set(&mut self, n: usize, octets: *mut u8, len: usize) -> &mut libc::msghdr {
        self.vectors[n] = libc::iovec { iov_base: octets.cast(), iov_len: len };
        let header = &mut self.headers[n].msg_hdr;
        header.msg_name = (&raw mut self.names[n]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        header.msg_iov = &raw mut self.vectors[n];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[n]).cast();
        header.msg_controllen = CONTROL_LEN;
        header
    }
}

/// Sends up to [`MAX_MESSAGES`] runs with one system call, each of several datagrams with `UDP_SEGMENT`, and returns how many left.
/// The error is that of the first.
///
/// It does not block: [`io::ErrorKind::WouldBlock`] says that there is no room.
pub(crate) fn send<'a>(socket: BorrowedFd<'_>, runs: impl Iterator<Item = Run<'a>>) -> io::Result<usize> {
    let mut messages = Messages::new();
    let mut count = 0;
    for (n, run) in runs.take(MAX_MESSAGES).enumerate() {
        let len = set_address(&mut messages.names[n], run.to);
        let header = messages.set(n, run.octets.as_ptr().cast_mut(), run.octets.len());
        header.msg_namelen = len;
        header.msg_controllen = 0;
        if run.octets.len() > run.size {
            // SAFETY: `msg_control` is aligned for `cmsghdr` and has room for the header and two octets (24 of 32), so the first
            // control message lies within it.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
                let control = libc::CMSG_FIRSTHDR(header);
                (*control).cmsg_level = libc::SOL_UDP;
                (*control).cmsg_type = libc::UDP_SEGMENT;
                (*control).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
                ptr::write_unaligned(libc::CMSG_DATA(control).cast::<u16>(), run.size as u16);
            }
        }
        count = n + 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: `count` headers are filled in, and every pointer in them is to something that lives through the call, with its
    // length beside it; the kernel only reads from names and vectors.
    let sent = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmmsg(socket.as_raw_fd(), messages.headers.as_mut_ptr(), count as libc::c_uint, flags)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives up to as many messages as `received` has room for, each into its share of `buffer`, and returns how many there
/// were. It does not block.
///
/// # Panics
/// With no room in `received` or more than for [`MAX_MESSAGES`].
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], received: &mut [Received]) -> io::Result<usize> {
    let count = received.len();
    assert!((1..=MAX_MESSAGES).contains(&count), "between one message and {MAX_MESSAGES}");
    let share = buffer.len() / count;
    let mut messages = Messages::new();
    for (n, share) in buffer.chunks_exact_mut(share).take(count).enumerate() {
        messages.set(n, share.as_mut_ptr(), share.len());
    }
    // SAFETY: `count` headers are filled in, and every pointer in them is to memory of its own that lives through the call,
    // with its length beside it.
    let taken = unsafe {
        let (flags, headers) = (libc::MSG_DONTWAIT, messages.headers.as_mut_ptr());
        libc::recvmmsg(socket.as_raw_fd(), headers, count as libc::c_uint, flags, ptr::null_mut())
    };
    let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
    for (n, received) in received.iter_mut().enumerate().take(taken) {
        let libc::mmsghdr { msg_hdr: header, msg_len } = &messages.headers[n];
        let len = *msg_len as usize;
        // A datagram that was cut is void, as is one from an address of another kind.
        let is_whole = header.msg_flags & libc::MSG_TRUNC == 0;
        let from = address(&messages.names[n]);
        let len = if is_whole && from.is_some() { len } else { 0 };
        let from = from.unwrap_or(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
        *received = Received { from, len, segment: segment(header).unwrap_or(len) };
    }
    Ok(taken)
}

/// Reads the size that `UDP_GRO` reports.
fn segment(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled in `msg_control` and its length, and the macros stay within it.
    let header = unsafe { libc::CMSG_FIRSTHDR(ptr::from_ref(message)).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO) {
        return None;
    }
    // SAFETY: the kernel puts an `int` into a control message of this type.
    let size = unsafe { ptr::read_unaligned(libc::CMSG_DATA(ptr::from_ref(header)).cast::<libc::c_int>()) };
    usize::try_from(size).ok().filter(|size| *size > 0)
}

/// Reads a socket address; `sockaddr_in` is the shorter, and begins alike.
fn address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match libc::c_int::from(name.sin6_family) {
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(SocketAddrV6::new(address, port, name.sin6_flowinfo, name.sin6_scope_id).into())
        }
        libc::AF_INET => {
            // SAFETY: `sockaddr_in6` is larger than `sockaddr_in` and at least as strictly aligned, and every bit pattern is
            // a value of it.
            let name: &libc::sockaddr_in = unsafe { &*ptr::from_ref(name).cast() };
            let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(name.sin_port)).into())
        }
        _ => None,
    }
}

/// Writes a socket address and returns its length.
fn set_address(name: &mut libc::sockaddr_in6, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V6(address) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_flowinfo = address.flowinfo();
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
        SocketAddr::V4(address) => {
            // SAFETY: `sockaddr_in6` is larger than `sockaddr_in` and at least as strictly aligned.
            let name: &mut libc::sockaddr_in = unsafe { &mut *ptr::from_mut(name).cast() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = address.port().to_be();
            name.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
    }
}

/// Sums octets as native words of four, for checksums; what is left of less than 32 is not summed.
pub(crate) fn sum_words(octets: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { sum_words_avx2(octets) };
    }
    sum_words_anywhere(octets)
}

/// The same code, compiled for processors that have wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_words_avx2(octets: &[u8]) -> u64 {
    sum_words_anywhere(octets)
}

#[inline(always)]
fn sum_words_anywhere(octets: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    for block in octets.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    lanes.iter().sum()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn datagrams_leave_and_arrive_in_batches() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(host).unwrap(), UdpSocket::bind(host).unwrap());
            enable_gro(b.as_fd()).unwrap();
            forbid_fragments(a.as_fd(), host.starts_with('1')).unwrap();
            let octets: Vec<u8> = (0..1050u32).map(|n| n as u8).collect();
            let to = b.local_addr().unwrap();
            let runs = [Run { to, octets: &octets, size: 100 }, Run { to, octets: b"alone", size: 5 }];
            assert_eq!(send(a.as_fd(), runs.into_iter()).unwrap(), 2);
            assert_eq!(send(a.as_fd(), [].into_iter()).unwrap(), 0);
            let mut buffer = vec![0; 4 * 65_536];
            let nothing = Received { from: b.local_addr().unwrap(), len: 0, segment: 0 };
            let (mut whole, mut sizes) = (Vec::<u8>::new(), Vec::new());
            while whole.len() < 1055 {
                let mut received = [nothing; 4];
                let Ok(count) = receive(b.as_fd(), &mut buffer, &mut received) else {
                    continue;
                };
                for (received, share) in received[..count].iter().zip(buffer.chunks_exact(65_536)) {
                    assert_eq!(received.from, a.local_addr().unwrap());
                    for datagram in share[..received.len].chunks(received.segment) {
                        sizes.push(datagram.len());
                        whole.extend(datagram);
                    }
                }
            }
            assert_eq!(sizes, [[100; 10].as_slice(), &[50, 5]].concat());
            assert_eq!(whole, [&octets[..], b"alone"].concat());
            let error = receive(b.as_fd(), &mut buffer, &mut [nothing; 4]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
