use pn_core::{Change, Limits, NodeId};
use proptest::prelude::*;

use super::*;
use crate::agent::fixture::{HERE, World, container, network, node, start};

/// Says what is held when the world becomes what `change` makes of it.
fn held(before: &World, change: impl FnOnce(&mut World)) -> String {
    let mut after = before.clone();
    change(&mut after);
    tell(&judge(&before.plan(), &after.plan(), &Tolerance::default()))
}

fn tell(verdict: &Verdict) -> String {
    let lines = verdict.held.iter().map(|(id, removal)| {
        format!("network {}: {:?}, {} of {}", id.as_u128(), removal.reason, removal.going.len(), removal.of)
    });
    lines.collect::<Vec<_>>().join("; ")
}

#[test]
fn l3_ordinary_life_is_never_held() {
    let mut world = World::new();
    let mut before = world.plan();
    let mut step = |world: &World| {
        let after = world.plan();
        assert_eq!(tell(&judge(&before, &after, &Tolerance::default())), "", "generation {}", after.generation);
        before = after;
    };
    world.run(1..=6, 1, 1);
    world.run(7..=10, 1, 2);
    step(&world);
    // A rolling restart of everything.
    for n in 1..=10 {
        let on = NodeId::from_u128(3);
        world.change(Change::Replace { container: container(n + 100), replaces: container(n), node: on });
        world.change(Change::Ready(container(n + 100)));
    }
    step(&world);
    world.remove(1..=10);
    step(&world);
    // From ten to nothing.
    world.run(11..=12, 1, 1);
    step(&world);
    world.stop(101..=110);
    world.stop(11..=12);
    step(&world);
    world.remove(101..=110);
    step(&world);
    world.remove(11..=12);
    step(&world);
    // The node's own end.
    world.change(Change::RemoveNode(HERE));
    assert_eq!(world.plan().host, None);
    step(&world);
}

#[test]
fn l3_what_goes_with_its_name_counts() {
    let mut world = World::new();
    world.run(1..=4, 1, 2);
    world.run([5], 1, 1);
    assert_eq!(held(&world, |world| world.fail(1..=4)), "network 1: Share, 4 of 5");
    assert_eq!(held(&world, |world| world.fail(1..=3)), "network 1: Share, 3 of 5");
    assert_eq!(held(&world, |world| world.fail(1..=2)), "", "two are few");
    world.run([6], 1, 1);
    assert_eq!(held(&world, |world| world.fail(1..=3)), "", "half is not more than half");

    let same_slot = |world: &mut World| {
        world.fail(1..=6);
        (1..=6).for_each(|n| world.change(start(n + 10, 1, n, 1)));
    };
    assert_eq!(held(&world, same_slot), "", "who is replaced is not deleted");
    world.stop(1..=4);
    world.run([7], 1, 2);
    assert_eq!(held(&world, |world| world.remove(1..=4)), "", "who has no name does not count");
    assert_eq!(held(&world, |world| world.fail(5..=7)), "network 1: WholeNetwork, 7 of 7");
}

#[test]
fn l3_a_network_leaves_with_its_last_container_here_unless_that_has_its_name() {
    let mut world = World::new();
    world.run(1..=9, 1, 2);
    world.start(10, 1, 1);
    assert_eq!(held(&world, |world| world.fail([10])), "", "it was starting");
    world.change(Change::Ready(container(10)));
    assert_eq!(held(&world, |world| world.fail([10])), "network 1: WholeNetwork, 10 of 10");
    let mut tolerance = Tolerance { last_containers: 2, ..Tolerance::default() };
    let mut after = world.clone();
    after.fail([10]);
    assert_eq!(tell(&judge(&world.plan(), &after.plan(), &tolerance)), "");
    tolerance.last_containers = 0;
    world.stop([10]);
    after = world.clone();
    after.remove([10]);
    assert_eq!(tell(&judge(&world.plan(), &after.plan(), &tolerance)), "", "it was stopped");
}

#[test]
fn l3_an_emptied_store_removes_nothing() {
    let mut world = World::new();
    world.start(1, 1, 1);
    world.run([2], 2, 1);
    let verdict = judge(&world.plan(), &world.wiped(), &Tolerance::default());
    assert_eq!(tell(&verdict), "network 1: Everything, 1 of 1; network 2: Everything, 1 of 1");
    let mut held = verdict.held;
    let merged = merge(&world.plan(), &world.wiped(), &mut held);
    assert_eq!((&merged.networks, &merged.host), (&world.plan().networks, &world.plan().host));
    assert_eq!(merged.generation, world.wiped().generation);
}

#[test]
fn what_concerns_others_goes_on() {
    let mut world = World::with_networks(&[1, 2, 3]);
    world.run(1..=4, 1, 1);
    world.run(5..=6, 2, 2);
    world.run(7..=8, 2, 1);
    let before = world.plan();
    world.fail(1..=4);
    world.stop([5]);
    world.run([9], 3, 3);
    world.run([10], 3, 1);
    let after = world.plan();
    let mut held = judge(&before, &after, &Tolerance::default()).held;
    let merged = merge(&before, &after, &mut held);
    assert_eq!(tell(&Verdict { held }), "network 1: WholeNetwork, 4 of 4");
    assert_eq!(merged.networks[&network(1)], before.networks[&network(1)]);
    for n in [2, 3] {
        assert_eq!(merged.networks[&network(n)], after.networks[&network(n)]);
    }
    assert_eq!(merged.check(&Limits::default()), []);
}

#[test]
fn n8_a_held_network_shares_nothing_with_one_that_comes() {
    let mut before = World::with_networks(&[1]);
    before.run(1..=3, 1, 1);
    before.run([4], 1, 2);
    // A region that was made anew: VNI 1 is another network's, and node 2's key and addresses are another node's.
    let mut after = World::with_networks(&[7, 8, 9]);
    after.change(Change::RemoveNode(NodeId::from_u128(2)));
    let mut impostor = node(2);
    impostor.id = NodeId::from_u128(20);
    after.change(Change::AddNode(impostor));
    after.run([5], 7, 1);
    after.run([6], 8, 1);
    after.run([7], 9, 1);
    after.run([8], 9, 20);
    let mut held = judge(&before.plan(), &after.plan(), &Tolerance::default()).held;
    let merged = merge(&before.plan(), &after.plan(), &mut held);
    assert_eq!(
        tell(&Verdict { held }),
        "network 1: WholeNetwork, 4 of 4; network 7: InTheWay, 0 of 0; network 9: InTheWay, 0 of 0"
    );
    assert_eq!(merged.networks.keys().copied().collect::<Vec<_>>(), [network(1), network(8)]);
    assert_eq!(merged.check(&Limits::default()), []);
}

#[test]
fn a_held_network_keeps_its_containers_to_itself() {
    let mut world = World::with_networks(&[1, 2, 3]);
    world.run(1..=3, 1, 1);
    world.run([4], 2, 1);
    world.run([5], 3, 1);
    let before = world.plan();
    world.fail(1..=3);
    // One comes back elsewhere under its id.
    world.run([1], 2, 1);
    world.run([6], 3, 1);
    let after = world.plan();
    let mut held = judge(&before, &after, &Tolerance::default()).held;
    let merged = merge(&before, &after, &mut held);
    assert_eq!(tell(&Verdict { held }), "network 1: WholeNetwork, 3 of 3; network 2: InTheWay, 0 of 0");
    for (n, plan) in [(1, &before), (2, &before), (3, &after)] {
        assert_eq!(merged.networks[&network(n)], plan.networks[&network(n)]);
    }
}

#[test]
fn l3_the_first_plan_is_compared_with_what_is_found() {
    let mut world = World::new();
    world.run(1..=3, 1, 1);
    world.run(4..=5, 1, 2);
    world.run([6], 2, 1);
    let found = Observed::from(&world.plan());
    let first = |plan: &NodePlan| tell(&judge_first(&found, plan, &Tolerance::default()));
    assert_eq!(first(&world.plan()), "");
    assert_eq!(first(&world.wiped()), "network 1: Everything, 5 of 5; network 2: Everything, 1 of 1");

    let after = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        first(&world.plan())
    };
    assert_eq!(after(&|world| world.fail(1..=2)), "");
    assert_eq!(after(&|world| world.fail([6])), "", "one may have been stopped meanwhile");
    assert_eq!(after(&|world| world.fail(1..=6)), "network 1: WholeNetwork, 5 of 5");
    assert_eq!(after(&|world| world.fail(2..=5)), "network 1: Share, 4 of 5");
    assert_eq!(tell(&judge_first(&Observed::default(), &world.wiped(), &Tolerance::default())), "");

    // Many small networks.
    let mut world = World::with_networks(&[1, 2, 3, 4]);
    (1..=4).for_each(|n| world.run([n], n.into(), 1));
    let found = Observed::from(&world.plan());
    world.fail(1..=2);
    assert_eq!(tell(&judge_first(&found, &world.plan(), &Tolerance::default())), "");
    world.fail([3]);
    let all = "network 1: Everything, 1 of 1; network 2: Everything, 1 of 1; network 3: Everything, 1 of 1";
    assert_eq!(tell(&judge_first(&found, &world.plan(), &Tolerance::default())), all);
}

#[derive(Debug, Clone)]
enum Step {
    Start(u32, u128, u128),
    Ready(u128),
    Stop(u128),
    Fail(u128),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..=12_u32, 1..=3_u128, 1..=3_u128).prop_map(|(n, of, on)| Step::Start(n, of, on)),
        4 => (1..=12_u128).prop_map(Step::Ready),
        1 => (1..=12_u128).prop_map(Step::Stop),
        1 => (1..=12_u128).prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 0..60)
}

fn live(world: &mut World, steps: &[Step]) {
    for step in steps {
        let change = match step {
            Step::Start(n, of, on) => start(*n, *of, *n, *on),
            Step::Ready(n) => Change::Ready(container(*n)),
            Step::Stop(n) => Change::Stop(container(*n)),
            Step::Fail(n) => Change::Fail(container(*n)),
        };
        // What the state refuses does not happen.
        drop(world.state.apply(world.now, change));
    }
}

proptest! {
    #[test]
    fn what_is_obeyed_takes_nothing_away_and_holds_together(first in steps(), then in steps(), is_anew in any::<bool>()) {
        let mut world = World::with_networks(&[1, 2, 3]);
        live(&mut world, &first);
        let before = world.plan();
        if is_anew {
            world = World::with_networks(&[3, 1, 2]);
        }
        live(&mut world, &then);
        let after = world.plan();
        let tolerance = Tolerance::default();
        let verdict = judge(&before, &after, &tolerance);
        let mut held = verdict.held.clone();
        let merged = merge(&before, &after, &mut held);

        prop_assert_eq!(judge(&before, &before, &tolerance), Verdict::default());
        prop_assert_eq!(judge(&before, &merged, &tolerance), Verdict::default());
        prop_assert_eq!(merged.check(&Limits::default()), vec![]);
        for (id, network) in merged.networks.iter() {
            let origin = if held.contains_key(id) { &before } else { &after };
            prop_assert_eq!(Some(network), origin.networks.get(id));
        }
        let all = before.networks.keys().filter(|id| held.contains_key(*id));
        prop_assert_eq!(all.count(), held.keys().filter(|id| merged.networks.contains_key(*id)).count());
        if held.is_empty() {
            prop_assert_eq!(merged, after);
        }
    }
}
