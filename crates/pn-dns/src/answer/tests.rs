mod quick;
mod table;

use core::net::{IpAddr, Ipv4Addr};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use pn_core::{Change, Policy};
use proptest::prelude::*;

use super::*;
use crate::fixture::{Model, crowd, dual_stack_crowd, expand, network, shop};
use crate::wire::eye;

fn ask(zone: &Zone, transport: Transport, query: &[u8], seed: u64) -> Option<Vec<u8>> {
    answer(View::of(zone), transport, query, &mut Rng::with_seed(seed))
}

/// Changes octets of a well-formed query and sees what becomes of it.
#[track_caller]
fn check_octets(change: impl FnOnce(&mut Vec<u8>), expected: Option<&str>) {
    let mut query = eye::query(&expand("ap1.pn1.^ A"));
    change(&mut query);
    let reply = ask(&shop().zone(1), Transport::Udp, &query, 1);
    assert_eq!(reply.as_deref().map(eye::describe).as_deref(), expected, "{query:02x?}");
    if let Some(reply) = reply {
        assert_eq!(reply[..2], query[..2], "the id is repeated");
    }
}

#[test]
fn d3_d4_ttls_follow_the_policy() {
    for (millis, positive, negative) in [(0, 0, 0), (999, 0, 0), (1000, 1, 1), (60_000, 60, 1)] {
        let mut policy = Policy::default();
        policy.ttl = core::time::Duration::from_millis(millis);
        let mut model = Model::with_policy(policy);
        model.app(1, 1, "web:1");
        model.run(1, "web", 1);
        let zone = model.zone(1);
        let [found, denied] = ["ap1.pn1.^ A", "ap2.pn1.^ A"]
            .map(|query| eye::describe(&ask(&zone, Transport::Udp, &eye::query(&expand(query)), 1).unwrap()));
        assert_eq!(found, format!("NoError aa A {positive} 10.240.0.1"));
        assert!(denied.contains(&format!(" authority SOA {negative} ")), "{denied}");
    }
}

/// Checks that `fits` addresses fit and one more makes the answer a random part with TC.
#[track_caller]
fn check_size(container_type: &str, options: &str, limit: usize, fits: u32) {
    check_size_of("A", container_type, options, limit, fits);
}

#[track_caller]
fn check_size_of(record_type: &str, container_type: &str, options: &str, limit: usize, fits: u32) {
    let prefix = if container_type == "web" { String::new() } else { format!("{container_type}.") };
    let is_ipv6 = record_type == "AAAA";
    let (network, record) = if is_ipv6 { (3, 28) } else { (1, 16) };
    let query = eye::query(&expand(&format!("{prefix}ap1.pn{network}.^ {record_type} {options}")));
    for count in [fits, fits + 1, 3 * fits] {
        let zone = if is_ipv6 { dual_stack_crowd(container_type, count).zone(3) } else { crowd(container_type, count) };
        let mut seen = BTreeSet::<IpAddr>::new();
        for seed in 0..20 {
            let reply = ask(&zone, Transport::Udp, &query, seed).unwrap();
            let message = eye::read(&reply);
            let addresses: Vec<IpAddr> = if is_ipv6 {
                eye::ipv6_addresses(&message).into_iter().map(IpAddr::from).collect()
            } else {
                eye::addresses(&message).into_iter().map(IpAddr::from).collect()
            };
            assert!(reply.len() <= limit && reply.len() + record > limit, "{} of {limit}", reply.len());
            assert_eq!((addresses.len(), message.metadata.truncation), (fits as usize, count > fits));
            assert_eq!(message.edns.is_some(), !options.is_empty());
            seen.extend(addresses);
        }
        let every = if count <= fits + 1 { count as usize } else { seen.len() };
        assert_eq!(seen.len(), every, "D6: every address has its turn");
        assert!(seen.len() > fits as usize || count == fits);
    }
}

#[test]
fn d5_d6_sizes() {
    check_size("web", "", 512, 24);
    check_size("my-app-backend", "", 512, 23);
    check_size("web", "+payload=1232", 1232, 68);
    check_size("my-app-backend", "+payload=1232", 1232, 67);
    check_size(&"x".repeat(29), "+payload=1232", 1232, 66);
    check_size("web", "+payload=512", 512, 23);
    check_size("web", "+payload=4096", 1232, 68);
}

/// AAAA records are 28 octets long.
#[test]
fn d5_d6_sizes_of_ipv6() {
    check_size_of("AAAA", "web", "", 512, 13);
    check_size_of("AAAA", "my-app-backend", "", 512, 13);
    check_size_of("AAAA", "web", "+payload=1232", 1232, 39);
    check_size_of("AAAA", "my-app-backend", "+payload=1232", 1232, 38);
    check_size_of("AAAA", &"x".repeat(29), "+payload=1232", 1232, 38);
    check_size_of("AAAA", "web", "+payload=512", 512, 13);
    check_size_of("AAAA", "web", "+payload=4096", 1232, 39);
    let (zone, query) = (dual_stack_crowd("web", 1022).zone(3), eye::query(&expand("ap1.pn3.^ AAAA")));
    let reply = ask(&zone, Transport::Tcp, &query, 1).unwrap();
    let message = eye::read(&reply);
    assert_eq!(reply.len(), 12 + 106 + 4 + 1022 * 28);
    assert!(!message.metadata.truncation);
    let addresses: BTreeSet<_> = eye::ipv6_addresses(&message).into_iter().collect();
    assert_eq!(addresses.len(), 1022);
    let planned = zone.plan().names().into_iter().flat_map(|(_, addresses)| addresses);
    let prefix = zone.plan().ipv6.unwrap();
    assert_eq!(addresses, planned.map(|address| prefix.address(address)).collect());
}

/// A name is written whole in each SRV record, so that few fit: a random part of them, and all over TCP.
#[test]
fn d6_a_service_of_many_containers() {
    let mut model = Model::new();
    model.app(1, 1, "web:100");
    model.listen(1, "web", "80/tcp");
    for index in 1..=100 {
        model.run(1, "web", index);
    }
    let all: BTreeSet<String> = (1..=100).map(|index| expand(&format!("{index}.web.ap1.pn1.^")) + ".").collect();
    let zone = model.zone(1);
    for (options, limit, few) in [("", 512, 2), ("+payload=1232", 1232, 8)] {
        let query = eye::query(&expand(&format!("_80._tcp.web.ap1.pn1.^ SRV {options}")));
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let reply = ask(&zone, Transport::Udp, &query, seed).unwrap();
            let message = eye::read(&reply);
            let found: BTreeSet<String> = eye::services(&message).into_iter().collect();
            assert!(reply.len() <= limit && message.metadata.truncation);
            assert_eq!((found.len(), message.answers.len()), (few, few), "{}", reply.len());
            assert!(found.is_subset(&all));
            seen.extend(found);
        }
        assert!(seen.len() > 90, "D6: every container has its turn, and {} had", seen.len());
        let reply = ask(&zone, Transport::Tcp, &query, 1).unwrap();
        let message = eye::read(&reply);
        assert!(!message.metadata.truncation);
        assert_eq!(eye::services(&message).into_iter().collect::<BTreeSet<_>>(), all);
    }
}

#[test]
fn d5_1022_addresses_are_whole_over_tcp_and_a_part_over_udp() {
    let zone = crowd("web", 1022);
    let query = eye::query(&expand("ap1.pn1.^ A"));
    let reply = ask(&zone, Transport::Tcp, &query, 1).unwrap();
    let message = eye::read(&reply);
    assert_eq!(reply.len(), 12 + 106 + 4 + 1022 * 16);
    assert!(!message.metadata.truncation);
    assert_eq!(eye::addresses(&message).into_iter().collect::<BTreeSet<_>>().len(), 1022);
    let reply = ask(&zone, Transport::Udp, &query, 1).unwrap();
    assert!(reply.len() <= 512 && eye::read(&reply).metadata.truncation);
}

#[test]
fn d6_the_payload_never_leads_below_512() {
    let mut query = eye::query(&expand("ap1.pn1.^ A +payload=512"));
    let payload = query.len() - 8;
    assert_eq!(query[payload..payload + 2], [2, 0]);
    query[payload..payload + 2].copy_from_slice(&[0, 1]);
    let reply = ask(&crowd("web", 100), Transport::Udp, &query, 1).unwrap();
    assert_eq!(eye::addresses(&eye::read(&reply)).len(), 23);
}

#[test]
fn d7_the_order_is_random() {
    let zone = crowd("web", 3);
    let query = eye::query(&expand("ap1.pn1.^ A"));
    let mut orders = BTreeMap::<_, u32>::new();
    for seed in 0..6000 {
        let reply = ask(&zone, Transport::Udp, &query, seed).unwrap();
        *orders.entry(eye::addresses(&eye::read(&reply))).or_default() += 1;
    }
    assert_eq!(orders.len(), 6);
    assert!(orders.values().all(|count| (800..1200).contains(count)), "{orders:?}");
}

#[test]
fn d8_case_is_ignored_and_repeated() {
    let query = eye::query(&expand("1.mY-aPP-baCKEND.AP1.pn1.Private-NETWORK.iNTERNAL A"));
    let reply = ask(&shop().zone(1), Transport::Udp, &query, 1).unwrap();
    assert_eq!(reply[12..query.len()], query[12..]);
    assert_eq!(eye::describe(&reply), "NoError aa A 5 10.240.0.3", "the owner is compared with its case");
}

#[test]
fn d10_an_unknown_network_fails() {
    let zone = shop().zone(1);
    let unknown = View::default();
    let expired = View { is_expired: true, ..View::of(&zone) };
    for (query, expected) in [
        ("ap1.pn1.^ A +rd", "ServFail rd"),
        ("^ SOA", "ServFail"),
        ("1.0.240.10.in-addr.arpa PTR", "ServFail"),
        ("example.com A", "Refused"),
    ] {
        for view in [unknown, expired] {
            let reply = answer(view, Transport::Udp, &eye::query(&expand(query)), &mut Rng::with_seed(1)).unwrap();
            assert_eq!(eye::describe(&reply), expected, "{query}");
        }
    }
    let reply = answer(unknown, Transport::Udp, &eye::query("1.0.0.127.in-addr.arpa PTR"), &mut Rng::with_seed(1));
    assert_eq!(eye::describe(&reply.unwrap()), "ServFail", "any address may be one of its own");
}

#[test]
fn d12_headers() {
    check_octets(|query| query.truncate(11), None);
    check_octets(Vec::clear, None);
    check_octets(|query| query[2] |= 0x80, None);
    check_octets(|query| query.splice(2.., [0x80]).for_each(drop), None);
    for opcode in 1..16 {
        let reply = |query: &mut Vec<u8>| query[2] |= opcode << 3;
        let mut query = eye::query(&expand("ap1.pn1.^ A"));
        reply(&mut query);
        let reply = ask(&shop().zone(1), Transport::Udp, &query, 1).unwrap();
        assert_eq!(reply, [0x12, 0x34, 0x80 | opcode << 3, 4, 0, 0, 0, 0, 0, 0, 0, 0], "NOTIMP");
    }
    for (octet, value) in [(5, 0), (5, 2), (4, 1), (7, 1), (9, 1), (11, 1)] {
        check_octets(|query| query[octet] = value, Some("FormErr"));
    }
    check_octets(|query| query.truncate(12), Some("FormErr"));
    check_octets(|query| query.truncate(query.len() - 1), Some("FormErr"));
    check_octets(|query| query[12] = 0x40, Some("FormErr"));
    check_octets(|query| query.splice(12..17, [0xc0, 0x0c, 0, 1, 0]).for_each(drop), Some("FormErr"));
    check_octets(|query| query.splice(12.., [0xc0, 0, 0, 1, 0, 1]).for_each(drop), Some("FormErr"));
}

#[test]
fn names_have_at_most_255_octets() {
    let label = "x".repeat(63);
    for (last, expected) in [(61, "Refused"), (62, "FormErr")] {
        check_octets(
            |query| {
                let labels = [&label, &label, &label, &label[..last]];
                let octets = labels.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
                *query = query[..12].iter().copied().chain(octets).chain([0, 0, 1, 0, 1]).collect();
            },
            Some(expected),
        );
    }
}

#[test]
fn d12_edns() {
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let with = |count: u8, octets: Vec<u8>| {
        move |query: &mut Vec<u8>| {
            query[11] = count;
            query.extend(octets);
        }
    };
    let found = Some("NoError aa A 5 10.240.0.1, 10.240.0.2 OPT 0 1232");
    check_octets(with(1, opt.to_vec()), found);
    check_octets(with(1, [&opt[..10], &[5, 0xfd, 0xe9, 0, 1, 7]].concat()), found);
    check_octets(with(2, [opt, opt].concat()), Some("FormErr"));
    check_octets(with(1, [&[1, b'x'], &opt[..]].concat()), Some("FormErr"));
    check_octets(with(1, opt[..10].to_vec()), Some("FormErr"));
}

#[test]
fn d17_an_incarnation_hands_its_name_over_at_once() {
    let mut model = shop();
    let (old, new) = (model.run(4, "cron", 1), pn_core::ContainerId::from_u128(99));
    let answers = |model: &Model| {
        let query = eye::query(&expand("1.cron.ap4.pn1.^ A"));
        eye::addresses(&eye::read(&ask(&model.zone(1), Transport::Udp, &query, 1).unwrap()))
    };
    let before = answers(&model);
    let node = pn_core::NodeId::from_u128(1);
    model.apply(Change::Replace { container: new, replaces: old, node });
    assert_eq!(answers(&model), before);
    model.apply(Change::Ready(new));
    let after = answers(&model);
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after);
}

/// Checks what holds of every reply to whatever octets.
fn check_total(zone: Option<&Zone>, query: &[u8], seed: u64) {
    let view = View { zone, ..View::default() };
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65535)] {
        let Some(reply) = answer(view, transport, query, &mut Rng::with_seed(seed)) else {
            assert!(query.len() < 12 || query[2] & 0x80 != 0, "silence for {query:02x?}");
            continue;
        };
        let message = eye::read(&reply);
        assert!(reply.len() <= limit && (message.edns.is_some() || reply.len() <= 512 || transport == Transport::Tcp));
        assert_eq!(reply[..2], query[..2]);
        assert_eq!(answer(view, transport, query, &mut Rng::with_seed(seed)), Some(reply), "pure");
    }
}

fn name() -> impl Strategy<Value = String> {
    let label = prop_oneof![
        Just("web".to_owned()),
        Just("my-app-backend".to_owned()),
        (0u32..5).prop_map(|n| n.to_string()),
        (1u32..6).prop_map(|n| format!("ap{n}")),
        (1u32..4).prop_map(|n| format!("pn{n}")),
        "[b-oB-O0-9_-]{1,63}",
    ];
    let labels = proptest::collection::vec(label, 0..4).prop_map(|labels| labels.join("."));
    (labels, prop_oneof![
        1 => Just(".^"), 1 => Just("."), 1 => Just(".pn1.^"), 2 => Just(".ap1.pn1.^"), 1 => Just(".ap5.pn3.^"), 1 => Just(".ap1.pn3.^"),
    ])
        .prop_map(|(labels, suffix)| expand(&format!("{labels}{suffix}.")))
        .prop_filter("too long", |name| name.len() < 250)
}

proptest! {
    #[test]
    fn total_on_arbitrary_octets(query in proptest::collection::vec(any::<u8>(), 0..600), seed: u64) {
        let zone = shop().zone(1);
        check_total(Some(&zone), &query, seed);
        check_total(None, &query, seed);
        // Most octets are no query; these have a header of one.
        let header = [0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        check_total(Some(&zone), &[&header, &query[..]].concat(), seed);
    }

    #[test]
    fn total_on_mutated_queries(
        name in name(),
        options in prop_oneof![Just(""), Just("+payload=1232"), Just("+do +payload=65535"), Just("+version=1")],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        end: prop::sample::Index,
        cut: bool,
        seed: u64,
    ) {
        let mut query = eye::query(&format!("{name} A {options}"));
        for (place, octet) in changes {
            let place = place.index(query.len());
            query[place] = octet;
        }
        if cut {
            query.truncate(end.index(query.len()));
        }
        check_total(Some(&shop().zone(1)), &query, seed);
    }

    #[test]
    fn every_planned_name_has_its_addresses_in_its_network_and_nothing_elsewhere(
        apps in proptest::collection::vec((1u128..3, proptest::collection::btree_map("[a-c1-3]{1,2}|web", 0u32..4, 1..4)), 0..5),
        ready in proptest::collection::vec(any::<bool>(), 64),
        others in proptest::collection::vec(name(), 8),
    ) {
        let mut model = Model::new();
        let mut ready = ready.into_iter().cycle();
        for (n, (network, formation)) in (1..).zip(&apps) {
            let items: Vec<_> = formation.iter().map(|(of_type, count)| format!("{of_type}:{count}")).collect();
            model.app(n, *network, &items.join(" "));
            for (of_type, count) in formation {
                for index in (1..=*count).filter(|_| ready.next() == Some(true)) {
                    model.run(n, of_type, index);
                }
            }
        }
        let planned: Vec<BTreeMap<String, Vec<Ipv4Addr>>> = [1, 2].map(|n| {
            let plan = Arc::clone(model.zone(n).plan());
            plan.names().into_iter().map(|(name, addresses)| (name.to_string(), addresses)).collect()
        }).into();
        for (n, own) in (1..).zip(&planned) {
            let zone = model.zone(n);
            assert_eq!(zone.network(), network(n));
            for name in planned.iter().flat_map(BTreeMap::keys).chain(&others) {
                let query = eye::query(&format!("{name} A"));
                let message = eye::read(&ask(&zone, Transport::Tcp, &query, 7).unwrap());
                let mut addresses = eye::addresses(&message);
                let mut expected = own.get(name.trim_matches('.').to_lowercase().as_str()).cloned().unwrap_or_default();
                addresses.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(addresses, expected, "{}", name);
            }
        }
    }
}
