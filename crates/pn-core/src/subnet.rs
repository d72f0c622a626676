//! The addresses of a network.

use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

use ipnet::Ipv4Net;

/// Why a text or prefix is not a [`Subnet`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// It is not `A.B.C.D/LEN`.
    #[error("{value:?} is not an IPv4 prefix such as 10.240.0.0/22")]
    Syntax {
        /// The text that was given.
        value: String,
    },
    /// The prefix is too short or too long.
    #[error("subnet {value} cannot be used: its prefix length must be from {min} to {max}", min = Subnet::MIN_PREFIX_LEN, max = Subnet::MAX_PREFIX_LEN)]
    PrefixLength {
        /// The prefix that was given.
        value: String,
    },
    /// No host can have such an address.
    #[error("subnet {value} cannot be used: its addresses are not those of single hosts")]
    NotUnicast {
        /// The prefix that was given.
        value: String,
    },
    /// Bits to the right of the prefix are set.
    #[error("subnet {value} has host bits set: write {network}")]
    HostBits {
        /// The prefix that was given.
        value: String,
        /// The same without host bits.
        network: Subnet,
    },
}

/// An IPv4 prefix from /8 to /29 that containers get their addresses from.
///
/// Every address between the network's and the broadcast address is usable: neither a gateway nor the resolver takes one
/// (the resolver has a link-local address). *Ordinals* number them from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// The shortest prefix length.
    pub const MIN_PREFIX_LEN: u8 = 8;

    /// The longest prefix length: six addresses.
    pub const MAX_PREFIX_LEN: u8 = 29;

    /// The subnet every network gets unless it asks for another: 10.240.0.0/22, 1 022 addresses.
    pub const DEFAULT: Self = Self { network: Ipv4Addr::new(10, 240, 0, 0), prefix_len: 22 };

    /// Makes a subnet from a prefix without host bits.
    ///
    /// # Errors
    /// [`SubnetError::PrefixLength`], [`SubnetError::NotUnicast`] for 0.0.0.0/8, 127.0.0.0/8 and everything from 224.0.0.0,
    /// and [`SubnetError::HostBits`].
    pub fn new(network: Ipv4Addr, prefix_len: u8) -> Result<Self, SubnetError> {
        let value = || format!("{network}/{prefix_len}");
        if !(Self::MIN_PREFIX_LEN..=Self::MAX_PREFIX_LEN).contains(&prefix_len) {
            return Err(SubnetError::PrefixLength { value: value() });
        }
        if matches!(network.octets()[0], 0 | 127 | 224..) {
            return Err(SubnetError::NotUnicast { value: value() });
        }
        let mask = u32::MAX << (32 - u32::from(prefix_len));
        let truncated = Self { network: Ipv4Addr::from_bits(network.to_bits() & mask), prefix_len };
        if truncated.network != network {
            return Err(SubnetError::HostBits { value: value(), network: truncated });
        }
        Ok(truncated)
    }

    /// Returns the first address, which no container gets.
    #[must_use]
    pub const fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Returns the prefix length in bits.
    #[must_use]
    pub const fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// Returns the last address, which no container gets.
    #[must_use]
    pub const fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + self.capacity() + 1)
    }

    /// Returns how many addresses containers can have.
    #[must_use]
    pub const fn capacity(self) -> u32 {
        (1 << (32 - self.prefix_len as u32)) - 2
    }

    /// Returns whether an address is one of the prefix, the first and the last included.
    #[must_use]
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        let first = self.network.to_bits();
        address.to_bits() >= first && address.to_bits() - first <= self.capacity() + 1
    }

    /// Returns the address with an ordinal from 1 to [`capacity`](Self::capacity), `None` outside of that.
    #[must_use]
    pub const fn address(self, ordinal: u32) -> Option<Ipv4Addr> {
        if ordinal == 0 || ordinal > self.capacity() {
            return None;
        }
        Some(Ipv4Addr::from_bits(self.network.to_bits() + ordinal))
    }

    /// Returns the ordinal of an address that a container can have, `None` for every other.
    #[must_use]
    pub const fn ordinal(self, address: Ipv4Addr) -> Option<u32> {
        match address.to_bits().checked_sub(self.network.to_bits()) {
            Some(ordinal) if ordinal != 0 && ordinal <= self.capacity() => Some(ordinal),
            _ => None,
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let net: Ipv4Net = text.parse().map_err(|_| SubnetError::Syntax { value: text.to_owned() })?;
        Self::new(net.addr(), net.prefix_len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_prefixes_are_refused_with_their_reason() {
        for text in ["", "10.240.0.0", "10.240.0/22", "10.240.0.0/33", "fd00::/64", "10.240.0.0/22 "] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError::Syntax { value: text.to_owned() }));
        }
        for text in ["10.0.0.0/7", "10.240.0.0/30", "10.240.0.0/31", "10.240.0.0/32", "0.0.0.0/0"] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError::PrefixLength { value: text.to_owned() }));
        }
        for text in ["0.0.0.0/8", "0.1.0.0/16", "127.0.0.0/24", "224.0.0.0/24", "239.1.0.0/22", "255.255.255.0/24"] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError::NotUnicast { value: text.to_owned() }));
        }
        let error = "10.240.0.1/22".parse::<Subnet>().unwrap_err();
        assert_eq!(error, SubnetError::HostBits { value: "10.240.0.1/22".to_owned(), network: Subnet::DEFAULT });
        assert_eq!(error.to_string(), "subnet 10.240.0.1/22 has host bits set: write 10.240.0.0/22");
    }

    #[test]
    fn n5_all_1022_addresses_of_a_22_are_usable() {
        let subnet = Subnet::DEFAULT;
        assert_eq!(subnet.capacity(), 1022);
        assert_eq!(subnet.address(1), Some(Ipv4Addr::new(10, 240, 0, 1)));
        assert_eq!(subnet.address(1022), Some(Ipv4Addr::new(10, 240, 3, 254)));
        assert_eq!((subnet.address(0), subnet.address(1023)), (None, None));
        assert_eq!((subnet.ordinal(subnet.network()), subnet.ordinal(subnet.broadcast())), (None, None));
    }

    proptest! {
        /// N1: against a naive model that lists every address of the prefix.
        #[test]
        fn n1_arithmetic_equals_listing(bits in 0x0100_0000u32..0x7f00_0000, prefix_len in 20u8..=29) {
            let net = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix_len).unwrap().trunc();
            let subnet = Subnet::new(net.addr(), prefix_len).unwrap();
            let listed: Vec<Ipv4Addr> = net.hosts().collect();
            let ours: Vec<Ipv4Addr> = (1..=subnet.capacity()).map(|n| subnet.address(n).unwrap()).collect();
            prop_assert_eq!(&listed, &ours);
            for (n, address) in listed.iter().enumerate() {
                prop_assert_eq!(subnet.ordinal(*address), Some(n as u32 + 1));
            }
            prop_assert_eq!(subnet.broadcast(), net.broadcast());
            prop_assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
        }

        #[test]
        fn n1_every_prefix_length(bits in 0x8000_0000u32..0xe000_0000, prefix_len in 8u8..=29, ordinal: u32) {
            let net = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix_len).unwrap().trunc();
            let subnet = Subnet::new(net.addr(), prefix_len).unwrap();
            prop_assert_eq!(u64::from(subnet.capacity()), (1u64 << (32 - prefix_len)) - 2);
            match subnet.address(ordinal) {
                Some(address) => {
                    prop_assert!(net.contains(&address) && address != net.addr() && address != net.broadcast());
                    prop_assert_eq!(subnet.ordinal(address), Some(ordinal));
                }
                None => prop_assert!(ordinal == 0 || ordinal > subnet.capacity()),
            }
            let other = Ipv4Addr::from_bits(ordinal);
            let usable = net.contains(&other) && other != net.addr() && other != net.broadcast();
            prop_assert_eq!(subnet.ordinal(other).is_some(), usable);
            prop_assert_eq!(subnet.contains(other), net.contains(&other));
        }
    }
}
