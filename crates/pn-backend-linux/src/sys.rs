//! What no library wraps safely: making a TUN device, and waiting for it.
#![expect(unsafe_code, reason = "ioctl takes a pointer, and waiting relies on the file")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use tokio::io::unix::AsyncFd;

/// `struct ifreq` with the flags of `TUNSETIFF`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// `IFF_TUN`: IP packets; `IFF_NO_PI`: and nothing before them.
const FLAGS: u16 = 0x0001 | 0x1000;

nix::ioctl_write_ptr_bad!(tun_set_interface, 0x4004_54ca, InterfaceRequest);

/// Makes a TUN device in the namespace of the calling thread. It is there until the file is closed. Reads and writes, each of
/// one packet, do not block.
pub(crate) fn create_tun(name: &str) -> io::Result<File> {
    let mut request = InterfaceRequest { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    let length = name.len().min(request.name.len() - 1);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: the file is open, and the kernel reads and writes no more than the 40 octets of the request, which outlives the
    // call.
    unsafe { tun_set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}

/// A TUN device to wait for.
#[derive(Debug)]
pub(crate) struct Tun(AsyncFd<File>);

impl Tun {
    /// Takes a device.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub(crate) fn new(device: File) -> io::Result<Self> {
        // SAFETY: the file is owned by the registration and never handed out to be replaced, so its descriptor is valid and the
        // same until both are dropped together.
        unsafe { AsyncFd::register(device) }.map(Self).map_err(Into::into)
    }

    /// Returns the device and what waits for it.
    pub(crate) const fn get(&self) -> &AsyncFd<File> {
        &self.0
    }
}
