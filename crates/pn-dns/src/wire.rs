//! DNS messages (RFC 1035 §4, RFC 6891). A query's header and question are read in place and its records by
//! `hickory-proto`, which also reads what other servers send; what is sent is written by hand.
//!
//! No other file names `hickory-proto`, but for the tests' `eye` that reads every reply with it.

use hickory_proto::op::{Message, OpCode, Query as Question};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::stub::{Reply, StubError};

pub(crate) use self::writer::{Soa, Writer, write_query};

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

/// Length of an A record whose owner is a pointer, in octets.
pub(crate) const ADDRESS: usize = 16;

/// The payload that is offered to clients over UDP: what fits every path (DNS flag day 2020).
pub(crate) const PAYLOAD: u16 = 1232;

const QR: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
const AA: u16 = 1 << 10;
const TC: u16 = 1 << 9;
const RD: u16 = 1 << 8;

const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
const TYPE_IXFR: u16 = 251;
const TYPE_AXFR: u16 = 252;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// What became of a query, RCODE (RFC 6895 §2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    /// Extended: the high bits stand in the OPT record.
    BadVers = 16,
}

/// What is asked for, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryType {
    /// A.
    Address,
    /// SOA.
    Authority,
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
    pub(crate) fn reply(self, rcode: Rcode) -> Vec<u8> {
        let mut octets = vec![0; HEADER];
        put(&mut octets, 0, self.id);
        put(&mut octets, 2, QR | self.flags & (OPCODE | RD) | rcode as u16);
        octets
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
}

/// What a query's OPT record says.
#[derive(Debug, Clone, Copy)]
struct Edns {
    version: u8,
    payload: u16,
    dnssec_ok: bool,
}

impl<'a> Query<'a> {
    /// Parses a query, or says with which code it is to be refused.
    pub(crate) fn parse(header: Header, message: &'a [u8]) -> Result<Self, Rcode> {
        if header.flags & OPCODE != 0 {
            return Err(Rcode::NotImp);
        }
        let [1, 0, 0, additional] = header.counts else {
            return Err(Rcode::FormErr);
        };
        Self::parse_body(header, usize::from(additional), message).ok_or(Rcode::FormErr)
    }

    fn parse_body(header: Header, additional: usize, message: &'a [u8]) -> Option<Self> {
        let mut query = Self::parse_question(header, message)?;
        if additional > 0 {
            let mut decoder = BinDecoder::new(message);
            decoder.read_slice(HEADER + query.question.len()).ok()?;
            let (_, edns, _) = Message::read_records(&mut decoder, additional, true, OpCode::Query).ok()?;
            query.edns = edns.map(|edns| Edns {
                version: edns.version(),
                payload: edns.max_payload(),
                dnssec_ok: edns.flags().dnssec_ok,
            });
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
        Some(Self { header, question, labels, edns: None })
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
            TYPE_A => QueryType::Address,
            TYPE_SOA => QueryType::Authority,
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
