//! The tunnel of a node: the kernel's WireGuard, or the one in this process.

use std::collections::BTreeMap;
use std::io;

use nix::sys::socket::SockProtocol;
use std::os::fd::AsRawFd as _;

use pn_core::{NodeId, PublicKey};

use crate::carrier::Device;
use crate::kernel::{Identity, Link, LinkKind, LinkName, Peer, Place};
use crate::message;
use crate::netlink::Netlink;
use crate::netns::Namespaces;
use crate::sys;
use crate::tunnel::Engine;
use crate::wireguard::{self, WireGuard};

/// What encrypts.
#[derive(Debug)]
pub(crate) enum Encryptor {
    Kernel(WireGuard),
    UserSpace(Engine),
}

impl Encryptor {
    /// Returns what kind of link the tunnel is.
    pub(crate) fn kind(&self) -> LinkKind {
        match self {
            Self::Kernel(wireguard) => LinkKind::WireGuard(Some(wireguard.identity())),
            Self::UserSpace(_) => LinkKind::Tun,
        }
    }

    /// Makes the tunnel's link. What it sends leaves from the node's own namespace.
    pub(crate) fn create(&mut self, namespaces: &Namespaces, link: &Link) -> io::Result<()> {
        match self {
            Self::Kernel(wireguard) => {
                let transport = namespaces.open(Place::Transport)?.ok_or(io::ErrorKind::NotFound)?;
                let request = message::create_wireguard(link, transport.as_raw_fd());
                let mut host = Netlink::open(SockProtocol::NetlinkRoute)?;
                host.change(vec![request]).into_iter().collect::<io::Result<()>>()?;
                namespaces.within(Place::Transport, || wireguard.configure())
            }
            Self::UserSpace(engine) => {
                engine.stop();
                let is_whole = engine.is_whole;
                let (file, mac) = namespaces.within(Place::Transport, || {
                    let created = sys::create_tap(&LinkName::Tunnel.to_string(), is_whole)?;
                    // Whoever is behind it gets every frame.
                    let request = message::without_neighbours(LinkName::Tunnel);
                    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
                    netlink.change(vec![request]).into_iter().collect::<io::Result<()>>()?;
                    Ok(created)
                })?;
                engine.carry(Device { file, mac, is_whole })
            }
        }
    }

    /// Is told when the tunnel's link goes.
    pub(crate) fn removed(&mut self) {
        match self {
            Self::Kernel(_) => {}
            Self::UserSpace(engine) => engine.stop(),
        }
    }

    /// Reads who the kernel's tunnel is, and the peers. The transport namespace may be missing.
    pub(crate) fn observe(&self, namespaces: &Namespaces) -> io::Result<(Option<Identity>, BTreeMap<PublicKey, Peer>)> {
        match self {
            Self::Kernel(_) => {
                let device = wireguard::read_device(namespaces)?;
                Ok(device.map_or_else(Default::default, |device| (Some(device.identity), device.peers)))
            }
            Self::UserSpace(engine) => Ok((None, engine.peers())),
        }
    }

    /// Adds a peer, or changes one in place: no other is touched.
    pub(crate) fn set_peer(
        &self,
        namespaces: &Namespaces,
        node: NodeId,
        key: PublicKey,
        peer: &Peer,
    ) -> io::Result<()> {
        match self {
            Self::Kernel(wireguard) => namespaces.within(Place::Transport, || wireguard.set_peer(key, peer)),
            Self::UserSpace(engine) => {
                engine.set_peer(node, key, peer);
                Ok(())
            }
        }
    }

    /// Removes a peer. One that is not there is no fault.
    pub(crate) fn remove_peer(&self, namespaces: &Namespaces, key: PublicKey) -> io::Result<()> {
        match self {
            Self::Kernel(wireguard) => namespaces.within(Place::Transport, || wireguard.remove_peer(key)),
            Self::UserSpace(engine) => {
                engine.remove_peer(&key);
                Ok(())
            }
        }
    }
}
