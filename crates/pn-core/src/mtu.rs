//! Exact MTU arithmetic: what is left of an underlay packet for a container's.

use core::net::IpAddr;

/// What VXLAN adds to a container's IP packet over an IPv4 tunnel: Ethernet 14, VXLAN 8, UDP 8, IPv4 20.
pub const VXLAN_OVER_IPV4: u16 = 50;

/// What VXLAN adds over an IPv6 tunnel, whose header has 40 octets.
pub const VXLAN_OVER_IPV6: u16 = 70;

/// What WireGuard adds over an IPv4 underlay: header and tag 32, UDP 8, IPv4 20.
pub const WIREGUARD_OVER_IPV4: u16 = 60;

/// What WireGuard adds over an IPv6 underlay.
pub const WIREGUARD_OVER_IPV6: u16 = 80;

/// The smallest MTU IPv6 allows on a link (RFC 8200 §5).
pub const IPV6_MINIMUM: u16 = 1280;

/// The smallest MTU a network can have: every IPv4 host must take a packet of this size (RFC 791 §3.2).
pub const IPV4_MINIMUM: u16 = 576;

/// Returns what VXLAN over a tunnel to this family of addresses adds, in octets.
#[must_use]
pub const fn vxlan_overhead(tunnel: IpAddr) -> u16 {
    match tunnel {
        IpAddr::V4(_) => VXLAN_OVER_IPV4,
        IpAddr::V6(_) => VXLAN_OVER_IPV6,
    }
}

/// Returns what WireGuard over an underlay of this family of addresses adds, in octets.
#[must_use]
pub const fn wireguard_overhead(underlay: IpAddr) -> u16 {
    match underlay {
        IpAddr::V4(_) => WIREGUARD_OVER_IPV4,
        IpAddr::V6(_) => WIREGUARD_OVER_IPV6,
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn the_table_of_the_families() {
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        for (mtu, wireguard, vxlan, expected) in [
            (1500, v4, v4, 1390),
            (1500, v4, v6, 1370),
            (1500, v6, v4, 1370),
            (1500, v6, v6, 1350),
            (9000, v4, v4, 8890),
            (9000, v6, v4, 8870),
            (9000, v6, v6, 8850),
        ] {
            assert_eq!(mtu - wireguard_overhead(wireguard) - vxlan_overhead(vxlan), expected);
        }
    }
}
