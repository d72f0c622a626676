//! What agents do, story by story.

use core::time::Duration;

use pn_core::backend::Observed;
use pn_core::{BackendError, Change, ErrorKind, Followed, Generation, NodePlan, OverlayBackend, Report};

use super::sim::{Fault, Sim, ready};
use crate::agent::fixture::{HERE, World, network};
use crate::agent::{AgentOptions, Leave, Machine, Phase, Task};

/// A settled node with three containers of network 1, one of them elsewhere, and one of network 2.
fn settled() -> Sim {
    let mut sim = Sim::new();
    sim.world.run(1..=2, 1, 1);
    sim.world.run([3], 1, 2);
    sim.world.run([4], 2, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert!(sim.machine.status().is_settled());
    sim.log.clear();
    sim
}

fn settle(sim: &mut Sim) {
    sim.settle();
    sim.check();
}

fn observed(sim: &Sim) -> Observed {
    ready(sim.overlay.observe()).unwrap()
}

/// Returns how many addresses have names in a network.
fn named(sim: &Sim, of: u128) -> usize {
    let zones = sim.names[0].published().zones;
    zones.get(&network(of)).map_or(0, |zone| zone.types().map(|of_type| of_type.containers.len()).sum())
}

/// Writes what is held.
fn held(sim: &Sim) -> String {
    let lines = sim
        .machine
        .status()
        .held
        .iter()
        .map(|(id, held)| format!("{}: {:?}, {} of {}", id.as_u128(), held.reason, held.going, held.of));
    lines.collect::<Vec<_>>().join("; ")
}

fn followed(sim: &mut Sim, followed: Followed) {
    sim.machine.on_followed(sim.now, followed);
}

#[test]
fn x4_names_are_withdrawn_before_and_announced_after() {
    let mut sim = settled();
    sim.world.stop([1]);
    sim.world.run([5], 1, 2);
    sim.deliver_world();
    settle(&mut sim);
    let generation = sim.world.state.generation();
    let expected =
        ["publish Meanwhile of", "publish Meanwhile of", "apply", "publish Settled of", "publish Settled of"];
    for (line, expected) in sim.log.iter().zip(expected) {
        assert!(line.starts_with(&format!("{expected} {generation}")), "{:?}", sim.log);
    }
    assert_eq!(sim.log.len(), expected.len());
    assert_eq!(named(&sim, 1), 3);

    // Nothing vanishes, so nothing is withdrawn.
    sim.log.clear();
    sim.world.run([6], 1, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert_eq!(sim.log.len(), 3, "{:?}", sim.log);
}

#[test]
fn plans_that_come_too_fast_are_passed_over() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    sim.deliver_world();
    for n in 6..=9 {
        sim.world.run([n], 1, 1);
        sim.deliver_world();
    }
    settle(&mut sim);
    let applies = sim.log.iter().filter(|line| line.starts_with("apply"));
    assert_eq!(applies.count(), 2, "the one under way, and the last: {:?}", sim.log);
}

#[test]
fn x4_names_of_a_network_wait_that_failed_and_others_go_on() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    sim.world.run([6], 2, 1);
    // Network 2 is there and something else of it fails, so its names stay as they were.
    sim.world.stop([2]);
    let before = (named(&sim, 1), named(&sim, 2));
    sim.deliver_world();
    let _ = sim.step();
    sim.faults = [Some(Fault::Deny)].into();
    while sim.step() {}
    assert_eq!(before, (3, 1));
    assert_eq!((named(&sim, 1), named(&sim, 2)), (2, 2), "Deny says that network 1 failed");
    let status = sim.machine.status();
    assert!(!status.is_settled());
    let failure = &status.failures[&format!("network {}", network(1))];
    assert_eq!((failure.kind, failure.attempts, failure.since), (ErrorKind::Io, 1, sim.now));
    assert!(failure.message.starts_with("cannot create network pn-"), "{}", failure.message);
    settle(&mut sim);
    assert_eq!((named(&sim, 1), named(&sim, 2)), (3, 2));
    assert!(sim.machine.status().is_settled());
}

/// Who waits for a change in a network does not wait for others that fail on a node, and is not told that what is held was done.
#[test]
fn d14_what_was_made_is_told_network_by_network() {
    let mut sim = settled();
    let first = sim.world.state.generation();
    let told = |sim: &Sim| {
        let status = sim.machine.status();
        [1, 2].map(|n| status.apart.get(&network(n)).copied().or(status.announced).unwrap())
    };
    assert_eq!(told(&sim), [first; 2]);
    sim.world.run([5], 1, 1);
    sim.world.run([6], 2, 1);
    sim.deliver_world();
    let second = sim.world.state.generation();
    sim.faults = [Some(Fault::Deny)].into();
    while sim.step() {}
    assert_eq!(told(&sim), [first, second], "Deny says that network 1 failed");
    settle(&mut sim);
    assert_eq!(told(&sim), [second; 2]);

    sim.world.fail(1..=3);
    sim.world.run([7], 2, 1);
    sim.deliver_world();
    let third = sim.world.state.generation();
    settle(&mut sim);
    assert_eq!((held(&sim).as_str(), told(&sim)), ("1: Share, 3 of 4", [second, third]));
    sim.confirm();
    assert_eq!(told(&sim), [second, third], "it is confirmed and not done");
    settle(&mut sim);
    assert_eq!(told(&sim), [third; 2]);

    // No name changes, and everything is there but for what nobody can see.
    sim.world.start(8, 1, 1);
    sim.deliver_world();
    let fourth = sim.world.state.generation();
    sim.faults = [Some(Fault::Deny)].into();
    while sim.step() {}
    assert_eq!(told(&sim), [third, fourth]);
    settle(&mut sim);
    // Nobody knows what is there.
    sim.world.start(9, 1, 1);
    sim.deliver_world();
    sim.faults = [Some(Fault::Refuse), Some(Fault::Refuse)].into();
    while sim.step() {}
    assert_eq!(told(&sim), [fourth; 2]);
    sim.settle();
    let fifth = sim.world.state.generation();
    assert_eq!(told(&sim), [fifth; 2]);

    // What was held in an earlier life is not known before the source says what it wants.
    sim.crash(true);
    settle(&mut sim);
    assert_eq!(told(&sim), [fifth; 2], "nobody asks yet");
    sim.deliver_world();
    assert_eq!(told(&sim), [Generation::ZERO; 2]);
    settle(&mut sim);
    assert_eq!(told(&sim), [fifth; 2]);
}

#[test]
fn what_failed_is_tried_again_at_once_when_it_is_asked_for() {
    let mut machine = Machine::new(HERE, "memory", 0, AgentOptions::new(1));
    let mut world = World::new();
    world.run([1], 1, 1);
    let now = world.now;
    let fail = |machine: &mut Machine| {
        let mut report = Report::new(world.plan().generation);
        report.record("container", Err(BackendError::new(ErrorKind::NotFound, "connect", "a container")));
        machine.on_applied(now, &report);
        machine.on_observed(now, Ok(Observed::default()));
    };
    machine.on_followed(now, Followed::Plan(world.plan()));
    machine.on_observed(now, Ok(Observed::default()));
    fail(&mut machine);
    let after = |machine: &Machine| machine.poll_timeout().unwrap().as_millis() - now.as_millis();
    assert!(after(&machine) >= 15_000, "what does not change by itself is not tried often");
    machine.on_retry(now);
    assert!(matches!(machine.poll_task(), Some(Task::Apply(_))));
    // It fails once more for what was before it was asked for.
    machine.on_retry(now);
    fail(&mut machine);
    assert!(matches!(machine.poll_task(), Some(Task::Apply(_))));
    fail(&mut machine);
    assert!(after(&machine) >= 15_000, "asked for once, it is tried once");
    machine.on_retry(now);
    machine.on_applied(now, &Report::new(world.plan().generation));
    assert!(machine.status().is_settled());
    assert!(matches!(machine.poll_task(), Some(Task::Apply(_))));
    machine.on_retry(now);
    assert!(machine.poll_task().is_none(), "nothing failed");
}

#[test]
fn retries_come_later_each_time_and_not_together() {
    let delays = |seed: u64| {
        let mut machine = Machine::new(HERE, "memory", 0, AgentOptions::new(seed));
        let mut world = World::new();
        world.run([1], 1, 1);
        machine.on_followed(world.now, Followed::Plan(world.plan()));
        machine.on_observed(world.now, Ok(Observed::default()));
        let mut delays = Vec::new();
        for _ in 0..12 {
            let mut report = Report::new(world.plan().generation);
            report.record("network", Err(BackendError::new(ErrorKind::Io, "create", "a bridge")));
            machine.on_applied(world.now, &report);
            machine.on_observed(world.now, Ok(Observed::default()));
            let at = machine.poll_timeout().unwrap();
            delays.push(at.as_millis() - world.now.as_millis());
            world.now = at;
            machine.on_timeout(at);
        }
        delays
    };
    let found = delays(1);
    for (attempt, delay) in found.iter().enumerate() {
        let most = (100 << attempt).min(30_000);
        assert!((most / 2..=most).contains(delay), "attempt {attempt}: {delay} ms");
    }
    assert_ne!(found, delays(2));
    assert_eq!(found, delays(1));
}

#[test]
fn what_does_not_change_by_itself_is_not_tried_often() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    sim.deliver_world();
    assert!(matches!(sim.machine.poll_task(), Some(Task::Apply(_))));
    let error = BackendError::new(ErrorKind::PermissionDenied, "create", "a bridge");
    sim.machine.on_applied(sim.now, &Report::refused(Generation::ZERO, error));
    while sim.step() {}
    assert!(sim.machine.poll_timeout().unwrap() >= sim.now.after(Duration::from_secs(15)));
    // A newer plan does not wait for it.
    sim.world.run([6], 1, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert_eq!(sim.now.as_millis(), 0);
}

#[test]
fn what_hangs_is_cancelled() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    sim.faults = [Some(Fault::HangBefore)].into();
    sim.deliver_world();
    while sim.step() {}
    assert_eq!(sim.machine.poll_timeout(), Some(sim.now.after(Duration::from_secs(30))));
    sim.wait(Duration::from_secs(30));
    let generation = sim.world.state.generation();
    let failure = &sim.machine.status().failures[&format!("generation {generation}")];
    let message = format!("cannot apply generation {generation}: there was no answer in time");
    assert_eq!(failure.message, message);
    assert_eq!(named(&sim, 1), 3, "the names that were there still are");
    settle(&mut sim);
    assert_eq!(named(&sim, 1), 4);
}

#[test]
fn x8_what_is_lost_is_repaired_and_counted() {
    let mut sim = settled();
    sim.wait(Duration::from_secs(29));
    sim.tamper(1);
    assert_eq!(observed(&sim).networks.len(), 1);
    sim.wait(Duration::from_secs(2));
    sim.check();
    assert_eq!(sim.machine.status().repairs, 1);
    assert_eq!(sim.log, ["observe (None)", &format!("apply {} (None)", sim.world.state.generation())]);
    sim.wait(Duration::from_secs(300));
    assert_eq!(sim.machine.status().repairs, 1);
    assert_eq!(sim.log.len(), 12, "ten comparisons more: {:?}", sim.log);
}

#[test]
fn l4_a_lost_source_changes_nothing_and_is_told() {
    let mut sim = settled();
    let before = observed(&sim);
    sim.wait(Duration::from_secs(3));
    let since = sim.now;
    for why in ["refused", "timed out"] {
        followed(&mut sim, Followed::Lost(why.to_owned()));
        sim.wait(Duration::from_secs(3600));
    }
    let stale = sim.machine.status().stale.clone().unwrap();
    assert_eq!((stale.since, stale.why.as_str()), (since, "timed out"));
    sim.check();
    assert_eq!(observed(&sim), before);
    assert!(sim.log.iter().all(|line| line == "observe (None)"), "only comparisons: {:?}", sim.log);
    followed(&mut sim, Followed::Back);
    assert_eq!(sim.machine.status().stale, None);
    followed(&mut sim, Followed::Closed);
    assert_eq!(sim.machine.status().stale.as_ref().unwrap().why, "the source has ended");
    sim.deliver_world();
    assert_eq!(sim.machine.status().stale, None, "what comes with a plan is not stale");
}

#[test]
fn l3_an_emptied_store_waits_for_a_confirmation() {
    let mut sim = settled();
    let before = observed(&sim);
    let wiped = |sim: &mut Sim| {
        sim.world.run([40], 2, 2);
        sim.world.fail([40]);
        NodePlan::empty(HERE, sim.world.state.generation())
    };
    let plan = wiped(&mut sim);
    sim.deliver(plan);
    settle(&mut sim);
    assert_eq!(held(&sim), "1: Everything, 3 of 3; 2: Everything, 1 of 1");
    assert_eq!((observed(&sim), named(&sim, 1), named(&sim, 2)), (before.clone(), 3, 1));
    assert!(!sim.machine.status().is_settled());

    // The records come back, and with them a container.
    sim.world.run([5], 2, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert_eq!(held(&sim), "");
    assert!(sim.machine.status().is_settled());
    assert_eq!(named(&sim, 2), 2);

    let plan = wiped(&mut sim);
    sim.deliver(plan);
    settle(&mut sim);
    sim.confirm();
    settle(&mut sim);
    assert_eq!((observed(&sim), named(&sim, 1)), (Observed::default(), 0));
    assert!(sim.machine.status().is_settled());
}

#[test]
fn l3_what_only_adds_goes_on_while_something_is_held() {
    let mut sim = settled();
    sim.world.fail(1..=3);
    sim.world.run(5..=6, 2, 3);
    sim.deliver_world();
    settle(&mut sim);
    assert_eq!(held(&sim), "1: WholeNetwork, 3 of 3");
    assert_eq!((named(&sim, 1), named(&sim, 2)), (3, 3));
    // The same containers are back: the hold lifts by itself.
    sim.world.run(1..=3, 1, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert_eq!(held(&sim), "");
    assert!(sim.machine.status().is_settled());
}

#[test]
fn l3_a_confirmation_is_of_what_was_asked_for_until_then() {
    let mut sim = settled();
    sim.world.run(11..=14, 1, 2);
    sim.deliver_world();
    settle(&mut sim);
    let older = sim.world.state.generation();
    sim.world.fail(11..=14);
    sim.deliver_world();
    assert_eq!(held(&sim), "1: Share, 4 of 7");
    let asked = sim.world.state.generation();
    let held_since = |sim: &Sim| sim.machine.status().held[&network(1)].generation;
    assert_eq!(held_since(&sim), asked);

    // Other plans come; the hold is still the first one's.
    sim.world.run([5], 2, 1);
    sim.deliver_world();
    assert_eq!(held_since(&sim), asked);
    followed(&mut sim, Followed::Confirmed(older));
    assert_eq!(held(&sim), "1: Share, 4 of 7");
    // More would go.
    sim.world.fail([3]);
    sim.deliver_world();
    followed(&mut sim, Followed::Confirmed(asked));
    assert_eq!(held(&sim), "1: Share, 5 of 7");
    let more = held_since(&sim);
    assert!(more > asked);
    followed(&mut sim, Followed::Confirmed(more));
    assert_eq!(held(&sim), "");

    // A confirmation may come before the plan.
    sim.world.fail(1..=2);
    let coming = sim.world.state.generation();
    followed(&mut sim, Followed::Confirmed(coming));
    sim.deliver_world();
    assert_eq!(held(&sim), "");
    // One of nothing does not count for what comes later.
    sim.machine.on_confirmed(sim.now);
    sim.world.fail([4, 5]);
    sim.deliver_world();
    assert_eq!(held(&sim), "2: WholeNetwork, 2 of 2");
    sim.machine.on_confirmed(sim.now);
    assert_eq!(held(&sim), "");
}

#[test]
fn a_node_that_is_torn_down_on_purpose_is_not_held() {
    let mut sim = settled();
    let mut step = |change: &dyn Fn(&mut World)| {
        change(&mut sim.world);
        sim.deliver_world();
        sim.settle();
        assert_eq!(held(&sim), "");
    };
    step(&|world| world.stop(1..=4));
    step(&|world| world.remove(1..=4));
    step(&|world| world.change(Change::RemoveNode(HERE)));
    sim.check();
    assert!(sim.machine.status().is_settled());
    assert_eq!(observed(&sim), Observed::default());
}

#[test]
fn l6_a_fenced_node_stops_until_there_is_a_newer_plan() {
    let mut sim = settled();
    let old = sim.world.plan();
    // Even in the middle of something.
    sim.world.run([5], 1, 1);
    sim.faults = [Some(Fault::HangBefore)].into();
    sim.deliver_world();
    while sim.step() {}
    sim.fence();
    settle(&mut sim);
    assert_eq!(sim.now.as_millis(), 0, "it does not wait for what hangs");
    assert_eq!((observed(&sim), named(&sim, 1)), (Observed::default(), 0));
    let status = sim.machine.status();
    assert_eq!((status.phase, status.fenced.as_deref()), (Phase::Fenced, Some("taken")));
    let withdrawn = sim.log.iter().rposition(|line| line.starts_with("publish Meanwhile"));
    assert!(withdrawn < sim.log.iter().rposition(|line| line.starts_with("apply")), "{:?}", sim.log);

    sim.deliver(old.clone());
    sim.deliver_world();
    settle(&mut sim);
    let status = sim.machine.status();
    assert_eq!(status.phase, Phase::Fenced, "it knew these plans when it was fenced");
    assert_eq!(status.failures.len(), 1, "{:?}", status.failures);

    sim.world.run([6], 1, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert!(sim.machine.status().is_settled());
    assert_eq!(named(&sim, 1), 5);
}

#[test]
fn an_older_plan_or_one_for_another_node_is_not_taken() {
    let mut sim = settled();
    let old = sim.world.plan();
    sim.world.run([5], 1, 1);
    sim.deliver_world();
    let strange = sim.world.state.node_plan(crate::agent::fixture::node(2).id);
    settle(&mut sim);
    for (plan, kind) in [(old, ErrorKind::Superseded), (strange, ErrorKind::WrongNode)] {
        let object = format!("generation {}", plan.generation);
        followed(&mut sim, Followed::Plan(plan));
        let failures = &sim.machine.status().failures;
        assert_eq!(failures.keys().collect::<Vec<_>>(), [&object]);
        assert_eq!(failures[&object].kind, kind);
        sim.check();
    }
    sim.world.run([6], 1, 1);
    sim.deliver_world();
    settle(&mut sim);
    assert!(sim.machine.status().is_settled(), "a good plan ends it");
}

#[test]
fn an_agent_that_is_restarted_keeps_every_name() {
    for is_resumed in [false, true] {
        let mut sim = settled();
        sim.crash(is_resumed);
        assert_eq!(sim.machine.status().phase, Phase::Starting);
        if !is_resumed {
            sim.deliver_world();
        }
        while sim.step() {
            assert_eq!((named(&sim, 1), named(&sim, 2)), (3, 1), "{:?}", sim.log);
        }
        sim.check();
        assert!(sim.machine.status().is_settled(), "{:?}", sim.machine.status());
    }
}

#[test]
fn l3_a_restarted_agent_does_not_obey_an_emptied_store() {
    for is_resumed in [false, true] {
        let mut sim = settled();
        let before = observed(&sim);
        sim.crash(is_resumed);
        sim.deliver(NodePlan::empty(HERE, sim.world.state.generation().next()));
        sim.settle();
        assert_eq!(observed(&sim), before);
        assert_eq!(held(&sim), "1: Everything, 3 of 3; 2: Everything, 1 of 1");
        let phase = if is_resumed { Phase::Following } else { Phase::Starting };
        assert_eq!(sim.machine.status().phase, phase);
        sim.confirm();
        sim.settle();
        assert_eq!(observed(&sim), Observed::default());
    }
}

#[test]
fn who_leaves_for_good_takes_everything_down_when_names_are_forgotten() {
    let mut sim = settled();
    sim.machine.on_shutdown(sim.now, Leave::Nothing);
    let task = sim.machine.poll_task();
    let Some(Task::Publish(sets)) = task else { panic!("{task:?}") };
    assert!(sets.iter().all(|(_, set)| set.zones.is_empty()));
    for (number, set) in sets {
        let report = Report::new(set.generation);
        sim.machine.on_published(sim.now, number, &report);
    }
    assert!(sim.machine.poll_task().is_none(), "caches may still have the names");
    let until = sim.now.after(Duration::from_secs(5));
    assert_eq!(sim.machine.poll_timeout(), Some(until));
    sim.machine.on_timeout(until);
    let task = sim.machine.poll_task();
    let Some(Task::Apply(plan)) = task else { panic!("{task:?}") };
    assert_eq!(plan, NodePlan::empty(HERE, sim.world.state.generation()));
    // Plans do not matter any more.
    sim.world.run([5], 1, 1);
    let late = sim.world.plan();
    followed(&mut sim, Followed::Plan(late));
    sim.machine.on_applied(until, &Report::new(plan.generation));
    assert!(sim.machine.is_done() || matches!(sim.machine.poll_task(), Some(Task::Publish(_))));
}

#[test]
fn who_leaves_for_good_does_not_try_forever() {
    let mut machine = Machine::new(HERE, "memory", 0, AgentOptions::new(1));
    let mut world = World::new();
    machine.on_shutdown(world.now, Leave::Nothing);
    let mut attempts = 0;
    while !machine.is_done() {
        match machine.poll_task() {
            Some(Task::Apply(plan)) => {
                attempts += 1;
                let error = BackendError::new(ErrorKind::Io, "remove", "a bridge");
                machine.on_applied(world.now, &Report::refused(plan.generation, error));
            }
            Some(Task::Observe) => machine.on_observed(world.now, Ok(Observed::default())),
            Some(Task::Publish(_)) | None => {
                world.now = machine.poll_timeout().unwrap();
                machine.on_timeout(world.now);
            }
        }
    }
    assert_eq!(attempts, 3);
    assert!(machine.status().failures.contains_key("a bridge"));
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn who_leaves_for_a_restart_leaves_everything() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    sim.deliver_world();
    sim.machine.on_shutdown(sim.now, Leave::Running);
    assert!(sim.machine.is_done());
    assert!(sim.machine.poll_task().is_none());
    assert_eq!(observed(&sim).networks.len(), 2);
    sim.machine.on_shutdown(sim.now, Leave::Nothing);
    sim.machine.on_confirmed(sim.now);
    assert!(sim.machine.is_done() && sim.machine.poll_task().is_none());
}

#[test]
fn x4_a_name_that_was_perhaps_announced_is_withdrawn() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    if sim.world.state.generation().get() % 2 == 1 {
        // Number 0 is the one that fails.
        sim.world.run([6], 1, 1);
        sim.world.stop([6]);
    }
    sim.faults = [None, Some(Fault::Deny)].into();
    sim.deliver_world();
    while sim.step() {}
    assert_eq!(named(&sim, 1), 4);
    assert_eq!(sim.machine.status().failures.len(), 1, "it answers, and said that it would not");
    sim.world.stop([5]);
    sim.deliver_world();
    let _ = sim.step();
    assert_eq!(named(&sim, 1), 3, "{:?}", sim.log);
    settle(&mut sim);
}

#[test]
fn l6_what_was_perhaps_announced_is_withdrawn_when_the_node_is_fenced() {
    let mut sim = Sim::new();
    sim.deliver_world();
    settle(&mut sim);
    sim.world.run([1], 1, 1);
    if sim.world.state.generation().get() % 2 == 1 {
        sim.world.start(2, 1, 1);
    }
    // Nothing to withdraw, applied; the announcement arrives and is never answered.
    sim.faults = [None, Some(Fault::HangAfter)].into();
    sim.deliver_world();
    while sim.step() {}
    assert_eq!(named(&sim, 1), 1);
    sim.fence();
    // Every step is checked for names without ways.
    settle(&mut sim);
    assert_eq!(named(&sim, 1), 0);
}

#[test]
fn x4_names_behind_a_peer_that_is_lost_are_withdrawn_when_an_attempt_fails() {
    let mut sim = settled();
    sim.overlay.tamper(|found| found.peers.clear());
    sim.world.run([5], 1, 1);
    sim.faults = [Some(Fault::Refuse)].into();
    sim.deliver_world();
    while sim.step() {}
    assert_eq!(named(&sim, 1), 2, "two are here, one is behind the peer, the new one has no way yet");
    settle(&mut sim);
    assert_eq!(named(&sim, 1), 4);
}

#[test]
fn l3_a_confirmation_reaches_a_hold_that_newer_plans_did_not_change() {
    let mut sim = settled();
    sim.world.fail([4]);
    sim.deliver_world();
    let asked = sim.world.state.generation();
    sim.world.run([5], 1, 1);
    sim.deliver_world();
    assert_eq!(held(&sim), "2: WholeNetwork, 1 of 1");
    followed(&mut sim, Followed::Confirmed(asked));
    assert_eq!(held(&sim), "");
}

#[test]
fn a_node_that_rejoins_before_it_was_ever_read_waits_without_spinning() {
    let mut sim = Sim::new();
    sim.deliver_world();
    sim.fence();
    let _ = sim.step();
    // In the middle of being taken down there is a newer plan, and then the data plane does not answer.
    sim.world.run([1], 1, 1);
    sim.deliver_world();
    sim.faults = [None, None, Some(Fault::HangBefore), Some(Fault::HangBefore)].into();
    sim.wait(Duration::from_secs(120));
    settle(&mut sim);
    assert!(sim.machine.status().is_settled());
}

#[test]
fn x4_a_name_server_that_missed_what_a_failure_took_is_not_told_it_again() {
    let mut sim = settled();
    sim.world.run([5], 1, 1);
    if sim.world.state.generation().get() % 2 == 1 {
        // Number 0 is the one that fails.
        sim.world.start(6, 1, 1);
    }
    // Network 2 is lost, which is seen, and one name server does not hear of it.
    sim.faults = [Some(Fault::Part(2)), None, Some(Fault::Refuse)].into();
    sim.deliver_world();
    while sim.step() {}
    assert_eq!(named(&sim, 2), 1);
    // Every set is checked for names without ways.
    settle(&mut sim);
    assert_eq!(named(&sim, 2), 1);
}
