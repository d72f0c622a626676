//! Where the reverse names of a network begin.

use core::fmt;
use core::net::Ipv4Addr;

use pn_core::{Ipv6Prefix, Subnet};

use super::reverse::{ROOTS, zone_octets};

/// A zone of reverse names of one network, `0.240.10.in-addr.arpa.` for example (RFC 1035 §3.5, RFC 3596 §2.5).
///
/// Its `Display` is its name without the final dot.
///
/// ```
/// use pn_core::Subnet;
/// use pn_dns::ReverseZone;
///
/// let zones: Vec<String> = ReverseZone::of(Subnet::DEFAULT, None).map(|zone| zone.to_string()).collect();
/// assert_eq!(zones, ["0.240.10.in-addr.arpa", "1.240.10.in-addr.arpa", "2.240.10.in-addr.arpa", "3.240.10.in-addr.arpa"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReverseZone(Range);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Range {
    /// The addresses that begin with so many octets of this one.
    Ipv4(Ipv4Addr, usize),
    Ipv6(Ipv6Prefix),
}

impl ReverseZone {
    /// Returns the reverse zones of a network with a subnet and maybe a prefix: four and one for a /22 with IPv6.
    pub fn of(subnet: Subnet, ipv6: Option<Ipv6Prefix>) -> impl Iterator<Item = Self> {
        let octets = zone_octets(subnet);
        let bits = 32 - 8 * octets as u32;
        let (first, last) = (subnet.network().to_bits() >> bits, subnet.broadcast().to_bits() >> bits);
        let ipv4 = (first..=last).map(move |zone| Range::Ipv4(Ipv4Addr::from_bits(zone << bits), octets));
        ipv4.chain(ipv6.map(Range::Ipv6)).map(Self)
    }

    /// Returns the labels of an address in this zone; `None` where it has none. Containers have an address of each family, of
    /// which the one follows from the other.
    #[cfg(any(feature = "files", feature = "peers"))]
    pub(crate) fn owner(self, address: Ipv4Addr, ipv6: Option<Ipv6Prefix>) -> Option<String> {
        let given = address.octets();
        match self.0 {
            Range::Ipv4(zone, octets) => {
                let is_within = given[..octets] == zone.octets()[..octets];
                is_within.then(|| join(given[octets..].iter().rev()))
            }
            Range::Ipv6(prefix) => {
                let host = prefix.address(address).octets();
                (ipv6 == Some(prefix)).then(|| join(nibbles(&host[8..]).rev().map(|nibble| format!("{nibble:x}"))))
            }
        }
    }
}

impl fmt::Display for ReverseZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [in_addr, ip6] = ROOTS;
        match self.0 {
            Range::Ipv4(zone, octets) => write!(f, "{}.{in_addr}", join(zone.octets()[..octets].iter().rev())),
            Range::Ipv6(prefix) => {
                let network = prefix.network().octets();
                write!(f, "{}.{ip6}", join(nibbles(&network[..8]).rev().map(|nibble| format!("{nibble:x}"))))
            }
        }
    }
}

fn nibbles(octets: &[u8]) -> impl DoubleEndedIterator<Item = u8> + '_ {
    octets.iter().flat_map(|octet| [octet >> 4, octet & 0xf])
}

fn join(labels: impl Iterator<Item = impl ToString>) -> String {
    labels.map(|label| label.to_string()).collect::<Vec<_>>().join(".")
}
