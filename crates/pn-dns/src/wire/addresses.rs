//! Address records, in random order.

use core::net::Ipv4Addr;

use fastrand::Rng;
use pn_core::Ipv6Prefix;

use super::{CLASS_IN, HEADER, RECORD, TYPE_A, TYPE_AAAA};

/// Which addresses of containers are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    /// A records.
    V4,
    /// AAAA records: the addresses of a prefix that end in the IPv4 ones.
    V6(Ipv6Prefix),
}

/// Adds the addresses of containers, owned by the name in question, in random order, as far as they fit into this many
/// octets: a random part of them where not all do. Returns how many were added.
pub(crate) fn add_addresses(
    reply: &mut Vec<u8>,
    room: usize,
    (family, ttl): (Family, u32),
    containers: &[(u32, Ipv4Addr)],
    rng: &mut Rng,
) -> usize {
    match family {
        Family::V4 => add(reply, room, (TYPE_A, ttl), containers, rng, |address| address.octets()),
        Family::V6(prefix) => {
            add(reply, room, (TYPE_AAAA, ttl), containers, rng, |address| prefix.address(address).octets())
        }
    }
}

fn add<const N: usize>(
    reply: &mut Vec<u8>,
    room: usize,
    (record_type, ttl): (u16, u32),
    containers: &[(u32, Ipv4Addr)],
    rng: &mut Rng,
    data: impl Fn(Ipv4Addr) -> [u8; N],
) -> usize {
    let record = record(record_type, ttl, N);
    let (fit, begin) = (room / (RECORD + N), reply.len());
    if containers.len() > fit {
        // A random part in random order.
        let mut addresses: Vec<Ipv4Addr> = containers.iter().map(|(_, address)| *address).collect();
        for n in 0..fit {
            addresses.swap(n, rng.usize(n..containers.len()));
            reply.extend_from_slice(&record);
            reply.extend_from_slice(&data(addresses[n]));
        }
        return fit;
    }
    for (n, (_, address)) in containers.iter().enumerate() {
        reply.extend_from_slice(&record);
        reply.extend_from_slice(&data(*address));
        // Every order is as likely as every other: each changes places with one of those before, or with none.
        let at = |n: usize| begin + n * (RECORD + N) + RECORD;
        let other = if n == 0 { 0 } else { rng.usize(..=n) };
        if other != n {
            reply.copy_within(at(other)..at(other) + N, at(n));
            reply[at(other)..][..N].copy_from_slice(&data(*address));
        }
    }
    containers.len()
}

/// Returns a record without its data, owned by the name in question.
pub(super) fn record(record_type: u16, ttl: u32, len: usize) -> [u8; RECORD] {
    let ([t, u], [c, d], [a, b, e, f], [l, m]) =
        (record_type.to_be_bytes(), CLASS_IN.to_be_bytes(), ttl.to_be_bytes(), (len as u16).to_be_bytes());
    [0xc0, HEADER as u8, t, u, c, d, a, b, e, f, l, m]
}
