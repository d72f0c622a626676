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
use crate::zone::{AppBlock, DOMAIN, TypeBlock, Zone, parse_index};

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

/// Finds what several questions ask for, step by step for all of them: what one waits for comes out of memory while the others
/// are under way.
pub(crate) fn look_up<'z>(zone: &'z Zone, plain: &mut [Option<Plain<'_, 'z>>]) {
    for plain in plain.iter_mut().flatten() {
        plain.app = zone.app(plain.app_id);
    }
    for plain in plain.iter_mut().flatten() {
        plain.of_type = plain.app.and_then(|app| app.of_type(plain.type_label));
    }
    for plain in plain.iter_mut().flatten() {
        plain.containers = match (plain.app, plain.of_type, plain.index) {
            (Some(app), Some(of_type), Some(index)) => app.container(of_type, index),
            (Some(app), Some(of_type), None) => Some(app.containers(of_type)),
            // An app that has no `web` has a name all the same.
            (Some(_), None, None) if plain.is_app => Some(&[]),
            _ => None,
        };
    }
}

/// A plain question, and what there is to it.
#[derive(Debug)]
pub(crate) struct Plain<'q, 'z> {
    /// The header and the question.
    question: &'q [u8],
    /// Where the network's domain stands in them.
    domain: u16,
    app_id: AppId,
    /// The type that is asked for; `web` where only an app is named.
    type_label: &'q [u8],
    is_app: bool,
    /// The slot, where one is named.
    index: Option<u32>,
    /// Which addresses are asked for; `None` where containers have no such.
    family: Option<Family>,
    /// What the OPT record says, if there is one.
    payload: Option<u16>,
    dnssec_ok: u8,
    app: Option<&'z AppBlock>,
    of_type: Option<&'z TypeBlock>,
    /// The containers; `None` where the name does not exist.
    containers: Option<&'z [(u32, Ipv4Addr)]>,
}

impl<'q> Plain<'q, '_> {
    /// Reads a plain question of a zone; `None` where it is none.
    pub(crate) fn read(zone: &Zone, query: &'q [u8]) -> Option<Self> {
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
        let app_id = AppId::from_label(label(in_front - 1))?;
        let (type_label, index) = match in_front {
            1 => (&b"web"[..], None),
            2 => (label(0), None),
            _ => (label(1), Some(parse_index(label(0))?)),
        };
        Some(Self {
            question: &query[..HEADER + at + 5],
            domain: (HEADER + before.len()) as u16,
            app_id,
            type_label,
            is_app: in_front == 1,
            index,
            family,
            payload,
            dnssec_ok,
            app: None,
            of_type: None,
            containers: None,
        })
    }

    /// Writes the reply, in place of what is in `reply`.
    pub(crate) fn answer(&self, zone: &Zone, transport: Transport, rng: &mut Rng, reply: &mut Vec<u8>) {
        let opt = self.payload.map_or(0, |_| OPT);
        let room = limit(transport, self.payload).saturating_sub(self.question.len() + opt);
        reply.clear();
        reply.extend_from_slice(self.question);
        let mut flags = QR | AA | u16::from(self.question[2] & 1) << 8;
        let (mut answers, mut authorities) = (0, 0);
        match (self.containers.unwrap_or_default(), self.family) {
            ([], _) | (_, None) => {
                negative(reply, zone, self.domain);
                authorities = 1;
            }
            (containers, Some(family)) => {
                answers = add_addresses(reply, room, (family, zone.ttl()), containers, rng);
                if answers < containers.len() {
                    flags |= TC;
                }
            }
        }
        if self.containers.is_none() {
            flags |= Rcode::NxDomain as u16;
        }
        if opt > 0 {
            let [high, low] = PAYLOAD.to_be_bytes();
            reply.extend_from_slice(&[0, 0, TYPE_OPT as u8, high, low, 0, 0, self.dnssec_ok, 0, 0, 0]);
        }
        let ([f, g], [a, b]) = (flags.to_be_bytes(), (answers as u16).to_be_bytes());
        reply[2..HEADER].copy_from_slice(&[f, g, 0, 1, a, b, 0, authorities, 0, u8::from(opt > 0)]);
    }
}

/// OPT as the low octet of its two.
const TYPE_OPT_LOW: u8 = TYPE_OPT as u8;
