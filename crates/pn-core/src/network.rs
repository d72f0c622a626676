//! Private networks.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use crate::id::{NetworkId, ProjectId};
use crate::label::Label;
use crate::net::Vni;
use crate::subnet::Subnet;
use crate::time::Timestamp;

/// How a network's packets are protected between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Encryption {
    /// VXLAN inside WireGuard.
    #[default]
    WireGuard,
    /// Plain VXLAN, for an underlay that is trusted or encrypts by itself. A backend that cannot do it says so.
    None,
}

/// What a WireGuard identity stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum KeyScope {
    /// One identity for each node, shared by its containers of every network; VXLAN travels inside.
    #[default]
    Node,
    /// One identity for each container, inside VXLAN. A backend that cannot do it says so.
    Container,
}

/// Which addresses the containers of a network have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Families {
    /// IPv4 only.
    #[default]
    Ipv4,
    /// IPv4, and IPv6 from a unique local /64 of the network's own.
    DualStack,
}

/// The IPv6 prefix of a network: a /64 of unique local addresses (RFC 4193).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6Prefix([u8; 8]);

impl Ipv6Prefix {
    /// Derives the prefix of a network from its id: `fd`, and the first 56 bits of its UUID. Networks do not reach each
    /// other, so nothing happens where two are alike.
    #[must_use]
    pub const fn of_network(network: NetworkId) -> Self {
        let [a, b, c, d, e, f, g, ..] = network.as_u128().to_be_bytes();
        Self([0xfd, a, b, c, d, e, f, g])
    }

    /// Returns the address of the container that has an IPv4 address: the prefix, and that address in the last 32 bits.
    #[must_use]
    pub const fn address(self, address: Ipv4Addr) -> Ipv6Addr {
        let high = (u64::from_be_bytes(self.0) as u128) << 64;
        Ipv6Addr::from_bits(high | address.to_bits() as u128)
    }

    /// Returns the IPv4 address of the container that has an IPv6 address: what [`address`](Self::address) was made of. `None`
    /// for one that is no container's of the network.
    #[must_use]
    pub fn ipv4(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let ipv4 = Ipv4Addr::from_bits(address.to_bits() as u32);
        (self.address(ipv4) == address).then_some(ipv4)
    }

    /// Returns the first address of the prefix.
    #[must_use]
    pub const fn network(self) -> Ipv6Addr {
        self.address(Ipv4Addr::UNSPECIFIED)
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/64", self.network())
    }
}

impl fmt::Debug for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Somebody's consent to the terms of private networking, recorded when it is enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Who accepted them.
    pub accepted_by: Label,
    /// Which version of them.
    pub version: Label,
    /// When they were accepted.
    pub accepted_at: Timestamp,
}

/// A request to give a project a private network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkRequest {
    /// The project.
    pub project: ProjectId,
    /// The network it gets.
    pub network: NetworkId,
    /// The terms that were accepted; [`Policy`](crate::Policy) says whether it goes without.
    pub terms: Option<Terms>,
    /// Where addresses come from; the policy's subnet where nothing is asked for.
    pub subnet: Option<Subnet>,
    /// Which addresses its containers have.
    pub families: Families,
    /// How its packets are protected.
    pub encryption: Encryption,
    /// What a WireGuard identity stands for.
    pub key_scope: KeyScope,
}

impl NetworkRequest {
    /// Makes a request under accepted terms, with the defaults for everything else.
    #[must_use]
    pub const fn new(project: ProjectId, network: NetworkId, terms: Terms) -> Self {
        Self {
            project,
            network,
            terms: Some(terms),
            subnet: None,
            families: Families::Ipv4,
            encryption: Encryption::WireGuard,
            key_scope: KeyScope::Node,
        }
    }
}

/// A project's private network, as it was recorded when it was enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Network {
    /// Identifies it.
    pub id: NetworkId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// Its VXLAN network identifier, unique in the region.
    pub vni: Vni,
    /// Where its containers' addresses come from.
    pub subnet: Subnet,
    /// Where its containers' IPv6 addresses come from, if they have any.
    pub ipv6: Option<Ipv6Prefix>,
    /// How its packets are protected.
    pub encryption: Encryption,
    /// What a WireGuard identity stands for.
    pub key_scope: KeyScope,
    /// The terms under which it was enabled.
    pub terms: Option<Terms>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_is_unique_local_and_derived_from_the_ipv4_address() {
        let prefix = Ipv6Prefix::of_network("pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap());
        assert_eq!(prefix.to_string(), "fdad:fd6:a1d0:5e40::/64");
        let address = prefix.address(Ipv4Addr::new(10, 240, 3, 254));
        assert_eq!(address, "fdad:fd6:a1d0:5e40::af0:3fe".parse::<Ipv6Addr>().unwrap());
        assert!(address.is_unique_local());
        assert_eq!(prefix.ipv4(address), Some(Ipv4Addr::new(10, 240, 3, 254)));
        for other in ["fdad:fd6:a1d0:5e40:1::af0:3fe", "fdad:fd6:a1d0:5e41::af0:3fe", "fe80::af0:3fe", "ff02::1"] {
            assert_eq!(prefix.ipv4(other.parse().unwrap()), None, "{other}");
        }
    }
}
