use core::net::Ipv4Addr;
use std::thread;

use pn_core::{Change, ErrorKind, ProjectId};

use super::*;
use crate::fixture::{Model, app, expand, network, shop};
use crate::stub;
use crate::stub::Reply;

fn ask(names: &Names, n: u128, name: &str) -> Reply {
    let name = expand(name);
    let query = stub::query(&name, 7).unwrap();
    stub::addresses(7, &name, &names.resolve(network(n), Transport::Udp, &query).unwrap()).unwrap()
}

/// Publishes what a model plans and checks what is reported: action and network.
#[track_caller]
fn check(names: &Names, model: &Model, expected: &[(Action, u128)]) {
    let report = names.replace(&model.zones());
    assert_eq!(report.generation, model.state.generation());
    assert_eq!(names.generation(), report.generation);
    let outcomes = report.outcomes.iter().map(|outcome| (*outcome.result.as_ref().unwrap(), outcome.object.clone()));
    let expected = expected.iter().map(|(action, n)| (*action, format!("zone {}", network(*n))));
    assert_eq!(outcomes.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn a_publication_replaces_the_one_before_and_reports_what_changed() {
    let (names, mut model) = (Names::new(1), shop());
    assert_eq!(ask(&names, 1, "ap1.pn1.^"), Reply::Failed(2), "nothing is published");
    check(&names, &model, &[(Action::Created, 1), (Action::Created, 2)]);
    check(&names, &model, &[]);
    let [first, second] = [1, 2].map(|n| names.zone(network(n)).unwrap());

    let stopped = model.run(3, "worker", 2);
    check(&names, &model, &[(Action::Updated, 1)]);
    assert_eq!(names.zone(network(1)).unwrap().serial(), model.state.plan().zones().serial());
    assert!(Arc::ptr_eq(&names.zone(network(2)).unwrap(), &second), "the serial changes when the zone does");

    // A change of the network that leaves its names as they are: a draining container ends.
    model.apply(Change::Stop(stopped));
    check(&names, &model, &[(Action::Updated, 1)]);
    let before = names.zone(network(1)).unwrap();
    model.apply(Change::Fail(stopped));
    check(&names, &model, &[]);
    assert!(Arc::ptr_eq(&names.zone(network(1)).unwrap(), &before));
    assert_ne!(before.serial(), first.serial());

    let gone = model.state.containers(network(2)).next().unwrap().id;
    model.apply(Change::Fail(gone));
    model.apply(Change::RemoveApp(app(2)));
    model.apply(Change::DisablePrivateNetwork(ProjectId::from_u128(2)));
    assert!(matches!(ask(&names, 2, "ap2.pn2.^"), Reply::Addresses(_)));
    check(&names, &model, &[(Action::Removed, 2)]);
    assert_eq!(ask(&names, 2, "ap2.pn2.^"), Reply::Failed(2), "the network is not known any more");
    assert!(matches!(ask(&names, 1, "ap1.pn1.^"), Reply::Addresses(_)));
}

#[test]
fn x4_a_settled_set_is_not_taken_back_by_the_one_meanwhile() {
    let (names, model) = (Names::new(1), shop());
    let settled = model.zones();
    let meanwhile = ZoneSet { stage: Stage::Meanwhile, ..settled.clone() };
    let serial = |names: &Names| names.zone(network(1)).map(|zone| zone.serial());
    assert!(names.replace(&ZoneSet { zones: BTreeMap::new(), ..meanwhile.clone() }).failures().next().is_none());
    assert_eq!(serial(&names), None);
    assert!(names.replace(&settled).failures().next().is_none());
    assert_eq!(serial(&names), Some(settled.serial()));
    assert!(settled.serial() > meanwhile.serial(), "two contents never have one serial");
    let late = names.replace(&meanwhile).into_result().unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Superseded);
    assert_eq!(names.published(), settled);
}

#[test]
fn an_older_generation_is_refused_as_a_whole() {
    let (names, mut model) = (Names::new(1), shop());
    let old = model.zones();
    model.run(3, "worker", 2);
    check(&names, &model, &[(Action::Created, 1), (Action::Created, 2)]);
    let error = names.replace(&old).into_result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Superseded);
    assert!(matches!(ask(&names, 1, "2.worker.ap3.pn1.^"), Reply::Addresses(_)));
    assert_eq!(names.generation(), model.state.generation());
}

#[test]
fn d11_one_name_server_keeps_networks_apart() {
    let (names, model) = (Names::new(1), shop());
    check(&names, &model, &[(Action::Created, 1), (Action::Created, 2)]);
    let same = Reply::Addresses(vec![Ipv4Addr::new(10, 240, 0, 1)]);
    assert_eq!(ask(&names, 1, "1.web.ap1.pn1.^"), same);
    assert_eq!(ask(&names, 2, "1.web.ap2.pn2.^"), same, "every network has the same addresses");
    assert_eq!(ask(&names, 1, "1.web.ap2.pn2.^"), Reply::NxDomain);
    assert_eq!(ask(&names, 2, "1.web.ap1.pn1.^"), Reply::NxDomain);
    assert_eq!(ask(&names, 3, "1.web.ap1.pn1.^"), Reply::Failed(2));
}

#[test]
fn d14_whoever_published_reads_it_and_no_publication_is_lost() {
    let names = Names::new(1);
    let mut model = shop();
    model.app(9, 2, "late:64");
    let sets: Vec<_> = (1..=64)
        .map(|index| {
            model.run(9, "late", index);
            (index, model.zones())
        })
        .collect();
    let last = model.state.generation();
    thread::scope(|scope| {
        for turn in 0..4 {
            let (names, sets) = (&names, &sets);
            scope.spawn(move || {
                for (index, set) in sets.iter().skip(turn).step_by(4) {
                    let applied = names.replace(set).into_result().is_ok();
                    assert!(applied || names.generation() > set.generation);
                    assert!(matches!(ask(names, 2, &format!("{index}.late.ap9.pn2.^")), Reply::Addresses(_)));
                }
            });
        }
    });
    assert_eq!(names.generation(), last);
    assert!(matches!(ask(&names, 2, "64.late.ap9.pn2.^"), Reply::Addresses(_)));
}

#[test]
fn d7_answers_differ_in_order() {
    let (names, model) = (Names::new(1), shop());
    check(&names, &model, &[(Action::Created, 1), (Action::Created, 2)]);
    let first = ask(&names, 1, "ap1.pn1.^");
    assert!((0..64).any(|_| ask(&names, 1, "ap1.pn1.^") != first));
}
