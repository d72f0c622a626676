//! Messages as they are sent, written octet by octet.

use fastrand::Rng;
use pn_core::Name;

use super::addresses::record;
use super::{
    AA, CLASS_IN, Family, HEADER, OPT, OPTION_COOKIE, OPTION_NSID, PAYLOAD, QR, Query, RD, RECORD, TC, TYPE_A, TYPE_NS,
    TYPE_OPT, TYPE_PTR, TYPE_SOA, TYPE_SRV, put, write_addresses,
};
use crate::cookie::Cookies;
use crate::rcode::Rcode;
use crate::zone::Zone;

/// A pointer to the beginning of a message, to which an offset is added (RFC 1035 §4.1.4).
const POINTER: u16 = 0xc000;

/// The bit of an OPT record's flags that says "DNSSEC OK", which is copied into the reply (RFC 3225 §3).
const DO: u16 = 1 << 15;

/// REFRESH, RETRY and EXPIRE of an SOA record: what RFC 6303 §3 gives to zones that nobody transfers.
const SOA_TIMERS: [u32; 3] = [3600, 1200, 604_800];

/// RNAME of an SOA record, `nobody.invalid.`, from the same place.
const NOBODY: &[u8] = b"\x06nobody\x07invalid\0";

/// The longest name in wire form, in octets.
const MAX_NAME: usize = 255;

/// What a server says of itself in a reply, where it is asked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extra<'a> {
    pub(crate) nsid: Option<&'a [u8]>,
    pub(crate) cookies: Option<Cookies<'a>>,
}

/// A reply in the making: the question repeated as it came, answers, authority, OPT.
#[derive(Debug)]
pub(crate) struct Writer<'q, 'r> {
    query: &'q Query<'q>,
    limit: usize,
    octets: &'r mut Vec<u8>,
    /// The options of the OPT record.
    options: Vec<u8>,
    flags: u16,
    answers: u16,
    authorities: u16,
}

impl<'q, 'r> Writer<'q, 'r> {
    /// Starts the reply to a query, of at most `limit` octets. A question and one SOA record always fit into 512.
    pub(crate) fn new(query: &'q Query<'q>, limit: usize, extra: Extra<'_>, octets: &'r mut Vec<u8>) -> Self {
        octets.clear();
        octets.resize(HEADER, 0);
        octets.extend_from_slice(query.question);
        let mut options = Vec::new();
        let mut option = |code: u16, data: &[u8]| {
            options.extend_from_slice(&code.to_be_bytes());
            options.extend_from_slice(&(data.len() as u16).to_be_bytes());
            options.extend_from_slice(data);
        };
        if let Some(nsid) = extra.nsid.filter(|_| query.asks_nsid()) {
            option(OPTION_NSID, nsid);
        }
        if let Some(cookie) = query.cookie().zip(extra.cookies).and_then(|(cookie, cookies)| cookies.reply(&cookie)) {
            option(OPTION_COOKIE, &cookie);
        }
        let flags = QR | query.header.flags & RD;
        Self { query, limit, octets, options, flags, answers: 0, authorities: 0 }
    }

    /// Says that the answer comes from the one who knows.
    pub(crate) const fn set_authoritative(&mut self) {
        self.flags |= AA;
    }

    /// Says that there is more than fits.
    pub(crate) const fn set_truncated(&mut self) {
        self.flags |= TC;
    }

    /// Returns how many more octets fit.
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.octets.len() + self.opt_len())
    }

    /// Adds the addresses of containers.
    pub(crate) fn addresses(&mut self, of: (Family, u32), containers: &[(u32, core::net::Ipv4Addr)], rng: &mut Rng) {
        let fits = containers.len().min(self.room() / of.0.record_len());
        let begin = self.octets.len();
        self.octets.resize(begin + fits * of.0.record_len(), 0);
        write_addresses(&mut self.octets[begin..], of, containers, |(_, address)| *address, rng);
        self.answers += fits as u16;
        if fits < containers.len() {
            self.set_truncated();
        }
    }

    /// Adds an SRV record that leads to a container, whose name is never compressed (RFC 2782). Returns whether it fits.
    pub(crate) fn service(&mut self, ttl: u32, port: u16, target: &Name) -> bool {
        let mut name = [0; MAX_NAME];
        let name = encode(target, &mut name);
        let len = 6 + name.len();
        if self.room() < RECORD + len {
            return false;
        }
        self.octets.extend_from_slice(&record(TYPE_SRV, ttl, len));
        // All containers of a type are alike: one priority, no weight.
        self.octets.extend_from_slice(&[0, 0, 0, 0]);
        self.octets.extend_from_slice(&port.to_be_bytes());
        self.octets.extend_from_slice(name);
        self.answers += 1;
        true
    }

    /// Adds a PTR record.
    pub(crate) fn pointer(&mut self, ttl: u32, target: &Name) {
        let mut name = [0; MAX_NAME];
        let name = encode(target, &mut name);
        self.octets.extend_from_slice(&record(TYPE_PTR, ttl, name.len()));
        self.octets.extend_from_slice(name);
        self.answers += 1;
    }

    /// Adds the NS record of the name in question: itself (RFC 6303 §3).
    pub(crate) fn name_server(&mut self, ttl: u32) {
        self.octets.extend_from_slice(&record(TYPE_NS, ttl, 2));
        self.octets.extend_from_slice(&(POINTER | HEADER as u16).to_be_bytes());
        self.answers += 1;
    }

    /// Adds the SOA record of the name in question.
    pub(crate) fn authority(&mut self, zone: &Zone) {
        self.octets.extend_from_slice(&negative(zone, HEADER as u16));
        self.answers += 1;
    }

    /// Adds the SOA record that says how long a denial may be kept (RFC 2308 §3), of as many labels of the question.
    pub(crate) fn deny(&mut self, zone: &Zone, labels: usize) {
        self.octets.extend_from_slice(&negative(zone, self.query.offset_of_last(labels)));
        self.authorities += 1;
    }

    /// Completes the reply.
    pub(crate) fn finish(self, rcode: Rcode) {
        let rcode = rcode as u16;
        if let Some(edns) = self.query.edns {
            self.octets.push(0);
            let flags = if edns.dnssec_ok { DO } else { 0 };
            for word in [TYPE_OPT, PAYLOAD, rcode >> 4 << 8, flags, self.options.len() as u16] {
                self.octets.extend_from_slice(&word.to_be_bytes());
            }
            self.octets.extend_from_slice(&self.options);
        }
        let additional = u16::from(self.query.edns.is_some());
        let header = [self.query.header.id, self.flags | rcode & 0xf, 1, self.answers, self.authorities, additional];
        for (n, word) in header.into_iter().enumerate() {
            put(self.octets, 2 * n, word);
        }
    }

    fn opt_len(&self) -> usize {
        if self.query.edns.is_some() { OPT + self.options.len() } else { 0 }
    }
}

/// Length of an SOA record whose name is written elsewhere in the message.
pub(crate) const NEGATIVE: usize = RECORD + 2 + NOBODY.len() + 5 * size_of::<u32>();

/// Returns the SOA record of a zone whose apex stands at an offset of the message.
pub(crate) fn negative(zone: &Zone, apex: u16) -> [u8; NEGATIVE] {
    let (ttl, apex) = (zone.negative_ttl(), (POINTER | apex).to_be_bytes());
    let (mut octets, mut at) = ([0; NEGATIVE], 0);
    let mut put = |part: &[u8]| {
        octets[at..][..part.len()].copy_from_slice(part);
        at += part.len();
    };
    let mut record = record(TYPE_SOA, ttl, apex.len() + NOBODY.len() + 5 * size_of::<u32>());
    record[..2].copy_from_slice(&apex);
    put(&record);
    put(&apex);
    put(NOBODY);
    let [refresh, retry, expire] = SOA_TIMERS;
    [zone.serial(), refresh, retry, expire, ttl].into_iter().for_each(|number| put(&number.to_be_bytes()));
    octets
}

/// Writes a name in wire form.
fn encode<'b>(name: &Name, buffer: &'b mut [u8; MAX_NAME]) -> &'b [u8] {
    let mut text = [0; Name::MAX_LEN];
    let mut at = 0;
    for label in name.encode(&mut text).split('.') {
        buffer[at] = label.len() as u8;
        buffer[at + 1..][..label.len()].copy_from_slice(label.as_bytes());
        at += 1 + label.len();
    }
    // The root, which is there already.
    &buffer[..=at]
}

/// Writes a query for the addresses of a name in wire form, as a stub resolver sends it.
pub(crate) fn write_query(id: u16, name: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(HEADER + name.len() + 4 + OPT);
    for word in [id, RD, 1, 0, 0, 1] {
        octets.extend_from_slice(&word.to_be_bytes());
    }
    octets.extend_from_slice(name);
    for word in [TYPE_A, CLASS_IN] {
        octets.extend_from_slice(&word.to_be_bytes());
    }
    octets.push(0);
    for word in [TYPE_OPT, PAYLOAD, 0, 0, 0] {
        octets.extend_from_slice(&word.to_be_bytes());
    }
    octets
}
