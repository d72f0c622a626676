//! Replies as the laws of name servers look at them: everything that a client goes by.

use core::net::IpAddr;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::{RData, Record};

/// A reply to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) id: u16,
    pub(crate) rcode: u16,
    pub(crate) truncated: bool,
    /// Addresses and times to live of records that the name in question owns, in their order.
    pub(crate) addresses: Vec<(IpAddr, u32)>,
    /// How many records there are as answers.
    pub(crate) answers: usize,
    /// Time to live and MINIMUM of the SOA record that comes as authority.
    pub(crate) soa: Option<(u32, u32)>,
}

/// Reads a reply; `None` for what is none.
pub(crate) fn read(reply: &[u8]) -> Option<Reading> {
    let message =
        Message::from_vec(reply).ok().filter(|message| message.metadata.message_type == MessageType::Response)?;
    let owner = message.queries.first().map(|query| query.name());
    let address = |record: &Record| {
        #[expect(clippy::wildcard_enum_match_arm, reason = "addresses are two of the kinds of records there are")]
        let address = match record.data {
            RData::A(address) => IpAddr::from(address.0),
            RData::AAAA(address) => address.0.into(),
            _ => return None,
        };
        (Some(&record.name) == owner).then_some((address, record.ttl))
    };
    let soa = |record: &Record| if let RData::SOA(soa) = &record.data { Some((record.ttl, soa.minimum)) } else { None };
    Some(Reading {
        id: message.metadata.id,
        rcode: message.metadata.response_code.into(),
        truncated: message.metadata.truncation,
        addresses: message.answers.iter().filter_map(address).collect(),
        answers: message.answers.len(),
        soa: message.authorities.iter().find_map(soa),
    })
}
