use pn_core::{Change, ContainerId, Plan};
use proptest::prelude::*;

use super::*;
use crate::fixture::{app, expand, network, shop, subnet};

fn zone_of(plan: &Plan) -> (Arc<ZonePlan>, u32) {
    let zones = plan.zones();
    (Arc::clone(&zones.zones[&network(1)]), zones.serial())
}

fn labels(name: &str) -> Vec<Vec<u8>> {
    name.split('.').map(|label| label.as_bytes().to_vec()).collect()
}

fn look<'z>(zone: &'z Zone, name: &str) -> (Lookup<'z>, usize) {
    let labels = labels(name);
    zone.find(&labels.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Checks that a zone says what its plan says, of every name and address.
fn check(zone: &Zone) {
    let plan = Arc::clone(zone.plan());
    let mut addresses = 0;
    for (name, expected) in plan.names() {
        let (Lookup::Addresses(found), 3) = look(zone, &name.to_string()) else {
            panic!("{name} is not found");
        };
        assert_eq!(found.iter().map(|(_, address)| *address).collect::<Vec<_>>(), expected, "{name}");
    }
    for of_type in plan.types() {
        for (index, address) in &of_type.containers {
            let [a, b, c, d] = address.octets();
            let (found, _) = look(zone, &format!("{d}.{c}.{b}.{a}.in-addr.arpa"));
            let slot = pn_core::Slot::new(of_type.app, of_type.container_type, *index).unwrap();
            assert_eq!(found, Lookup::Pointer(Name::container(plan.network, &slot)), "{address}");
            addresses += 1;
        }
    }
    let all = (0..256).filter(|d| matches!(look(zone, &format!("{d}.0.240.10.in-addr.arpa")).0, Lookup::Pointer(_)));
    assert_eq!(all.count(), addresses, "an address that nobody has");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A zone made from the one before is the zone made from nothing.
    #[test]
    fn zones_that_follow_are_whole(steps in proptest::collection::vec((0u8..5, 1u128..4, 1u32..4), 1..40)) {
        let mut model = shop();
        let mut running: Vec<ContainerId> = model.state.containers(network(1)).map(|container| container.id).collect();
        let (plan, serial) = zone_of(&model.state.plan());
        let mut zone = Zone::new(plan, serial);
        for (step, n, index) in steps {
            match step {
                0 if model.state.app(app(6)).is_none() => model.app(6, 1, "a-label-longer-than-its-key:3 a-label-longer-than-its-kez:3"),
                0 => {
                    let of_type = if n == 1 { "a-label-longer-than-its-key" } else { "a-label-longer-than-its-kez" };
                    if model.free(6, of_type, index) {
                        running.push(model.run(6, of_type, index));
                    }
                }
                1 if !running.is_empty() => model.apply(Change::Fail(running.swap_remove(index as usize % running.len()))),
                2 if model.free(3, "worker", index.min(2)) => running.push(model.run(3, "worker", index.min(2))),
                3 => model.listen(1, "web", if n == 1 { "80/tcp" } else { "" }),
                _ => {
                    let scaled = Change::Scale { app: app(4), formation: format!("cron:{index}").parse().unwrap() };
                    model.apply(scaled);
                }
            }
            let (plan, serial) = zone_of(&model.state.plan());
            zone = zone.succeeded_by(plan, serial);
            check(&zone);
        }
    }
}

#[test]
fn what_did_not_change_is_shared() {
    let mut model = shop();
    let before = model.zone(1);
    model.run(3, "worker", 2);
    let (plan, serial) = zone_of(&model.state.plan());
    let after = before.succeeded_by(plan, serial);
    for (n, shared) in [(1, true), (3, false), (4, true)] {
        let [before, after] = [&before, &after].map(|zone| zone.app(app(n)).unwrap());
        assert_eq!(core::ptr::eq(before, after), shared, "app {n}");
    }
    check(&after);
}

/// Apps that declare the same types share what finds them, and nothing is kept of types that no app declares any more.
#[test]
fn shapes_are_shared_and_forgotten() {
    let shapes = shape::Shapes::default();
    let names = |types: &[&str]| {
        let of_type = |text: &&str| TypeNames {
            app: app(1),
            container_type: text.parse().unwrap(),
            ports: Default::default(),
            containers: Box::default(),
        };
        AppNames { app: app(1), types: types.iter().map(of_type).collect() }
    };
    let kept = shapes.shape(&names(&["web", "worker"]));
    assert!(Arc::ptr_eq(&kept, &shapes.shape(&names(&["web", "worker"]))));
    assert!(!Arc::ptr_eq(&kept, &shapes.shape(&names(&["web"]))));
    for n in 0..1000 {
        drop(shapes.shape(&names(&[&format!("type-{n}")])));
    }
    assert!(shapes.len() < 50, "{} are kept", shapes.len());
    for _ in 0..1000 {
        drop(shapes.shape(&names(&["comes-and-goes"])));
    }
    assert!(shapes.len() < 50, "{} are kept of one that comes and goes", shapes.len());
    assert!(Arc::ptr_eq(&kept, &shapes.shape(&names(&["web", "worker"]))));
}

#[test]
fn d15_reverse_zones_begin_at_octets() {
    for (prefix, name, expected, apex) in [
        ("10.0.0.0/8", "10.in-addr.arpa", Lookup::Apex, 3),
        ("10.0.0.0/8", "0.10.in-addr.arpa", Lookup::NoData, 3),
        ("10.0.0.0/8", "0.0.10.in-addr.arpa", Lookup::NoData, 3),
        ("10.0.0.0/8", "1.10.in-addr.arpa", Lookup::NxDomain, 3),
        ("10.0.0.0/8", "in-addr.arpa", Lookup::Elsewhere, 0),
        ("10.0.0.0/8", "11.in-addr.arpa", Lookup::Elsewhere, 0),
        ("172.16.0.0/12", "16.172.in-addr.arpa", Lookup::Apex, 4),
        ("172.16.0.0/12", "31.172.in-addr.arpa", Lookup::Apex, 4),
        ("172.16.0.0/12", "32.172.in-addr.arpa", Lookup::Elsewhere, 0),
        ("172.16.0.0/12", "0.16.172.in-addr.arpa", Lookup::NoData, 4),
        ("172.16.0.0/12", "1.16.172.in-addr.arpa", Lookup::NxDomain, 4),
        ("192.168.4.0/24", "4.168.192.in-addr.arpa", Lookup::Apex, 5),
        ("192.168.4.0/24", "5.168.192.in-addr.arpa", Lookup::Elsewhere, 0),
        ("192.168.4.64/28", "4.168.192.in-addr.arpa", Lookup::Apex, 5),
        ("192.168.4.64/28", "1.4.168.192.in-addr.arpa", Lookup::NxDomain, 5),
        ("192.168.4.64/28", "67.4.168.192.in-addr.arpa", Lookup::NxDomain, 5),
    ] {
        let zone = subnet(prefix);
        assert_eq!(look(&zone, name), (expected, apex), "{name} in {prefix}");
        let first = zone.plan().subnet.address(1).unwrap().octets();
        let [a, b, c, d] = first;
        let found = look(&zone, &format!("{d}.{c}.{b}.{a}.in-addr.arpa")).0;
        assert_eq!(found, Lookup::Pointer(expand("1.web.ap1.pn1.^").parse().unwrap()), "{prefix}");
    }
}
