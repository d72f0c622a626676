//! TUN interfaces of containers: a container's kernel on one side, the data path on the other.

use core::net::Ipv4Addr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use pn_core::InterfaceName;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::link::Link;
use crate::netstack::Addresses;
use crate::sys;

/// The name that a container's interface has if nobody says otherwise.
const DEFAULT_NAME: &str = "pn0";

/// The offloads that are asked for, the most first; a kernel without UDP segmentation (before 6.2) refuses the first.
const OFFLOADS: [libc::c_uint; 3] = [TCP_OFFLOADS | libc::TUN_F_USO4 | libc::TUN_F_USO6, TCP_OFFLOADS, 0];
const TCP_OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// A network has as many IPv6 addresses.
const IPV6_PREFIX_LEN: u8 = 64;

/// Where a container's TUN interface is made, and what it is called.
///
/// It is given to [`UserspaceBackend::attach`](crate::UserspaceBackend::attach), which makes the interface with address, MTU and
/// routes, and removes it with the container.
#[derive(Debug)]
pub struct TunPort {
    place: Place,
    name: InterfaceName,
}

#[derive(Debug)]
enum Place {
    Here,
    Path(PathBuf),
    Descriptor(OwnedFd),
}

impl TunPort {
    /// In the network namespace at a path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn in_netns(path: impl Into<PathBuf>) -> Self {
        Self::new(Place::Path(path.into()))
    }

    /// In the network namespace that a descriptor refers to.
    #[must_use]
    pub fn in_netns_of(namespace: OwnedFd) -> Self {
        Self::new(Place::Descriptor(namespace))
    }

    /// In the network namespace of the calling process.
    #[must_use]
    pub fn here() -> Self {
        Self::new(Place::Here)
    }

    /// Sets the interface's name, which is `pn0` without it.
    #[must_use]
    pub const fn named(mut self, name: InterfaceName) -> Self {
        self.name = name;
        self
    }

    fn new(place: Place) -> Self {
        Self { place, name: DEFAULT_NAME.parse().expect("letters and a digit are a name") }
    }
}

/// Where the TAP interface of a network is made: in the namespace of the bridge that it is to be a port of.
///
/// It is given to [`UserspaceBackend::attach_network`](crate::UserspaceBackend::attach_network).
#[derive(Debug)]
pub struct TapPort(pub(crate) TunPort);

impl TapPort {
    /// In the network namespace at a path, with a name.
    pub fn in_netns(path: impl Into<PathBuf>, name: InterfaceName) -> Self {
        Self(TunPort::in_netns(path).named(name))
    }

    /// In the network namespace that a descriptor refers to, with a name.
    #[must_use]
    pub fn in_netns_of(namespace: OwnedFd, name: InterfaceName) -> Self {
        Self(TunPort::in_netns_of(namespace).named(name))
    }
}

/// What an interface is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) kind: Kind,
    pub(crate) mtu: u16,
    /// How many packets the kernel may hand over as one.
    pub(crate) segments: u32,
}

/// Whose interface one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container's: packets.
    Container { addresses: Addresses, prefix_len: u8, resolver: Ipv4Addr },
    /// A network's: frames.
    Network,
}

/// An interface that was made; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    /// What changes the interface; one of its queues has it.
    link: Option<Link>,
    interface: Interface,
    /// The other queues.
    others: Vec<File>,
}

impl Tun {
    /// Makes an interface with so many queues. The calling thread is in the interface's namespace from then on, so it is to be one
    /// of its own.
    pub(crate) fn open(port: TunPort, interface: Interface, queues: usize) -> io::Result<Self> {
        let namespace = match port.place {
            Place::Here => None,
            Place::Path(path) => {
                let what = |error: io::Error| {
                    io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display()))
                };
                Some(OwnedFd::from(File::open(&path).map_err(what)?))
            }
            Place::Descriptor(descriptor) => Some(descriptor),
        };
        if let Some(namespace) = namespace {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        Self::open_here(port.name, interface, queues)
    }

    fn open_here(name: InterfaceName, interface: Interface, queues: usize) -> io::Result<Self> {
        let kind = if interface.kind == Kind::Network { libc::IFF_TAP } else { libc::IFF_TUN };
        let queue = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let open = |exclusive| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
            sys::set_interface(file.as_fd(), name, kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queue | exclusive)?;
            Ok::<_, io::Error>(file)
        };
        // Exclusive: what has the name already is somebody else's.
        let file = open(libc::IFF_TUN_EXCL)?;
        let others = (1..queues).map(|_| open(0)).collect::<io::Result<_>>()?;
        let mut wanted = OFFLOADS.iter();
        while let Some(offloads) = wanted.next()
            && sys::set_offloads(file.as_fd(), *offloads).is_err()
        {}
        let mut link = Link::open(name)?;
        link.set_mtu(interface.mtu, interface.segments)?;
        if let Kind::Container { addresses: Addresses { v6: Some(_), .. }, .. } = interface.kind {
            link.make_no_addresses()?;
        }
        link.set_up()?;
        if let Kind::Container { addresses, prefix_len, resolver } = interface.kind {
            link.add_address(addresses.v4.into(), prefix_len)?;
            if let Some(address) = addresses.v6 {
                link.add_address(address.into(), IPV6_PREFIX_LEN)?;
            }
            link.add_route(resolver)?;
        }
        Ok(Self { file, link: Some(link), interface, others })
    }

    /// Takes the queues but for the first.
    pub(crate) fn take_queues(&mut self) -> impl Iterator<Item = Self> + use<> {
        let interface = self.interface;
        core::mem::take(&mut self.others).into_iter().map(move |file| Self {
            file,
            link: None,
            interface,
            others: Vec::new(),
        })
    }

    /// Returns what the interface is.
    pub(crate) const fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Changes the MTU.
    pub(crate) fn set_mtu(&mut self, mtu: u16, segments: u32) -> io::Result<()> {
        if let Some(link) = &mut self.link
            && (self.interface.mtu, self.interface.segments) != (mtu, segments)
        {
            link.set_mtu(mtu, segments)?;
            (self.interface.mtu, self.interface.segments) = (mtu, segments);
        }
        Ok(())
    }

    /// Reads a header and the packet behind it, and returns how many octets they have.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.file, buffer)?)
    }

    /// Writes a header and the packet behind it, in pieces.
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.file, pieces)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
