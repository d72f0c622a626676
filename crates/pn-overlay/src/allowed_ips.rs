//! Which peer an address inside the tunnel belongs to: one table for all peers, longest prefix first.

use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// A longest-prefix table from addresses to owners.
///
/// The same table routes what leaves and checks what arrives, as WireGuard's cryptokey routing does: an owner may only send
/// from the addresses that are sent to it.
#[derive(Debug, Clone)]
pub struct AllowedIps<Owner> {
    v4: PrefixMap<Ipv4Net, Owner>,
    v6: PrefixMap<Ipv6Net, Owner>,
}

impl<Owner> Default for AllowedIps<Owner> {
    fn default() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<Owner: Copy + Eq> AllowedIps<Owner> {
    /// Makes an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a prefix to an owner, and takes it from whoever had it. Host bits are ignored.
    pub fn insert(&mut self, prefix: IpNet, owner: Owner) {
        match prefix {
            IpNet::V4(prefix) => drop(self.v4.insert(prefix.trunc(), owner)),
            IpNet::V6(prefix) => drop(self.v6.insert(prefix.trunc(), owner)),
        }
    }

    /// Takes a prefix from an owner; one that somebody else has by now stays with them.
    pub fn remove(&mut self, prefix: IpNet, owner: Owner) {
        match prefix {
            IpNet::V4(prefix) => {
                let prefix = prefix.trunc();
                if self.v4.get(&prefix) == Some(&owner) {
                    self.v4.remove(&prefix);
                }
            }
            IpNet::V6(prefix) => {
                let prefix = prefix.trunc();
                if self.v6.get(&prefix) == Some(&owner) {
                    self.v6.remove(&prefix);
                }
            }
        }
    }

    /// Returns the owner of the longest prefix that holds an address.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&Ipv4Net::from(address)).map(|(_, owner)| *owner),
            IpAddr::V6(address) => self.v6.get_lpm(&Ipv6Net::from(address)).map(|(_, owner)| *owner),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = AllowedIps::new();
        for (prefix, owner) in
            [("0.0.0.0/0", 0), ("100.64.0.0/10", 1), ("100.64.0.7/32", 2), ("fd00::/8", 3), ("fd00::1/128", 4)]
        {
            table.insert(net(prefix), owner);
        }
        for (address, owner) in [
            ("192.0.2.1", Some(0)),
            ("100.64.0.8", Some(1)),
            ("100.64.0.7", Some(2)),
            ("fd00::2", Some(3)),
            ("fd00::1", Some(4)),
            ("fe80::1", None),
        ] {
            assert_eq!(table.owner(address.parse().unwrap()), owner, "{address}");
        }
    }

    #[test]
    fn k4_removing_the_old_owner_leaves_the_new_ones_prefix() {
        let mut table = AllowedIps::new();
        for prefix in ["100.64.0.7/32", "fd00::7/128"].map(net) {
            table.insert(prefix, 1);
            table.insert(prefix, 2);
            table.remove(prefix, 1);
            assert_eq!(table.owner(prefix.addr()), Some(2));
            table.remove(prefix, 2);
            assert_eq!(table.owner(prefix.addr()), None);
        }
    }

    proptest! {
        #[test]
        fn k9_the_table_equals_a_search_of_all_prefixes(
            entries in prop::collection::vec((any::<u32>(), 0u8..=32, 0u8..8), 0..40),
            removals in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            addresses in prop::collection::vec(any::<u32>(), 1..20),
        ) {
            let (mut table, mut list) = (AllowedIps::new(), Vec::<(Ipv4Net, u8)>::new());
            for (bits, len, owner) in entries {
                let prefix = Ipv4Net::new(core::net::Ipv4Addr::from_bits(bits), len).unwrap();
                table.insert(prefix.into(), owner);
                list.retain(|(other, _)| *other != prefix.trunc());
                list.push((prefix.trunc(), owner));
            }
            for removal in removals {
                if !list.is_empty() {
                    let (prefix, owner) = list.swap_remove(removal.index(list.len()));
                    table.remove(prefix.into(), owner);
                }
            }
            let near = list.iter().map(|(prefix, _)| u32::from(prefix.broadcast())).collect::<Vec<_>>();
            for bits in addresses.into_iter().chain(near) {
                let address = core::net::Ipv4Addr::from_bits(bits);
                let holding = list.iter().filter(|(prefix, _)| prefix.contains(&address));
                let longest = holding.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, owner)| *owner);
                prop_assert_eq!(table.owner(address.into()), longest);
            }
        }
    }
}
