//! Nodes: the machines that containers run on.

use core::net::{IpAddr, SocketAddr};

use crate::id::NodeId;
use crate::label::Label;
use crate::mtu;
use crate::net::PublicKey;
use crate::network::Encryption;

/// Whether a node takes new containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Availability {
    /// It does.
    #[default]
    Open,
    /// It keeps those it has and takes no new ones.
    Draining,
}

/// A machine that runs containers, as every other node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Identifies it.
    pub id: NodeId,
    /// What people call it.
    pub label: Label,
    /// Where its tunnel receives UDP on the underlay.
    pub underlay: SocketAddr,
    /// Its address inside the tunnel, the source of its VXLAN packets; no two nodes have the same.
    pub tunnel_address: IpAddr,
    /// Its WireGuard public key.
    pub public_key: PublicKey,
    /// The key that is about to take the place of the other: peers know it and do not route to it yet.
    pub next_public_key: Option<PublicKey>,
    /// MTU of its underlay interface, in octets: 1500 unless it is set.
    pub underlay_mtu: u16,
    /// How often it has registered: what an earlier registration says later is refused.
    pub registration: u64,
    /// Whether it takes new containers.
    pub availability: Availability,
}

impl Node {
    /// Makes a node on an Ethernet underlay, at its first registration, which takes containers.
    #[must_use]
    pub const fn new(
        id: NodeId,
        label: Label,
        underlay: SocketAddr,
        tunnel_address: IpAddr,
        public_key: PublicKey,
    ) -> Self {
        Self {
            id,
            label,
            underlay,
            tunnel_address,
            public_key,
            next_public_key: None,
            underlay_mtu: 1500,
            registration: 0,
            availability: Availability::Open,
        }
    }

    /// Returns the largest IP packet of a container that fits into one packet of this node's underlay, or `None` where
    /// nothing is left.
    #[must_use]
    pub const fn network_mtu(&self, encryption: Encryption) -> Option<u16> {
        let overhead = match encryption {
            Encryption::WireGuard => {
                mtu::wireguard_overhead(self.underlay.ip()) + mtu::vxlan_overhead(self.tunnel_address)
            }
            Encryption::None => mtu::vxlan_overhead(self.underlay.ip()),
        };
        self.underlay_mtu.checked_sub(overhead)
    }
}
