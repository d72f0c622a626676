//! After any life with any faults an agent ends where its plans lead, and on the way no law is broken.

use core::time::Duration;

use pn_core::{Availability, Change, Followed, NodePlan};
use proptest::prelude::*;

use super::sim::{Fault, Sim};
use crate::agent::fixture::{HERE, container, start};

#[derive(Debug, Clone)]
enum Event {
    Start(u32, u128, u128),
    Ready(u128),
    Stop(u128),
    Remove,
    Fail(u128),
    FailAll(u128),
    /// The plan of the world as it is.
    Deliver,
    /// A plan that was delivered before.
    DeliverOld,
    /// The plan of an emptied store.
    Wipe,
    Lost,
    Back,
    Confirm,
    Fence,
    Crash(bool),
    Tamper(u128),
    Fault(Option<Fault>),
    Step(usize),
    Wait(u64),
    Settle,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let of = || 1..=2_u128;
    let fault = prop_oneof![
        Just(None),
        Just(Some(Fault::Refuse)),
        Just(Some(Fault::Deny)),
        of().prop_map(|n| Some(Fault::Part(n))),
        Just(Some(Fault::HangBefore)),
        Just(Some(Fault::HangAfter)),
    ];
    let event = prop_oneof![
        8 => (1..=8_u32, of(), 1..=3_u128).prop_map(|(n, of, on)| Event::Start(n, of, on)),
        8 => (1..=8_u128).prop_map(Event::Ready),
        3 => (1..=8_u128).prop_map(Event::Stop),
        3 => Just(Event::Remove),
        2 => (1..=8_u128).prop_map(Event::Fail),
        1 => of().prop_map(Event::FailAll),
        12 => Just(Event::Deliver),
        1 => Just(Event::DeliverOld),
        2 => Just(Event::Wipe),
        1 => Just(Event::Lost),
        1 => Just(Event::Back),
        1 => Just(Event::Confirm),
        1 => Just(Event::Fence),
        2 => any::<bool>().prop_map(Event::Crash),
        1 => of().prop_map(Event::Tamper),
        6 => fault.prop_map(Event::Fault),
        10 => (1..=3_usize).prop_map(Event::Step),
        3 => (0..40_000_u64).prop_map(Event::Wait),
        6 => Just(Event::Settle),
    ];
    prop::collection::vec(event, 1..80)
}

/// Makes the generation grow.
fn toggle(sim: &mut Sim, availability: Availability) {
    sim.world.change(Change::SetAvailability { node: HERE, availability });
}

fn live(sim: &mut Sim, event: &Event) {
    let mut change = |change| drop(sim.world.state.apply(sim.world.now, change));
    match event {
        Event::Start(n, of, on) => change(start(*n, *of, *n, *on)),
        Event::Ready(n) => change(Change::Ready(container(*n))),
        Event::Stop(n) => change(Change::Stop(container(*n))),
        Event::Fail(n) => change(Change::Fail(container(*n))),
        Event::FailAll(of) => {
            let all: Vec<_> = sim.world.state.containers(crate::agent::fixture::network(*of)).collect();
            all.iter().for_each(|container| sim.world.change(Change::Fail(container.id)));
        }
        Event::Remove => {
            sim.world.now = sim.world.now.after(Duration::from_secs(60));
            (1..=8).for_each(|n| drop(sim.world.state.apply(sim.world.now, Change::Remove(container(n)))));
        }
        Event::Deliver => sim.deliver_world(),
        Event::DeliverOld => {
            let old = sim.world.plan();
            toggle(sim, Availability::Open);
            sim.deliver_world();
            sim.deliver(old);
        }
        Event::Wipe => {
            toggle(sim, Availability::Draining);
            sim.deliver(NodePlan::empty(HERE, sim.world.state.generation()));
            toggle(sim, Availability::Open);
        }
        Event::Lost => sim.machine.on_followed(sim.now, Followed::Lost("gone".to_owned())),
        Event::Back => sim.machine.on_followed(sim.now, Followed::Back),
        Event::Confirm => sim.confirm(),
        Event::Fence => sim.fence(),
        Event::Crash(is_resumed) => sim.crash(*is_resumed),
        Event::Tamper(of) => sim.tamper(*of),
        Event::Fault(fault) => sim.faults.push_back(*fault),
        Event::Step(steps) => {
            let _ = (0..*steps).all(|_| sim.step());
        }
        Event::Wait(millis) => sim.wait(Duration::from_millis(*millis)),
        Event::Settle => {
            sim.faults.clear();
            sim.settle();
            sim.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn every_life_ends_where_its_plans_lead(events in events()) {
        let mut sim = Sim::new();
        events.iter().for_each(|event| live(&mut sim, event));
        live(&mut sim, &Event::Settle);
        toggle(&mut sim, Availability::Draining);
        sim.deliver_world();
        live(&mut sim, &Event::Settle);
        sim.confirm();
        live(&mut sim, &Event::Settle);
        prop_assert!(sim.machine.status().is_settled(), "{:?} after {:?}", sim.machine.status(), sim.log);
        prop_assert_eq!(sim.names[0].published(), sim.world.plan().zones());
    }
}

/// Returns how many lives are tried: 512, or `PN_AGENT_CASES`.
fn cases() -> u32 {
    std::env::var("PN_AGENT_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(512)
}
