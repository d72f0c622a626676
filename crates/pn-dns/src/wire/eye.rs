//! Queries and replies as `hickory-proto` writes and reads them, for tests.

#![expect(clippy::wildcard_enum_match_arm, reason = "replies hold few of the kinds of records and options there are")]

use core::fmt::Write;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::{BTreeMap, BTreeSet};

use hickory_proto::op::{Edns, MessageType};
use hickory_proto::rr::Record;

use super::*;

/// Writes a query from `NAME TYPE [CLASS] [+payload=N] [+version=N] [+do] [+nsid] [+cookie=HEX] [+option=N:HEX] [+rd]`, with
/// id 0x1234.
pub(crate) fn query(text: &str) -> Vec<u8> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap();
    let name = Name::from_labels(name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).unwrap();
    let mut question = Question::query(name, record_type(words.next().unwrap()));
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = false;
    for word in words {
        let Some(option) = word.strip_prefix('+') else {
            question.set_query_class(word.parse().unwrap());
            continue;
        };
        if option == "rd" {
            message.metadata.recursion_desired = true;
            continue;
        }
        let edns = message.edns.get_or_insert_with(Edns::new);
        let mut add = |code, octets| edns.options_mut().insert(EdnsOption::Unknown(code, octets));
        match option.split_once('=') {
            Some(("payload", payload)) => drop(edns.set_max_payload(payload.parse().unwrap())),
            Some(("version", version)) => drop(edns.set_version(version.parse().unwrap())),
            Some(("cookie", hex)) => add(OPTION_COOKIE, octets(hex)),
            Some(("option", option)) => {
                let (code, hex) = option.split_once(':').unwrap();
                add(code.parse().unwrap(), octets(hex));
            }
            None if option == "do" => drop(edns.set_dnssec_ok(true)),
            None if option == "nsid" => add(OPTION_NSID, Vec::new()),
            _ => panic!("{word}"),
        }
    }
    message.add_query(question);
    message.to_vec().unwrap()
}

fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
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

/// Returns the IPv6 addresses of a reply in its order, each owned by the name in question, in its own case.
pub(crate) fn ipv6_addresses(message: &Message) -> Vec<Ipv6Addr> {
    let of = |record: &Record| match record.data {
        RData::AAAA(address) if record.name.eq_case(message.queries[0].name()) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(of).collect()
}

/// Returns the targets of a reply's SRV records in its order, each owned by the name in question, in its own case.
pub(crate) fn services(message: &Message) -> Vec<String> {
    let of = |record: &Record| match &record.data {
        RData::SRV(service) if record.name.eq_case(message.queries[0].name()) => Some(service.target.to_string()),
        _ => None,
    };
    message.answers.iter().filter_map(of).collect()
}

/// Says what a reply says, in one line: code, flags, records of each kind with their time to live, OPT.
pub(crate) fn describe(reply: &[u8]) -> String {
    let message = read(reply);
    let metadata = &message.metadata;
    let mut text = match u16::from(metadata.response_code) {
        16 => "BADVERS".to_owned(),
        _ => format!("{:?}", metadata.response_code),
    };
    let flags = [(metadata.authoritative, "aa"), (metadata.truncation, "tc"), (metadata.recursion_desired, "rd")];
    flags.iter().filter(|(set, _)| *set).for_each(|(_, flag)| write!(text, " {flag}").unwrap());
    for (section, records) in [("", &message.answers), (" authority", &message.authorities)] {
        // Records of one kind are shown together: their times to live, and what they say in order.
        let mut kinds: BTreeMap<RecordType, (BTreeSet<u32>, Vec<String>)> = BTreeMap::new();
        for record in records {
            let owner = record.name.to_string().to_lowercase();
            let said = match &record.data {
                RData::SOA(soa) => {
                    assert_eq!((&record.name, record.ttl), (&soa.mname, soa.minimum), "D3");
                    assert_eq!((soa.rname.to_string().as_str(), soa.refresh), ("nobody.invalid.", 3600));
                    format!("{owner} {}", soa.serial)
                }
                other => {
                    assert!(record.name.eq_case(message.queries[0].name()), "D8: the owner is the name in question");
                    other.to_string().to_lowercase()
                }
            };
            let (ttls, all) = kinds.entry(record.record_type()).or_default();
            ttls.insert(record.ttl);
            all.push(said);
        }
        for (kind, (ttls, mut said)) in kinds {
            assert_eq!(ttls.len(), 1, "D4: one time to live");
            let count = said.len();
            said.sort_by_key(|said| said.parse::<core::net::IpAddr>().ok());
            if kind == RecordType::SRV {
                said.sort();
            }
            said.dedup();
            assert_eq!(said.len(), count, "a record twice");
            write!(text, "{section} {kind} {} {}", ttls.first().unwrap(), said.join(", ")).unwrap();
        }
    }
    if let Some(edns) = &message.edns {
        let flag = if edns.flags().dnssec_ok { " do" } else { "" };
        write!(text, " OPT {} {}{flag}", edns.version(), edns.max_payload()).unwrap();
        for (_, option) in edns.options().as_ref() {
            match option {
                EdnsOption::NSID(id) => write!(text, " nsid={}", String::from_utf8_lossy(id.as_ref())).unwrap(),
                EdnsOption::Unknown(OPTION_COOKIE, octets) => {
                    assert_eq!(octets.len(), 24, "RFC 9018");
                    octets[..8].iter().fold(write!(text, " cookie="), |_, octet| write!(text, "{octet:02x}")).unwrap();
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    text
}
