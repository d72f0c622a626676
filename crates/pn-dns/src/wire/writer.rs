//! Messages as they are sent, written octet by octet.

use core::net::Ipv4Addr;

use super::{AA, ADDRESS, CLASS_IN, HEADER, OPT, PAYLOAD, QR, Query, RD, Rcode, TC, TYPE_A, TYPE_OPT, TYPE_SOA, put};

/// A pointer to the name of the question, which follows the header (RFC 1035 §4.1.4).
const POINTER: u16 = 0xc000;

/// The bit of an OPT record's flags that says "DNSSEC OK", which is copied into the reply (RFC 3225 §3).
const DO: u16 = 1 << 15;

/// REFRESH, RETRY and EXPIRE of an SOA record: what RFC 6303 §3 gives to zones that nobody transfers.
const SOA_TIMERS: [u32; 3] = [3600, 1200, 604_800];

/// RNAME of an SOA record, `nobody.invalid.`, from the same place.
const NOBODY: &[u8] = b"\x06nobody\x07invalid\0";

/// A reply in the making: the question repeated as it came, answers, authority, OPT.
#[derive(Debug)]
pub(crate) struct Writer<'q> {
    query: &'q Query<'q>,
    limit: usize,
    octets: Vec<u8>,
    flags: u16,
    answers: u16,
    authorities: u16,
}

/// An SOA record, as far as it is not the same everywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Soa {
    /// Its owner: as many labels from the right of the name in question.
    pub(crate) labels: usize,
    /// SERIAL.
    pub(crate) serial: u32,
    /// Its time to live and its MINIMUM, in seconds.
    pub(crate) ttl: u32,
}

impl<'q> Writer<'q> {
    /// Starts the reply to a query, of at most `limit` octets. A question and one SOA record always fit into 512.
    pub(crate) fn new(query: &'q Query<'q>, limit: usize) -> Self {
        let mut octets = Vec::with_capacity(HEADER + query.question.len() + ADDRESS + OPT);
        octets.resize(HEADER, 0);
        octets.extend_from_slice(query.question);
        Self { query, limit, octets, flags: QR | query.header.flags & RD, answers: 0, authorities: 0 }
    }

    /// Says that the answer comes from the one who knows.
    pub(crate) const fn set_authoritative(&mut self) {
        self.flags |= AA;
    }

    /// Says that there is more than fits.
    pub(crate) const fn set_truncated(&mut self) {
        self.flags |= TC;
    }

    /// Returns how many more addresses fit.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.octets.len() + self.opt_len()) / ADDRESS
    }

    /// Adds A records of the name in question.
    pub(crate) fn addresses(&mut self, ttl: u32, addresses: impl ExactSizeIterator<Item = Ipv4Addr>) {
        self.octets.reserve(addresses.len() * ADDRESS + self.opt_len());
        let mut record = [0; ADDRESS];
        put(&mut record, 0, POINTER | HEADER as u16);
        put(&mut record, 2, TYPE_A);
        put(&mut record, 4, CLASS_IN);
        record[6..10].copy_from_slice(&ttl.to_be_bytes());
        put(&mut record, 10, 4);
        for address in addresses {
            record[12..].copy_from_slice(&address.octets());
            self.octets.extend_from_slice(&record);
            self.answers += 1;
        }
    }

    /// Adds an SOA record to the answer.
    pub(crate) fn answer_soa(&mut self, soa: Soa) {
        self.soa(soa);
        self.answers += 1;
    }

    /// Adds the SOA record that says how long a denial may be kept (RFC 2308 §3).
    pub(crate) fn deny(&mut self, soa: Soa) {
        self.soa(soa);
        self.authorities += 1;
    }

    /// Completes the reply.
    pub(crate) fn finish(mut self, rcode: Rcode) -> Vec<u8> {
        let rcode = rcode as u16;
        if let Some(edns) = self.query.edns {
            self.octets.push(0);
            let flags = if edns.dnssec_ok { DO } else { 0 };
            for word in [TYPE_OPT, PAYLOAD, rcode >> 4 << 8, flags, 0] {
                self.octets.extend_from_slice(&word.to_be_bytes());
            }
        }
        let additional = u16::from(self.query.edns.is_some());
        let header = [self.query.header.id, self.flags | rcode & 0xf, 1, self.answers, self.authorities, additional];
        for (n, word) in header.into_iter().enumerate() {
            put(&mut self.octets, 2 * n, word);
        }
        self.octets
    }

    fn opt_len(&self) -> usize {
        if self.query.edns.is_some() { OPT } else { 0 }
    }

    fn soa(&mut self, soa: Soa) {
        let apex = (POINTER | self.query.offset_of_last(soa.labels)).to_be_bytes();
        let [refresh, retry, expire] = SOA_TIMERS;
        let data_len = apex.len() + NOBODY.len() + 5 * size_of::<u32>();
        self.octets.extend_from_slice(&apex);
        self.octets.extend_from_slice(&TYPE_SOA.to_be_bytes());
        self.octets.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.octets.extend_from_slice(&soa.ttl.to_be_bytes());
        self.octets.extend_from_slice(&(data_len as u16).to_be_bytes());
        self.octets.extend_from_slice(&apex);
        self.octets.extend_from_slice(NOBODY);
        for number in [soa.serial, refresh, retry, expire, soa.ttl] {
            self.octets.extend_from_slice(&number.to_be_bytes());
        }
    }
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
