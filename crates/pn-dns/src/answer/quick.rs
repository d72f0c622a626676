//! The quick way for what nearly every query asks: the addresses of a name of the network, without EDNS options.
//!
//! It takes what it is sure of and leaves the rest. What it answers, it answers octet for octet as the long way does, which
//! tests hold it to.

use core::net::Ipv4Addr;

use fastrand::Rng;
use pn_core::{AppId, Transport};

use super::limit;
use crate::rcode::Rcode;
use crate::wire::{AA, CLASS_IN, Family, PAYLOAD, QR, TC, TYPE_A, TYPE_AAAA, TYPE_OPT, add_addresses, negative};
use crate::zone::{DOMAIN, Zone, parse_index};

const HEADER: usize = 12;

/// Length of an OPT record without options.
const OPT: usize = 11;

/// The flags and counts of a plain query: any id, RD or not, one question, one additional record or none.
const FLAGS: u8 = 0xf8;
const COUNTS: [u8; 7] = [0, 1, 0, 0, 0, 0, 0];

/// A name has a label for container, type, app and network, and two of the suffix.
const MAX_LABELS: usize = 6;

/// The longest label.
const MAX_LABEL: usize = 63;

/// Answers a plain question; `false` where it is none, and then `reply` is as it was.
pub(super) fn answer(zone: &Zone, transport: Transport, query: &[u8], rng: &mut Rng, reply: &mut Vec<u8>) -> bool {
    let Some(plain) = Plain::read(zone, query) else {
        return false;
    };
    let opt = plain.payload.map_or(0, |_| OPT);
    let room = limit(transport, plain.payload).saturating_sub(plain.question.len() + opt);
    reply.clear();
    reply.extend_from_slice(plain.question);
    let mut flags = QR | AA | u16::from(query[2] & 1) << 8;
    let (mut answers, mut authorities) = (0, 0);
    match (plain.containers.unwrap_or_default(), plain.family) {
        ([], _) | (_, None) => {
            negative(reply, zone, plain.domain);
            authorities = 1;
        }
        (containers, Some(family)) => {
            answers = add_addresses(reply, room, (family, zone.ttl()), containers, rng);
            if answers < containers.len() {
                flags |= TC;
            }
        }
    }
    if plain.containers.is_none() {
        flags |= Rcode::NxDomain as u16;
    }
    if opt > 0 {
        let [high, low] = PAYLOAD.to_be_bytes();
        reply.extend_from_slice(&[0, 0, TYPE_OPT as u8, high, low, 0, 0, plain.dnssec_ok, 0, 0, 0]);
    }
    let ([f, g], [a, b]) = (flags.to_be_bytes(), (answers as u16).to_be_bytes());
    reply[2..HEADER].copy_from_slice(&[f, g, 0, 1, a, b, 0, authorities, 0, u8::from(opt > 0)]);
    true
}

/// A plain question, and what there is to it.
struct Plain<'q, 'z> {
    /// The header and the question.
    question: &'q [u8],
    /// Where the network's domain stands in them.
    domain: u16,
    /// The containers; `None` where the name does not exist.
    containers: Option<&'z [(u32, Ipv4Addr)]>,
    /// Which addresses are asked for; `None` where containers have no such.
    family: Option<Family>,
    /// What the OPT record says, if there is one.
    payload: Option<u16>,
    dnssec_ok: u8,
}

impl<'q, 'z> Plain<'q, 'z> {
    fn read(zone: &'z Zone, query: &'q [u8]) -> Option<Self> {
        let (header, rest) = query.split_first_chunk::<HEADER>()?;
        if header[2] & FLAGS != 0 || header[4..11] != COUNTS {
            return None;
        }
        let (mut starts, mut count, mut at) = ([0; MAX_LABELS], 0, 0);
        loop {
            let len = usize::from(*rest.get(at)?);
            if len == 0 {
                break;
            }
            if len > MAX_LABEL || count == MAX_LABELS {
                return None;
            }
            starts[count] = at;
            count += 1;
            at += 1 + len;
        }
        let name = rest.get(..=at)?;
        // The domain and at least an app before it.
        let (before, domain) = name.split_last_chunk::<DOMAIN>()?;
        let in_front = count.checked_sub(3).filter(|in_front| *in_front > 0)?;
        if starts[in_front] != before.len() || !domain.eq_ignore_ascii_case(zone.domain()) {
            return None;
        }
        let (question, tail) = rest.get(at + 1..)?.split_first_chunk::<4>()?;
        let [t, u, c, d] = *question;
        if u16::from_be_bytes([c, d]) != CLASS_IN {
            return None;
        }
        let family = match u16::from_be_bytes([t, u]) {
            TYPE_A => Some(Family::V4),
            TYPE_AAAA => zone.plan().ipv6.map(Family::V6),
            _ => return None,
        };
        let (payload, dnssec_ok) = match (header[11], tail) {
            (0, []) => (None, 0),
            (1, [0, 0, TYPE_OPT_LOW, high, low, 0, 0, flags, _, 0, 0]) => {
                (Some(u16::from_be_bytes([*high, *low])), flags & 0x80)
            }
            _ => return None,
        };
        let label = |n: usize| {
            let start = starts[n];
            &before[start + 1..][..usize::from(before[start])]
        };
        let app = zone.app(AppId::from_label(label(in_front - 1))?);
        let containers = match in_front {
            1 => app.map(|app| app.web()),
            2 => app.and_then(|app| Some(app.containers(app.of_type(label(0))?))),
            _ => {
                let index = parse_index(label(0))?;
                app.and_then(|app| app.container(app.of_type(label(1))?, index))
            }
        };
        let question = &query[..HEADER + at + 5];
        Some(Self { question, domain: (HEADER + before.len()) as u16, containers, family, payload, dnssec_ok })
    }
}

/// OPT as the low octet of its two.
const TYPE_OPT_LOW: u8 = TYPE_OPT as u8;
