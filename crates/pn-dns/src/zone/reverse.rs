//! Reverse names: from the addresses of one network to the names of its containers.

use core::net::Ipv4Addr;
use std::collections::BTreeMap;
use std::sync::Arc;

use pn_core::{AppId, AppNames, Ipv6Prefix, Name, Slot, Subnet, ZonePlan};

use super::{Lookup, beneath};

/// Under what reverse names stand (RFC 1035 §3.5, RFC 3596 §2.5).
pub(super) const ROOTS: [&str; 2] = ["in-addr.arpa", "ip6.arpa"];

/// Containers by address. Parts of 256 addresses are shared by the zones in which they are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Reverse(BTreeMap<u32, Arc<[Pointer]>>);

/// Which container has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pointer {
    address: Ipv4Addr,
    app: AppId,
    /// The place of its type in the plan.
    of_type: u32,
    index: u32,
}

/// Addresses that containers lose and get.
#[derive(Debug, Default)]
pub(super) struct Changes {
    gone: Vec<Ipv4Addr>,
    come: Vec<Pointer>,
}

impl Changes {
    /// Notes the difference between the names of an app before and after.
    pub(super) fn note(&mut self, before: Option<&AppNames>, after: Option<&AppNames>) {
        self.gone.extend(before.into_iter().flat_map(pointers).map(|pointer| pointer.address));
        self.come.extend(after.into_iter().flat_map(pointers));
    }
}

fn pointers(names: &AppNames) -> impl Iterator<Item = Pointer> + '_ {
    names.types.iter().zip(0..).flat_map(move |(of_type, position)| {
        let app = names.app;
        let pointer = move |(index, address): &(u32, Ipv4Addr)| Pointer {
            address: *address,
            app,
            of_type: position,
            index: *index,
        };
        of_type.containers.iter().map(pointer)
    })
}

/// Returns the part that an address belongs to.
const fn part(address: Ipv4Addr) -> u32 {
    address.to_bits() >> 8
}

impl Reverse {
    /// Makes changes. An address that goes and comes is where it came.
    pub(super) fn apply(&mut self, changes: Changes) {
        let Changes { mut gone, mut come } = changes;
        gone.sort_unstable();
        come.sort_unstable_by_key(|pointer| pointer.address);
        let (mut gone, mut come) = (&gone[..], &come[..]);
        loop {
            let next = gone.first().copied().into_iter().chain(come.first().map(|pointer| pointer.address)).min();
            let Some(at) = next.map(part) else {
                return;
            };
            let (going, coming);
            (going, gone) = gone.split_at(gone.partition_point(|address| part(*address) == at));
            (coming, come) = come.split_at(come.partition_point(|pointer| part(pointer.address) == at));
            let before = self.0.get(&at).map_or(&[][..], |pointers| pointers);
            if before == coming {
                continue;
            }
            let stays = |pointer: &&Pointer| {
                going.binary_search(&pointer.address).is_err()
                    && coming.binary_search_by_key(&pointer.address, |pointer| pointer.address).is_err()
            };
            let mut after: Vec<Pointer> = before.iter().filter(stays).chain(coming).copied().collect();
            after.sort_unstable_by_key(|pointer| pointer.address);
            // No plan gives an address to two containers; one of them would do.
            after.dedup_by_key(|pointer| pointer.address);
            if after.is_empty() {
                self.0.remove(&at);
            } else {
                self.0.insert(at, after.into());
            }
        }
    }

    /// Returns whether a container has an address whose first bits are those of this one.
    fn any(&self, address: Ipv4Addr, bits: u32) -> bool {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let (first, last) = (address.to_bits() & mask, address.to_bits() | !mask);
        let within = |pointer: &Pointer| (first..=last).contains(&pointer.address.to_bits());
        self.0.range(first >> 8..=last >> 8).any(|(_, pointers)| pointers.iter().any(within))
    }

    fn get(&self, address: Ipv4Addr) -> Option<&Pointer> {
        let pointers = self.0.get(&part(address))?;
        pointers.binary_search_by_key(&address, |pointer| pointer.address).ok().map(|at| &pointers[at])
    }

    /// Looks up an address of which the first bits are given, in a zone that begins above these.
    fn find(&self, plan: &ZonePlan, address: Ipv4Addr, bits: u32) -> Lookup<'_> {
        if bits < 32 {
            return if self.any(address, bits) { Lookup::NoData } else { Lookup::NxDomain };
        }
        let name = self.get(address).and_then(|pointer| {
            let of_type = plan.app(pointer.app)?.types.get(pointer.of_type as usize)?;
            let slot = Slot::new(pointer.app, of_type.container_type, pointer.index).ok()?;
            Some(Name::container(plan.network, &slot))
        });
        name.map_or(Lookup::NxDomain, Lookup::Pointer)
    }
}

/// Looks up a reverse name, and counts the labels of its zone; `None` where it stands in no zone of the network.
pub(super) fn find<'a>(reverse: &'a Reverse, plan: &ZonePlan, labels: &[&[u8]]) -> Option<(Lookup<'a>, usize)> {
    let [in_addr, ip6] = ROOTS;
    if let Some(rest) = beneath(labels, in_addr) {
        return find_ipv4(reverse, plan, rest);
    }
    find_ipv6(reverse, plan, plan.ipv6?, beneath(labels, ip6)?)
}

/// The zones of a subnet begin at the octet that its prefix ends in: four for a /22, 256 octets each, and the one around it
/// for what is smaller. In a network nothing else has their addresses.
fn find_ipv4<'a>(reverse: &'a Reverse, plan: &ZonePlan, labels: &[&[u8]]) -> Option<(Lookup<'a>, usize)> {
    let zone = zone_octets(plan.subnet);
    let mut octets = [0; 4];
    let mut given = labels.iter().rev();
    for octet in &mut octets[..zone] {
        *octet = parse_octet(given.next()?)?;
    }
    let first = Ipv4Addr::from(octets);
    let around = plan.subnet.network().octets()[..zone] == octets[..zone];
    if !around && !plan.subnet.contains(first) {
        return None;
    }
    let apex = zone + 2;
    if given.len() == 0 {
        return Some((Lookup::Apex, apex));
    }
    let mut bits = 8 * zone as u32;
    for label in given {
        let (Some(octet), true) = (parse_octet(label), bits < 32) else {
            return Some((Lookup::NxDomain, apex));
        };
        octets[bits as usize / 8] = octet;
        bits += 8;
    }
    Some((reverse.find(plan, Ipv4Addr::from(octets), bits), apex))
}

/// Returns how many octets the names of a subnet's reverse zones say.
pub(super) const fn zone_octets(subnet: Subnet) -> usize {
    match subnet.prefix_len() {
        ..=8 => 1,
        9..=16 => 2,
        17.. => 3,
    }
}

/// The one zone is that of the prefix, 16 labels of four bits.
fn find_ipv6<'a>(
    reverse: &'a Reverse,
    plan: &ZonePlan,
    prefix: Ipv6Prefix,
    labels: &[&[u8]],
) -> Option<(Lookup<'a>, usize)> {
    let (network, mut given) = (prefix.network().to_bits(), labels.iter().rev());
    for place in (64..128).step_by(4).rev() {
        if parse_nibble(given.next()?)? != (network >> place) as u8 & 0xf {
            return None;
        }
    }
    let apex = 16 + 2;
    if given.len() == 0 {
        return Some((Lookup::Apex, apex));
    }
    let (mut low, mut bits) = (0u64, 0);
    for label in given {
        let (Some(nibble), true) = (parse_nibble(label), bits < 64) else {
            return Some((Lookup::NxDomain, apex));
        };
        bits += 4;
        low |= u64::from(nibble) << (64 - bits);
    }
    // The address of a container ends in its IPv4 address; the 32 bits before are zero.
    let Ok(address) = u32::try_from(low) else {
        return Some((Lookup::NxDomain, apex));
    };
    Some((reverse.find(plan, Ipv4Addr::from_bits(address), u32::saturating_sub(bits, 32)), apex))
}

/// Parses the canonical decimal of an octet.
fn parse_octet(label: &[u8]) -> Option<u8> {
    if label == b"0" { Some(0) } else { u8::try_from(super::parse_index(label)?).ok() }
}

fn parse_nibble(label: &[u8]) -> Option<u8> {
    let [digit] = label else {
        return None;
    };
    char::from(*digit).to_digit(16).map(|nibble| nibble as u8)
}
