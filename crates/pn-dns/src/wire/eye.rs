//! Queries and replies as `hickory-proto` writes and reads them, for tests.

#![expect(clippy::wildcard_enum_match_arm, reason = "replies hold two of the kinds of records there are")]

use core::fmt::Write;
use core::net::Ipv4Addr;
use std::collections::BTreeSet;

use hickory_proto::op::{Edns, MessageType};
use hickory_proto::rr::Record;

use super::*;

/// Writes a query from `NAME TYPE [CLASS] [+payload=N] [+version=N] [+do] [+rd]`, with id 0x1234.
pub(crate) fn query(text: &str) -> Vec<u8> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap();
    let name = Name::from_labels(name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).unwrap();
    let mut question = Question::query(name, record_type(words.next().unwrap()));
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = false;
    for word in words {
        let edns = message.edns.get_or_insert_with(Edns::new);
        match word.split_once('=') {
            Some(("+payload", payload)) => drop(edns.set_max_payload(payload.parse().unwrap())),
            Some(("+version", version)) => drop(edns.set_version(version.parse().unwrap())),
            None if word == "+do" => drop(edns.set_dnssec_ok(true)),
            _ => {
                message.edns = None;
                match word {
                    "+rd" => message.metadata.recursion_desired = true,
                    class => drop(question.set_query_class(class.parse().unwrap())),
                }
            }
        }
    }
    message.add_query(question);
    message.to_vec().unwrap()
}

fn record_type(text: &str) -> RecordType {
    text.parse::<u16>().map_or_else(|_| text.parse().unwrap(), RecordType::from)
}

/// Reads a reply, which must be well-formed to the last octet.
pub(crate) fn read(reply: &[u8]) -> Message {
    let mut decoder = BinDecoder::new(reply);
    let message = Message::read(&mut decoder).unwrap();
    assert!(decoder.is_empty(), "octets behind the message");
    assert_eq!(message.metadata.message_type, MessageType::Response);
    assert!(message.additionals.is_empty() && !message.metadata.recursion_available);
    assert!(!message.metadata.authentic_data && !message.metadata.checking_disabled);
    message
}

/// Returns the addresses of a reply in its order, each owned by the name in question, in its own case.
pub(crate) fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let of = |record: &Record| match record.data {
        RData::A(address) if record.name.eq_case(message.queries[0].name()) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(of).collect()
}

/// Says what a reply says, in one line: code, flags, addresses in order of size, SOA records, OPT.
pub(crate) fn describe(reply: &[u8]) -> String {
    let message = read(reply);
    let metadata = &message.metadata;
    let mut text = match u16::from(metadata.response_code) {
        16 => "BADVERS".to_owned(),
        _ => format!("{:?}", metadata.response_code),
    };
    let flags = [(metadata.authoritative, "aa"), (metadata.truncation, "tc"), (metadata.recursion_desired, "rd")];
    flags.iter().filter(|(set, _)| *set).for_each(|(_, flag)| write!(text, " {flag}").unwrap());
    let owned = addresses(&message);
    let sorted: BTreeSet<_> = owned.iter().collect();
    assert_eq!(sorted.len(), owned.len(), "an address twice");
    if !owned.is_empty() {
        let ttls: BTreeSet<u32> = message.answers.iter().map(|record| record.ttl).collect();
        write!(text, " A {ttls:?} {sorted:?}").unwrap();
    }
    for (section, records) in [("answer", &message.answers), ("authority", &message.authorities)] {
        for record in records {
            match &record.data {
                RData::SOA(soa) => {
                    assert_eq!((&record.name, record.ttl), (&soa.mname, soa.minimum), "D3");
                    assert_eq!((soa.rname.to_string().as_str(), soa.refresh), ("nobody.invalid.", 3600));
                    let owner = record.name.to_string().to_lowercase();
                    write!(text, " {section} SOA {owner} {} {}", soa.serial, soa.minimum).unwrap();
                }
                RData::A(_) if section == "answer" => {}
                other => panic!("unexpected {other}"),
            }
        }
    }
    if let Some(edns) = &message.edns {
        assert!(edns.options().as_ref().is_empty());
        let flag = if edns.flags().dnssec_ok { " do" } else { "" };
        write!(text, " OPT {} {}{flag}", edns.version(), edns.max_payload()).unwrap();
    }
    text
}
