//! Nodes: the machines that containers run on.

use core::net::{IpAddr, SocketAddr};

use crate::id::NodeId;
use crate::label::Label;
use crate::mtu;
use crate::net::PublicKey;
use crate::network::Encryption;

/// A machine that runs containers, as every other node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// MTU of its underlay interface, in octets.
    pub underlay_mtu: u16,
}

impl Node {
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
