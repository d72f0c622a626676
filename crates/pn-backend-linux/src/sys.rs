//! What no crate does safely: making a TAP device.
#![expect(unsafe_code, reason = "ioctl takes a pointer")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use pn_core::MacAddr;

/// `struct ifreq` with the flags of `TUNSETIFF`, or an Ethernet address behind its kind.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// `IFF_TAP`: frames; `IFF_NO_PI`: nothing before them but what `IFF_VNET_HDR` has there.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN`, `TUN_F_USO4`, `TUN_F_USO6`: packets are handed over as they are
/// in the kernel; `TUN_F_UDP_TUNNEL_GSO`, `TUN_F_UDP_TUNNEL_GSO_CSUM`: those in tunnels, too.
const OFFLOADS: i32 = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80 | 0x100;

/// How long what is in front of each frame is: `struct virtio_net_hdr_v1_hash_tunnel`.
pub(crate) const HEADER_LEN: usize = 24;

nix::ioctl_write_ptr_bad!(tun_set_interface, 0x4004_54ca, InterfaceRequest);
nix::ioctl_write_ptr_bad!(tun_set_header_len, 0x4004_54d8, i32);
nix::ioctl_write_int_bad!(tun_set_offloads, 0x4004_54d0);
nix::ioctl_read_bad!(get_hardware_address, nix::libc::SIOCGIFHWADDR, InterfaceRequest);

/// Makes a TAP device in the namespace of the calling thread, and returns its Ethernet address. It is there until the file is
/// closed. Reads and writes, each of one frame with [`HEADER_LEN`] octets in front, do not block.
pub(crate) fn create_tap(name: &str) -> io::Result<(File, MacAddr)> {
    let mut request = InterfaceRequest { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    let length = name.len().min(request.name.len() - 1);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/net/tun")?;
    let (fd, header_len) = (file.as_raw_fd(), HEADER_LEN as i32);
    // SAFETY: the file is open, and the kernel reads and writes no more than the 40 octets of the request and the four of the
    // length, which outlive the calls.
    unsafe {
        tun_set_interface(fd, &raw const request)?;
        tun_set_header_len(fd, &raw const header_len)?;
        get_hardware_address(fd, &raw mut request)?;
    }
    let [a, b, c, d, e, f, ..] = request.rest;
    Ok((file, MacAddr::new([a, b, c, d, e, f])))
}

/// Has large packets in VXLAN cross a TAP device whole, both ways, which Linux refuses before 6.17.
pub(crate) fn take_whole(tap: &File) -> io::Result<()> {
    // SAFETY: the file is open, and what is handed over is a number.
    unsafe { tun_set_offloads(tap.as_raw_fd(), OFFLOADS) }?;
    Ok(())
}
