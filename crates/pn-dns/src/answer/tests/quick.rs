//! The quick way answers what the long way answers, octet for octet, or leaves it alone.

use core::cell::Cell;

use proptest::sample::select;

use super::*;
use crate::answer::{Verdict, look_up, respond_fully};
use crate::fixture::{dual_stack, dual_stack_crowd};

/// Returns whether the quick way took a query. Both ways shuffle alike from one seed, so that even the order is compared.
fn took(zone: &Zone, transport: Transport, query: &[u8], seed: u64) -> bool {
    reply(zone, transport, query, seed).is_some()
}

/// Returns what the quick way answers, where it takes a query: what the long way answers.
fn reply(zone: &Zone, transport: Transport, query: &[u8], seed: u64) -> Option<Vec<u8>> {
    let (mut quickly, mut fully) = (Vec::new(), Vec::new());
    // Others in front and behind make no difference.
    let neighbours = ["WEB.ap1.pn1.^ A", "9.no.ap1.pn1.^ AAAA"].map(|other| eye::query(&expand(other)));
    let together = [&neighbours[0][..], query, &neighbours[1][..], &[]];
    let [_, plain, ..]: [_; 4] = look_up(&View::of(zone), together.into_iter());
    let plain = plain?;
    // Whatever stands behind the query.
    quickly.extend_from_slice(query);
    let len = plain.reply_len(zone, transport);
    quickly.resize(query.len().max(len) + 3, 0xff);
    assert_eq!(plain.answer(zone, transport, &mut Rng::with_seed(seed), &mut quickly), len);
    quickly.truncate(len);
    let verdict = respond_fully(&View::of(zone), transport, query, &mut Rng::with_seed(seed), &mut fully);
    assert_eq!((verdict, &quickly), (Verdict::Answered, &fully), "{query:02x?}");
    Some(quickly)
}

/// What is asked most is taken.
#[test]
fn plain_questions_are_taken() {
    let zones = [shop().zone(1), dual_stack("10.240.0.0/22").zone(3), crowd("web", 100)];
    for name in ["ap1.pn1.^", "WEB.ap1.PN1.^", "1.web.ap1.pn1.^", "7.web.ap1.pn1.^", "no.ap1.pn1.^", "ap9.pn1.^"] {
        for query_type in ["A", "AAAA"] {
            for options in ["", "+payload=1232", "+payload=100", "+do", "+rd", "+rd +payload=4096"] {
                for (n, zone) in [1, 3, 1].into_iter().zip(&zones) {
                    let name = name.replace("pn1", &format!("pn{n}")).replace("PN1", &format!("pn{n}"));
                    let query = eye::query(&expand(&format!("{name} {query_type} {options}")));
                    assert!(took(zone, Transport::Udp, &query, 7), "{name} {query_type} {options}");
                    assert!(took(zone, Transport::Tcp, &query, 7), "{name} {query_type} {options}");
                }
            }
        }
    }
}

/// A type is known by the beginning of its label only as long as that is all of it.
#[test]
fn long_labels_are_told_apart() {
    let mut model = shop();
    model.app(6, 1, "a-label-longer-than-its-key:1 a-label-longer-than-its-kez:2");
    model.run(6, "a-label-longer-than-its-key", 1);
    model.run(6, "a-label-longer-than-its-kez", 2);
    let zone = model.zone(1);
    for of_type in
        ["a-label-longer-than-its-key", "A-label-longer-than-its-KEZ", "a-label-longer-than-its-kex", "a-label-lo"]
    {
        for slot in ["", "1.", "2."] {
            let query = eye::query(&expand(&format!("{slot}{of_type}.ap6.pn1.^ A")));
            assert!(took(&zone, Transport::Udp, &query, 7), "{slot}{of_type}");
        }
    }
}

/// Names that have addresses in one of the zones.
fn planned() -> impl Strategy<Value = String> {
    let of_type = select(vec!["", "web.", "1.web.", "2.web."]);
    (of_type, select(vec!["ap1.pn1.^", "ap5.pn3.^", "ap1.pn3.^"]))
        .prop_map(|(of_type, app)| expand(&format!("{of_type}{app}")))
}

/// What of the answers the property was about.
#[derive(Debug, Default)]
struct Seen {
    /// With addresses of either family, all or a part of them.
    ipv4: u32,
    ipv6: u32,
    truncated_ipv6: u32,
    /// Without.
    denied: u32,
}

impl Seen {
    fn count(&mut self, reply: &[u8]) {
        // Whatever stands before the answers, their types follow the pointers to the name.
        let has = |of: u8| reply[12..].windows(6).any(|octets| octets == [0xc0, 12, 0, of, 0, 1]);
        self.ipv4 += u32::from(has(1));
        self.ipv6 += u32::from(has(28));
        self.truncated_ipv6 += u32::from(has(28) && reply[2] & 2 != 0);
        self.denied += u32::from(reply[6..8] == [0, 0]);
    }
}

#[test]
fn the_quick_way_is_the_long_way() {
    let seen = Cell::new(Seen::default());
    proptest!(ProptestConfig::with_cases(2000), |(
        name in prop_oneof![name(), planned()],
        query_type in prop_oneof![8 => Just("A"), 8 => Just("AAAA"), 1 => Just("TXT"), 1 => Just("SRV"), 1 => Just("ANY")],
        options in prop_oneof![
            Just(""), Just("+rd"), Just("+payload=1232"), Just("+do +payload=65535"), Just("+version=1"), Just("+nsid"),
        ],
        upper: u64,
        changes in prop_oneof![
            Just(Vec::new()), proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ],
        extra in proptest::collection::vec(any::<u8>(), 0..3),
        seed: u64,
    )| {
        let name: String = name.chars().enumerate().map(|(n, c)| {
            if upper >> (n % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c }
        }).collect();
        let mut query = eye::query(&format!("{name} {query_type} {options}"));
        for (place, octet) in changes {
            let place = place.index(query.len());
            query[place] = octet;
        }
        if upper % 5 == 0 {
            query.extend(extra);
        }
        for zone in [&*SHOP, &*DUAL, &*CROWD, &*DUAL_CROWD] {
            for transport in [Transport::Udp, Transport::Tcp] {
                if let Some(reply) = reply(zone, transport, &query, seed) {
                    let mut so_far = seen.take();
                    so_far.count(&reply);
                    seen.set(so_far);
                }
            }
        }
    });
    let seen = seen.into_inner();
    let enough = seen.ipv4.min(seen.ipv6).min(seen.denied) >= 100 && seen.truncated_ipv6 >= 8;
    assert!(enough, "the property was hardly about some of them: {seen:?}");
}

static SHOP: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| shop().zone(1));
static DUAL: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| dual_stack("10.240.0.0/22").zone(3));
static CROWD: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| crowd("web", 200));
static DUAL_CROWD: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| dual_stack_crowd("web", 200).zone(3));
