//! The quick way answers what the long way answers, octet for octet, or leaves it alone.

use super::*;
use crate::answer::{Verdict, look_up, respond_fully};
use crate::fixture::dual_stack;

/// Returns whether the quick way took a query. Both ways shuffle alike from one seed, so that even the order is compared.
fn took(zone: &Zone, transport: Transport, query: &[u8], seed: u64) -> bool {
    let (mut quickly, mut fully) = (Vec::new(), Vec::new());
    // Others in front and behind make no difference.
    let neighbours = ["WEB.ap1.pn1.^ A", "9.no.ap1.pn1.^ AAAA"].map(|other| eye::query(&expand(other)));
    let together = [&neighbours[0][..], query, &neighbours[1][..], &[]];
    let [_, plain, ..]: [_; 4] = look_up(&View::of(zone), together.into_iter());
    let Some(plain) = plain else {
        return false;
    };
    // Whatever stands behind the query.
    quickly.extend_from_slice(query);
    let len = plain.reply_len(zone, transport);
    quickly.resize(query.len().max(len) + 3, 0xff);
    assert_eq!(plain.answer(zone, transport, &mut Rng::with_seed(seed), &mut quickly), len);
    quickly.truncate(len);
    let verdict = respond_fully(&View::of(zone), transport, query, &mut Rng::with_seed(seed), &mut fully);
    assert_eq!((verdict, &quickly), (Verdict::Answered, &fully), "{query:02x?}");
    true
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_quick_way_is_the_long_way(
        name in name(),
        query_type in prop_oneof![8 => Just("A"), 4 => Just("AAAA"), 1 => Just("TXT"), 1 => Just("SRV"), 1 => Just("ANY")],
        options in prop_oneof![
            Just(""), Just("+rd"), Just("+payload=1232"), Just("+do +payload=65535"), Just("+version=1"), Just("+nsid"),
        ],
        upper: u64,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        extra in proptest::collection::vec(any::<u8>(), 0..3),
        of in 0usize..3,
        seed: u64,
    ) {
        let zone = [&*SHOP, &*DUAL, &*CROWD][of];
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
        took(zone, Transport::Udp, &query, seed);
        took(zone, Transport::Tcp, &query, seed);
    }
}

static SHOP: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| shop().zone(1));
static DUAL: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| dual_stack("10.240.0.0/22").zone(3));
static CROWD: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(|| crowd("web", 200));
