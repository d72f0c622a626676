//! DNS messages (RFC 1035 §4, RFC 6891). A query's header and question are read in place and its records by
//! `hickory-proto`, which also reads what other servers send; what is sent is written by hand.
//!
//! No other file names `hickory-proto`, but for the tests' `eye` that reads every reply with it.

use hickory_proto::op::{Message, OpCode, Query as Question};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::cookie::Cookie;
use crate::rcode::Rcode;
use crate::stub::{Reply, StubError};

pub(crate) use self::addresses::{Family, write_addresses};
pub(crate) use self::writer::{Extra, NEGATIVE, Writer, negative, write_query};

mod addresses;
#[cfg(test)]
pub(crate) mod eye;
pub(crate) mod reading;
mod writer;

/// Length of a header, in octets.
const HEADER: usize = 12;

/// The most labels, octets of a label and octets of a name there are, the root counted (RFC 1035 §2.3.4).
const MAX_LABELS: usize = 127;
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 255;

/// Length of an OPT record without options, in octets.
const OPT: usize = 11;

/// Length of a record whose owner is a pointer, without its data, in octets.
const RECORD: usize = 12;

/// The payload that is offered to clients over UDP: what fits every path (DNS flag day 2020).
pub(crate) const PAYLOAD: u16 = 1232;

pub(crate) const QR: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
pub(crate) const AA: u16 = 1 << 10;
pub(crate) const TC: u16 = 1 << 9;
pub(crate) const RD: u16 = 1 << 8;

pub(crate) const TYPE_A: u16 = 1;
const TYPE_NS: u16 = 2;
const TYPE_SOA: u16 = 6;
const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
pub(crate) const TYPE_OPT: u16 = 41;
const TYPE_IXFR: u16 = 251;
const TYPE_AXFR: u16 = 252;
const TYPE_ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;

/// Codes of EDNS options.
const OPTION_NSID: u16 = 3;
const OPTION_COOKIE: u16 = 10;

/// What is asked for, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryType {
    /// A.
    Ipv4,
    /// AAAA.
    Ipv6,
    /// SOA.
    Authority,
    /// NS.
    NameServer,
    /// PTR.
    Pointer,
    /// SRV.
    Service,
    /// ANY.
    Any,
    /// AXFR or IXFR.
    Transfer,
    /// Anything else.
    Other,
}

/// The header of a query, read without looking further.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    id: u16,
    flags: u16,
    /// QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT.
    counts: [u16; 4],
}

impl Header {
    /// Reads the header of a query; `None` for what is too short to have one and for what is a reply.
    pub(crate) fn of_query(message: &[u8]) -> Option<Self> {
        Self::read(message).filter(|header| header.flags & QR == 0)
    }

    fn read(message: &[u8]) -> Option<Self> {
        let octets: &[u8; HEADER] = message.first_chunk()?;
        let word = |n: usize| u16::from_be_bytes([octets[2 * n], octets[2 * n + 1]]);
        Some(Self { id: word(0), flags: word(1), counts: [word(2), word(3), word(4), word(5)] })
    }

    /// Writes a reply that is nothing but a header.
    pub(crate) fn reply(self, rcode: Rcode, octets: &mut Vec<u8>) {
        octets.clear();
        octets.resize(HEADER, 0);
        put(octets, 0, self.id);
        put(octets, 2, QR | self.flags & (OPCODE | RD) | rcode as u16);
    }
}

/// A query with one question.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    header: Header,
    /// The question as it came: name, type, class.
    question: &'a [u8],
    /// Where each label of the name starts in the question, and how many there are.
    labels: ([u8; MAX_LABELS], usize),
    edns: Option<Edns>,
    /// Whether it has a TSIG record.
    is_signed: bool,
}

/// What a query's OPT record says.
#[derive(Debug, Clone, Copy)]
struct Edns {
    version: u8,
    payload: u16,
    dnssec_ok: bool,
    /// Whether the server is asked for its identifier (RFC 5001).
    nsid: bool,
    cookie: Option<Cookie>,
}

impl<'a> Query<'a> {
    /// Parses a query, or says with which code it is to be refused.
    pub(crate) fn parse(header: Header, message: &'a [u8]) -> Result<Self, Rcode> {
        if header.flags & OPCODE != 0 {
            return Err(Rcode::NotImp);
        }
        let [1, 0, authority @ (0 | 1), additional] = header.counts else {
            return Err(Rcode::FormErr);
        };
        Self::parse_body(header, (authority, additional), message).ok_or(Rcode::FormErr)
    }

    fn parse_body(header: Header, (authority, additional): (u16, u16), message: &'a [u8]) -> Option<Self> {
        let mut query = Self::parse_question(header, message)?;
        // Who asks for changes says in an SOA record since when (RFC 1995 §3).
        if authority > 0 && query.word(4) != TYPE_IXFR {
            return None;
        }
        if authority > 0 || additional > 0 {
            let mut decoder = BinDecoder::new(message);
            decoder.read_slice(HEADER + query.question.len()).ok()?;
            Message::read_records(&mut decoder, usize::from(authority), false, OpCode::Query).ok()?;
            let additional = usize::from(additional);
            let (records, edns, signature) =
                Message::read_records(&mut decoder, additional, true, OpCode::Query).ok()?;
            query.is_signed =
                signature.is_some() || records.iter().any(|record| record.record_type() == RecordType::TSIG);
            query.edns = match edns {
                Some(edns) => Some(Edns::read(&edns)?),
                None => None,
            };
        }
        Some(query)
    }

    /// Parses the question. Its name stands whole: nothing comes before it that a pointer could mean.
    fn parse_question(header: Header, message: &'a [u8]) -> Option<Self> {
        let rest = &message[HEADER..];
        let (mut labels, mut end) = (([0; MAX_LABELS], 0), 0);
        loop {
            let len = usize::from(*rest.get(end)?);
            let next = end + 1 + len;
            if len == 0 {
                break;
            }
            if len > MAX_LABEL || next >= MAX_NAME {
                return None;
            }
            labels.0[labels.1] = end as u8;
            labels.1 += 1;
            end = next;
        }
        let question = rest.get(..end + 5)?;
        Some(Self { header, question, labels, edns: None, is_signed: false })
    }

    /// Returns the labels of the name in question, leftmost first, in their own case.
    pub(crate) fn labels(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
        let question = self.question;
        let starts = self.labels.0[..self.labels.1].iter().map(|start| usize::from(*start));
        starts.map(|start| &question[start + 1..][..usize::from(question[start])])
    }

    /// Returns what is asked for.
    pub(crate) fn query_type(&self) -> QueryType {
        match self.word(4) {
            TYPE_A => QueryType::Ipv4,
            TYPE_AAAA => QueryType::Ipv6,
            TYPE_SOA => QueryType::Authority,
            TYPE_NS => QueryType::NameServer,
            TYPE_PTR => QueryType::Pointer,
            TYPE_SRV => QueryType::Service,
            TYPE_IXFR | TYPE_AXFR => QueryType::Transfer,
            TYPE_ANY => QueryType::Any,
            _ => QueryType::Other,
        }
    }

    /// Returns whether the class is IN.
    pub(crate) fn is_internet(&self) -> bool {
        self.word(2) == CLASS_IN
    }

    /// Returns whether it speaks a version of EDNS that is not known here.
    pub(crate) fn is_of_the_future(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    /// Returns whether it is signed.
    pub(crate) const fn is_signed(&self) -> bool {
        self.is_signed
    }

    /// Returns whether it asks for the server's identifier.
    pub(crate) fn asks_nsid(&self) -> bool {
        self.edns.is_some_and(|edns| edns.nsid)
    }

    /// Returns its cookie.
    pub(crate) fn cookie(&self) -> Option<Cookie> {
        self.edns?.cookie
    }

    /// Returns how much the client takes over UDP, in octets, if it says so.
    pub(crate) fn payload(&self) -> Option<u16> {
        self.edns.map(|edns| edns.payload)
    }

    /// Returns where the last labels of the name start in the message.
    fn offset_of_last(&self, labels: usize) -> u16 {
        let start = self.labels.0[self.labels.1 - labels];
        HEADER as u16 + u16::from(start)
    }

    /// Reads a 16-bit number, so many octets before the end of the question.
    fn word(&self, from_end: usize) -> u16 {
        let at = self.question.len() - from_end;
        u16::from_be_bytes([self.question[at], self.question[at + 1]])
    }
}

impl Edns {
    /// Takes what it understands; `None` where a cookie is malformed. The first of several is the one.
    fn read(edns: &hickory_proto::op::Edns) -> Option<Self> {
        let (mut nsid, mut cookie) = (false, None);
        for (_, option) in edns.options().as_ref() {
            if let EdnsOption::NSID(_) = option {
                nsid = true;
            } else if let EdnsOption::Unknown(OPTION_COOKIE, octets) = option {
                let read = Cookie::read(octets)?;
                cookie.get_or_insert(read);
            }
        }
        let (version, payload, dnssec_ok) = (edns.version(), edns.max_payload(), edns.flags().dnssec_ok);
        Some(Self { version, payload, dnssec_ok, nsid, cookie })
    }
}

/// Reads the reply to such a query. Aliases are followed where they stand in order.
pub(crate) fn read_reply(id: u16, name: &[u8], reply: &[u8]) -> Result<Reply, StubError> {
    let header = Header::read(reply).ok_or(StubError::Malformed)?;
    if header.id != id || header.flags & QR == 0 || header.flags & OPCODE != 0 {
        return Err(StubError::Foreign);
    }
    // Some servers refuse without repeating the question.
    let (questions, code) = (header.counts[0], header.flags & 0xf);
    if questions == 0 && code != Rcode::NoError as u16 && code != Rcode::NxDomain as u16 {
        return Ok(Reply::Failed(code));
    }
    if questions != 1 {
        return Err(StubError::Foreign);
    }
    let message = Message::from_vec(reply).map_err(|_| StubError::Malformed)?;
    let mut owner = Name::read(&mut BinDecoder::new(name)).map_err(|_| StubError::Malformed)?;
    let asked = Question::query(owner.clone(), RecordType::A);
    if message.queries != [asked] {
        return Err(StubError::Foreign);
    }
    let code = u16::from(message.metadata.response_code);
    if code == Rcode::NxDomain as u16 {
        return Ok(Reply::NxDomain);
    }
    if code != Rcode::NoError as u16 {
        return Ok(Reply::Failed(code));
    }
    let mut addresses = Vec::new();
    for record in &message.answers {
        if record.name != owner {
            continue;
        }
        if let RData::A(address) = &record.data {
            addresses.push(address.0);
        } else if let RData::CNAME(alias) = &record.data {
            owner = alias.0.clone();
        }
    }
    Ok(match (header.flags & TC != 0, addresses.is_empty()) {
        (true, _) => Reply::Truncated(addresses),
        (false, true) => Reply::NoData,
        (false, false) => Reply::Addresses(addresses),
    })
}

/// Writes a 16-bit number at an offset.
fn put(octets: &mut [u8], offset: usize, word: u16) {
    octets[offset..offset + 2].copy_from_slice(&word.to_be_bytes());
}
