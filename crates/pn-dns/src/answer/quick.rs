//! The quick way for what nearly every query asks: the addresses of a name of the network, without EDNS options.
//!
//! It takes what it is sure of and leaves the rest. What it answers, it answers octet for octet as the long way does, which
//! tests hold it to.

use core::net::Ipv4Addr;
use core::num::NonZeroU32;

use fastrand::Rng;
use pn_core::{AppId, Transport};

use super::limit;
use crate::rcode::Rcode;
use crate::wire::{
    AA, CLASS_IN, Family, NEGATIVE, PAYLOAD, QR, TC, TYPE_A, TYPE_AAAA, TYPE_OPT, negative, write_addresses,
};
use crate::zone::{AppBlock, DOMAIN, Key, Zone, parse_index};

const HEADER: usize = 12;

/// Length of an OPT record without options.
const OPT: usize = 11;

/// The flags and counts of a plain query: any id, RD or not, one question, one additional record or none.
const FLAGS: u8 = 0xf8;
const COUNTS: [u8; 7] = [0, 1, 0, 0, 0, 0, 0];

/// The longest label.
const MAX_LABEL: u8 = 63;

/// Finds what several questions ask for, step by step for all of them: what one waits for comes out of memory while the others
/// are under way.
pub(crate) fn look_up<'q, 'z>(
    zone: &'z Zone,
    queries: impl Iterator<Item = &'q [u8]>,
    plain: &mut [Option<Plain<'z>>],
) {
    for plain in plain.iter_mut().flatten() {
        plain.app = zone.app(plain.app_id);
    }
    for (query, plain) in queries.zip(plain.iter_mut()) {
        let Some(plain) = plain else { continue };
        let label = query.get(usize::from(plain.type_label)..).and_then(|rest| rest.get(..plain.type_len.into()));
        plain.position = plain.app.and_then(|app| app.position(plain.key, label.unwrap_or_default()));
    }
    for plain in plain.iter_mut().flatten() {
        let Some(app) = plain.app else { continue };
        plain.addresses = match (plain.position.and_then(|position| app.block(position)), plain.index) {
            (Some(of_type), Some(index)) => of_type.address(index.get()),
            (Some(of_type), None) => Some(of_type.addresses),
            // An app that has no `web` has a name all the same.
            (None, None) if plain.is_app => Some(&[]),
            (None, _) => None,
        };
    }
}

/// The type whose containers an app's own name stands for.
const WEB: &[u8] = b"web";

/// A plain question, and what there is to it.
#[derive(Debug)]
pub(crate) struct Plain<'z> {
    app_id: AppId,
    key: Key,
    app: Option<&'z AppBlock>,
    /// The containers' addresses; `None` where the name does not exist.
    addresses: Option<&'z [[u8; 4]]>,
    /// Where the type stands in the plan of the app.
    position: Option<u32>,
    /// The slot, where one is named.
    index: Option<NonZeroU32>,
    /// Length of the header and the question.
    len: u16,
    /// Where the network's domain stands in them.
    domain: u16,
    /// Where the label of the type stands that is asked for, and its length; 0 where only an app is named, which is asked for
    /// its `web`.
    type_label: u16,
    type_len: u8,
    /// What the OPT record says, if there is one.
    payload: Option<u16>,
    dnssec_ok: u8,
    is_app: bool,
    is_ipv6: bool,
}

impl<'z> Plain<'z> {
    /// Reads a plain question of a zone; `None` where it is none.
    pub(crate) fn read(zone: &Zone, query: &[u8]) -> Option<Self> {
        let (header, question) = query.split_first_chunk::<HEADER>()?;
        let [_, _, flags, _, counts @ .., additional] = *header;
        if flags & FLAGS != 0 || counts != COUNTS {
            return None;
        }
        // What is looked for stands at the end, and so the end comes first.
        let (question, payload, dnssec_ok) = match additional {
            0 => (question, None, 0),
            1 => {
                let (question, opt) = question.split_last_chunk::<OPT>()?;
                let [0, 0, TYPE_OPT_LOW, high, low, 0, 0, flags, _, 0, 0] = *opt else {
                    return None;
                };
                (question, Some(u16::from_be_bytes([high, low])), flags & 0x80)
            }
            _ => return None,
        };
        let (name, [t, u, c, d]) = question.split_last_chunk()?;
        let is_ipv6 = match (u16::from_be_bytes([*t, *u]), u16::from_be_bytes([*c, *d])) {
            (TYPE_A, CLASS_IN) => false,
            (TYPE_AAAA, CLASS_IN) => true,
            _ => return None,
        };
        let (before, domain) = name.split_last_chunk::<DOMAIN>()?;
        // Nearly everybody asks in lower case.
        if domain != zone.domain() && !domain.eq_ignore_ascii_case(zone.domain()) {
            return None;
        }
        let (front, app) = before.split_last_chunk::<{ 1 + AppId::LEN }>()?;
        let app_id = app.strip_prefix(&[AppId::LEN as u8]).and_then(AppId::from_label)?;
        let (of_type, index) = match split_label(front) {
            None if front.is_empty() => (None, None),
            Some((of_type, [])) => (Some((1, of_type.len())), None),
            Some((index, rest)) => {
                let (of_type, []) = split_label(rest)? else {
                    return None;
                };
                (Some((index.len() + 2, of_type.len())), Some(NonZeroU32::new(parse_index(index)?)?))
            }
            None => return None,
        };
        let (key, type_label, type_len) = match of_type {
            None => (Key::new(WEB), 0, 0),
            // The app and the domain follow, so there is as much as a key takes.
            Some((at, len)) => (Key::of_longer(name.get(at..)?.first_chunk()?, len as u8), HEADER + at, len),
        };
        Some(Self {
            app_id,
            key,
            app: None,
            addresses: None,
            position: None,
            index,
            len: (HEADER + question.len()) as u16,
            domain: (HEADER + before.len()) as u16,
            type_label: type_label as u16,
            type_len: type_len as u8,
            payload,
            dnssec_ok,
            is_app: of_type.is_none(),
            is_ipv6,
        })
    }

    /// Returns which addresses the reply has and how many; `None` where it says that there are none.
    fn records(&self, zone: &Zone, transport: Transport) -> Option<(Family, usize)> {
        let family = if self.is_ipv6 { zone.plan().ipv6.map(Family::V6)? } else { Family::V4 };
        let addresses = self.addresses.filter(|addresses| !addresses.is_empty())?;
        let room = limit(transport, self.payload).saturating_sub(usize::from(self.len) + self.opt());
        Some((family, addresses.len().min(room / family.record_len())))
    }

    const fn opt(&self) -> usize {
        if self.payload.is_some() { OPT } else { 0 }
    }

    /// Returns the length of the reply, in octets.
    pub(crate) fn reply_len(&self, zone: &Zone, transport: Transport) -> usize {
        let records = self.records(zone, transport).map_or(NEGATIVE, |(family, fits)| fits * family.record_len());
        usize::from(self.len) + records + self.opt()
    }

    /// Writes the reply over the query, which stands at the beginning of as many octets as the reply has or more. Returns
    /// its length.
    pub(crate) fn answer(&self, zone: &Zone, transport: Transport, rng: &mut Rng, octets: &mut [u8]) -> usize {
        let (question, rest) = octets.split_at_mut(usize::from(self.len));
        let mut flags = QR | AA | u16::from(question[2] & 1) << 8;
        let (answers, authorities, len) = match self.records(zone, transport) {
            Some((family, fits)) => {
                let (addresses, len) = (self.addresses.unwrap_or_default(), fits * family.record_len());
                let address = |octets: &[u8; 4]| Ipv4Addr::from_octets(*octets);
                write_addresses(&mut rest[..len], (family, zone.ttl()), addresses, address, rng);
                if fits < addresses.len() {
                    flags |= TC;
                }
                (fits as u16, 0, len)
            }
            None => {
                rest[..NEGATIVE].copy_from_slice(&negative(zone, self.domain));
                (0, 1, NEGATIVE)
            }
        };
        if self.addresses.is_none() {
            flags |= Rcode::NxDomain as u16;
        }
        if self.payload.is_some() {
            let [high, low] = PAYLOAD.to_be_bytes();
            rest[len..][..OPT].copy_from_slice(&[0, 0, TYPE_OPT_LOW, high, low, 0, 0, self.dnssec_ok, 0, 0, 0]);
        }
        let ([f, g], [a, b]) = (flags.to_be_bytes(), answers.to_be_bytes());
        question[2..HEADER].copy_from_slice(&[f, g, 0, 1, a, b, 0, authorities, 0, u8::from(self.payload.is_some())]);
        usize::from(self.len) + len + self.opt()
    }
}

/// Splits what begins with a label that is not the root into the label and the rest.
fn split_label(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = octets.split_first()?;
    rest.split_at_checked((1..=MAX_LABEL).contains(len).then_some(*len)?.into())
}

/// OPT as the low octet of its two.
const TYPE_OPT_LOW: u8 = TYPE_OPT as u8;
