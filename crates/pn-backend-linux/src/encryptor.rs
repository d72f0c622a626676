//! The tunnel of a node: the kernel's WireGuard, or the one in this process, alone or with the end of VXLAN.

use std::collections::BTreeMap;
use std::io;

use nix::sys::socket::SockProtocol;
use std::os::fd::AsRawFd as _;

use pn_core::{BackendError, NodeId, NodePlan, PublicKey};

use crate::carrier::Device;
use crate::kernel::{Identity, Link, LinkKind, LinkName, Namespace, Peer, Place};
use crate::message;
use crate::netlink::Netlink;
use crate::netns::Namespaces;
use crate::observe::Indexes;
use crate::sys;
use crate::tunnel::Engine;
use crate::vtep::Vtep;
use crate::wireguard::{self, WireGuard};

/// What encrypts.
#[derive(Debug)]
pub(crate) enum Encryptor {
    Kernel(WireGuard),
    UserSpace(Engine),
    Vtep(Box<Vtep>),
}

impl Encryptor {
    /// Returns what kind of link the tunnel is: one for the node, or one for each network.
    pub(crate) fn kind(&self) -> LinkKind {
        match self {
            Self::Kernel(wireguard) => LinkKind::WireGuard(Some(wireguard.identity())),
            Self::UserSpace(_) => LinkKind::Tun,
            Self::Vtep(_) => LinkKind::Tap(None),
        }
    }

    /// Takes a plan, before anything of it is done in the kernel.
    pub(crate) fn take(&mut self, plan: &NodePlan) -> Result<(), BackendError> {
        match self {
            Self::Kernel(_) | Self::UserSpace(_) => Ok(()),
            Self::Vtep(vtep) => vtep.take(plan),
        }
    }

    /// Returns whether nodes, and who is behind which, are known from the plan as a whole, and not one by one.
    pub(crate) const fn takes_plans(&self) -> bool {
        matches!(self, Self::Vtep(_))
    }

    /// Makes the tunnel's link at its place. What it sends leaves from the node's own namespace.
    pub(crate) fn create(&mut self, namespaces: &Namespaces, place: Place, link: &Link) -> io::Result<()> {
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
                let (file, mac) = namespaces.within(Place::Transport, || {
                    let created = sys::create_tap(&LinkName::Tunnel.to_string())?;
                    sys::take_whole(&created.0)?;
                    // Whoever is behind it gets every frame.
                    let request = message::without_neighbours(LinkName::Tunnel);
                    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
                    netlink.change(vec![request]).into_iter().collect::<io::Result<()>>()?;
                    Ok(created)
                })?;
                engine.carry(Device { file, mac })
            }
            Self::Vtep(vtep) => vtep.create(namespaces, place),
        }
    }

    /// Is told when the tunnel's link goes.
    pub(crate) fn removed(&mut self) {
        match self {
            Self::Kernel(_) | Self::Vtep(_) => {}
            Self::UserSpace(engine) => engine.stop(),
        }
    }

    /// Reads who the kernel's tunnel is, and the peers. The transport namespace may be missing.
    pub(crate) fn observe(
        &mut self,
        namespaces: &Namespaces,
    ) -> io::Result<(Option<Identity>, BTreeMap<PublicKey, Peer>)> {
        match self {
            Self::Kernel(_) => {
                let device = wireguard::read_device(namespaces)?;
                Ok(device.map_or_else(Default::default, |device| (Some(device.identity), device.peers)))
            }
            Self::UserSpace(engine) => Ok((None, engine.peers())),
            Self::Vtep(vtep) => Ok((None, vtep.peers()?)),
        }
    }

    /// Adds to what was read of a namespace what the kernel does not know.
    pub(crate) fn complete(&self, place: Place, namespace: &mut Namespace, indexes: &Indexes) {
        if let (Self::Vtep(vtep), Place::Network(network)) = (self, place) {
            vtep.complete(network, namespace, indexes);
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
            Self::Vtep(_) => Ok(()),
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
            Self::Vtep(_) => Ok(()),
        }
    }
}
