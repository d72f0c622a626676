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

impl Family {
    /// Returns the length of a record with an address, in octets.
    pub(crate) const fn record_len(self) -> usize {
        match self {
            Self::V4 => RECORD + 4,
            Self::V6(_) => RECORD + 16,
        }
    }
}

/// Fills `out` with records of containers' addresses, owned by the name in question, in random order: a random part of them
/// where it has no room for all.
pub(crate) fn write_addresses<C>(
    out: &mut [u8],
    (family, ttl): (Family, u32),
    containers: &[C],
    address: impl Fn(&C) -> Ipv4Addr,
    rng: &mut Rng,
) {
    match family {
        Family::V4 => write(out, (TYPE_A, ttl), containers, rng, |container| address(container).octets()),
        Family::V6(prefix) => {
            write(out, (TYPE_AAAA, ttl), containers, rng, |container| prefix.address(address(container)).octets());
        }
    }
}

fn write<C, const N: usize>(
    out: &mut [u8],
    (record_type, ttl): (u16, u32),
    containers: &[C],
    rng: &mut Rng,
    data: impl Fn(&C) -> [u8; N],
) {
    let (record, len) = (record(record_type, ttl, N), RECORD + N);
    if out.len() < containers.len() * len {
        // A random part in random order.
        let mut part: Vec<&C> = containers.iter().collect();
        for (n, out) in out.chunks_exact_mut(len).enumerate() {
            part.swap(n, rng.usize(n..containers.len()));
            out[..RECORD].copy_from_slice(&record);
            out[RECORD..].copy_from_slice(&data(part[n]));
        }
        return;
    }
    for (n, container) in containers.iter().enumerate() {
        let (before, rest) = out.split_at_mut(n * len);
        let (this, data) = (&mut rest[..len], data(container));
        this[..RECORD].copy_from_slice(&record);
        // Every order is as likely as every other: each changes places with one of those before, or with none.
        let other = if n == 0 { 0 } else { rng.usize(..=n) };
        if other == n {
            this[RECORD..].copy_from_slice(&data);
        } else {
            let other = &mut before[other * len..][RECORD..len];
            this[RECORD..].copy_from_slice(other);
            other.copy_from_slice(&data);
        }
    }
}

/// Returns a record without its data, owned by the name in question.
pub(super) fn record(record_type: u16, ttl: u32, len: usize) -> [u8; RECORD] {
    let ([t, u], [c, d], [a, b, e, f], [l, m]) =
        (record_type.to_be_bytes(), CLASS_IN.to_be_bytes(), ttl.to_be_bytes(), (len as u16).to_be_bytes());
    [0xc0, HEADER as u8, t, u, c, d, a, b, e, f, l, m]
}
