use core::net::Ipv4Addr;

use super::*;
use crate::*;

fn state() -> State {
    let mut state = State::new(Region::default());
    let mut apply = |change| assert!(state.apply(Timestamp::ZERO, change).is_ok());
    let label = || "x".parse::<Label>().unwrap();
    for n in 1..=3u8 {
        let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
        let key = PublicKey::new([n; 32]);
        apply(Change::AddNode(Node::new(NodeId::from_u128(n.into()), label(), underlay, tunnel, key)));
    }
    for n in 1..=3u128 {
        let (project, app) = (ProjectId::from_u128(n), AppId::from_u128(n));
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        apply(Change::AddProject(Project::new(project, label())));
        apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, NetworkId::from_u128(n), terms)));
        apply(Change::AddApp(App::new(app, project, label())));
        apply(Change::Scale { app, formation: "web:3 idle:0".parse().unwrap() });
        for index in 1..=3u32 {
            let container = ContainerId::from_u128(n * 10 + u128::from(index));
            let slot = Slot::new(app, ContainerType::web(), index).unwrap();
            // Network n is on nodes n and n + 1 only.
            let node = NodeId::from_u128((n + u128::from(index % 2)).min(3));
            apply(Change::Start { container, slot, node });
            if index < 3 {
                apply(Change::Ready(container));
            }
        }
        let new = ContainerId::from_u128(n * 10 + 4);
        apply(Change::Replace {
            container: new,
            replaces: ContainerId::from_u128(n * 10 + 1),
            node: NodeId::from_u128(n),
        });
        apply(Change::Ready(new));
    }
    state
}

#[test]
fn a_state_is_the_sum_of_its_records_in_any_order() {
    let state = state();
    let mut records = state.records();
    for _ in 0..2 {
        let loaded = State::load(Region::default(), state.generation(), records.clone()).unwrap();
        assert_eq!(loaded.plan(), state.plan());
        assert_eq!(loaded.records(), state.records());
        records.reverse();
    }
}

#[test]
fn a_loaded_state_goes_on_where_the_other_was() {
    let state = state();
    let mut loaded = State::load(Region::default(), state.generation(), state.records()).unwrap();
    let mut state = state;
    let (app, node) = (AppId::from_u128(1), NodeId::from_u128(1));
    let slot = |index| Slot::new(app, ContainerType::web(), index).unwrap();
    let start = |n: u128, index| Change::Start { container: ContainerId::from_u128(n), slot: slot(index), node };
    for (change, is_allowed) in [
        (start(90, 1), false),
        (Change::Scale { app, formation: "web:5".parse().unwrap() }, true),
        (start(90, 5), true),
        (Change::Ready(ContainerId::from_u128(90)), true),
        (Change::Scale { app, formation: "web:1".parse().unwrap() }, true),
    ] {
        let (one, two) = (state.apply(Timestamp::ZERO, change.clone()), loaded.apply(Timestamp::ZERO, change));
        assert_eq!((one.is_ok(), &one), (is_allowed, &two));
        assert_eq!(loaded.plan(), state.plan());
    }
}

#[test]
fn a_share_is_enough_for_its_node() {
    let state = state();
    for n in 1..=4 {
        let node = NodeId::from_u128(n);
        let share = state.share(node);
        assert!(share.len() < state.records().len());
        let loaded = State::load(Region::default(), state.generation(), share).unwrap();
        assert_eq!(loaded.node_plan(node), state.node_plan(node));
    }
    let of_third = state.share(NodeId::from_u128(1));
    let strangers = of_third
        .iter()
        .filter(|record| matches!(record, Record::Network(network) if network.id != NetworkId::from_u128(1)));
    assert_eq!(strangers.count(), 0, "node 1 hears of its network only");
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let records = state().records();
    let is = |record: &Record, of: &str| match record {
        Record::Project(_) => of == "project",
        Record::App(_) => of == "app",
        Record::Network(_) => of == "network",
        Record::Node(_) => of == "node",
        Record::Container(_) => of == "container",
        Record::Rest(_) | Record::Next(..) => of == "rest",
    };
    let refused =
        |records: Vec<Record>| State::load(Region::default(), Generation::ZERO, records).unwrap_err().to_string();
    let without = |of: &str| refused(records.iter().filter(|record| !is(record, of)).cloned().collect());
    let twice = |of: &str| {
        let second = records.iter().find(|record| is(record, of)).cloned();
        refused(records.iter().cloned().chain(second).collect())
    };
    assert!(without("project").starts_with("private network pn-"), "{}", without("project"));
    assert!(without("network").contains("is not recorded in a private network"));
    assert!(without("app").contains("is not recorded in a private network"));
    assert!(without("node").contains("is on node nd-"));
    for of in ["project", "app", "node", "network", "container"] {
        assert!(twice(of).ends_with("is recorded twice"), "{}", twice(of));
    }

    let edited = |edit: &dyn Fn(&mut Container)| {
        let mut records = records.clone();
        if let Some(Record::Container(container)) = records.iter_mut().rev().find(|record| is(record, "container")) {
            edit(container);
        }
        refused(records)
    };
    assert!(edited(&|container| container.address = Ipv4Addr::new(192, 0, 2, 1)).ends_with("or another's"));
    assert!(
        edited(&|container| container.slot = Slot::new(AppId::from_u128(3), ContainerType::web(), 2).unwrap())
            .ends_with("fills a slot that another fills")
    );

    let addresses = Numbers::Addresses(NetworkId::from_u128(1));
    let stranger = Numbers::Addresses(NetworkId::from_u128(99));
    for (of, number) in
        [(Numbers::Vnis, 0), (Numbers::Vnis, u32::MAX), (addresses, 0), (addresses, 1023), (stranger, 1)]
    {
        let error = refused(records.iter().cloned().chain([Record::Next(of, number)]).collect());
        assert_eq!(error, format!("it cannot be the turn of {number} of {of:?}"));
    }
}

/// What claims what another project has takes nothing from it, and leaves nothing of itself.
#[test]
fn records_that_are_refused_leave_a_state_as_it_was() {
    let project = ProjectId::from_u128(1);
    type Edit = fn(&mut Record);
    let edits: [(&str, Edit); 6] = [
        ("has a VNI that another has", |record| {
            if let Record::Network(network) = record {
                network.vni = Vni::new(2).unwrap();
            }
        }),
        ("private network pn-00000000-0000-0000-0000-000000000002 is recorded twice", |record| {
            if let Record::Network(network) = record {
                network.id = NetworkId::from_u128(2);
            } else if let Record::Next(of, _) = record {
                *of = Numbers::Addresses(NetworkId::from_u128(2));
            }
        }),
        ("fills a slot that another fills", |record| {
            if let Record::Container(container) = record
                && container.is_live()
            {
                container.slot = Slot::new(AppId::from_u128(1), ContainerType::web(), 1).unwrap();
                container.phase = Phase::Ready;
            }
        }),
        ("app ap-00000000-0000-0000-0000-000000000002 is recorded twice", |record| {
            let other = AppId::from_u128(2);
            if let Record::App(app) = record {
                app.id = other;
            } else if let Record::Container(container) = record {
                container.slot = Slot::new(other, ContainerType::web(), container.slot.index()).unwrap();
            }
        }),
        ("is recorded twice", |record| {
            if let Record::Container(container) = record {
                container.id = ContainerId::from_u128(22);
            }
        }),
        ("or another's", |record| {
            if let Record::Container(container) = record {
                container.address = Ipv4Addr::new(10, 240, 0, 1);
            }
        }),
    ];
    for (expected, edit) in edits {
        let mut state = state();
        let (before, plan) = (state.records(), state.plan());
        let mut records = state.records_of(project);
        records.iter_mut().for_each(edit);
        let error = state.replace_project(state.generation(), project, records).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
        assert_eq!((state.records(), state.plan()), (before, plan), "{error}");
        for container in [12, 22, 32].map(ContainerId::from_u128) {
            assert!(state.container(container).is_some_and(|found| found.id == container), "{error}");
        }
    }
}

/// What is not of the project is refused before anything is taken apart, whatever stands behind it.
#[test]
fn records_of_others_are_refused() {
    let project = ProjectId::from_u128(1);
    let (before, others) = (state(), ProjectId::from_u128(2));
    let network = NetworkId::from_u128(2);
    let container = Container {
        id: ContainerId::from_u128(99),
        slot: Slot::new(AppId::from_u128(2), ContainerType::web(), 9).unwrap(),
        node: NodeId::from_u128(1),
        address: Ipv4Addr::new(10, 240, 0, 99),
        phase: Phase::Ready,
    };
    let since = Timestamp::from_millis(9);
    let rest = Rest::Address { network, address: Ipv4Addr::new(10, 240, 0, 98), slot: container.slot, since };
    let app = App::new(AppId::from_u128(99), others, "x".parse().unwrap());
    let known = NodeId::from_u128(9);
    let mut node = before.node(NodeId::from_u128(1)).cloned().unwrap();
    (node.id, node.underlay, node.tunnel_address) = (known, ([192, 0, 2, 9], 51820).into(), [100, 64, 0, 9].into());
    let vni = Vni::new(9).unwrap();
    let mut named = before.network(network).cloned().unwrap();
    (named.id, named.vni) = (NetworkId::from_u128(99), vni);
    for foreign in [
        Record::Container(container),
        Record::Rest(rest),
        Record::Next(Numbers::Addresses(network), 9),
        Record::App(app),
        Record::Node(node),
        Record::Project(Project::new(ProjectId::from_u128(99), "x".parse().unwrap())),
        Record::Network(named),
        Record::Rest(Rest::Vni { vni, network: NetworkId::from_u128(99), since }),
        Record::Next(Numbers::Vnis, 9),
    ] {
        let what = foreign.to_string();
        // What comes last is refused as well, and would have been the end of what was put in before.
        let twice = before.records_of(project).pop().unwrap();
        for last in [None, Some(twice)] {
            let mut state = before.clone();
            let plan = state.plan();
            let records = state.records_of(project).into_iter().chain([foreign.clone()]).chain(last);
            let error = state.replace_project(state.generation().next(), project, records).unwrap_err();
            assert_eq!(error, LoadError::Foreign { what: what.clone(), project });
            assert_eq!((&state, state.plan()), (&before, plan), "{what}");
        }
    }
}

/// What is found only when half of it was put in takes nothing away either.
#[test]
fn a_project_that_contradicts_itself_leaves_a_state_as_it_was() {
    let (mut state, before) = (state(), state());
    let project = ProjectId::from_u128(1);
    let records = before.records_of(project);
    let twice = records.iter().find(|record| matches!(record, Record::Container(_))).cloned();
    let records = records.into_iter().chain(twice);
    let error = state.replace_project(state.generation().next(), project, records).unwrap_err();
    assert!(error.to_string().ends_with("is recorded twice"), "{error}");
    assert_eq!((&state, state.plan()), (&before, before.plan()));
}

#[test]
fn a_node_is_forgotten_when_nothing_runs_there() {
    let mut state = state();
    let (used, id) = (NodeId::from_u128(1), NodeId::from_u128(9));
    let mut idle = state.node(used).cloned().unwrap();
    (idle.id, idle.underlay, idle.tunnel_address) = (id, ([192, 0, 2, 9], 51820).into(), [100, 64, 0, 9].into());
    idle.public_key = PublicKey::new([9; 32]);
    state.replace_node(state.generation().next(), idle.clone());
    assert!(state.node(id).is_some());
    for (node, is_left) in [(used, true), (id, false)] {
        let next = state.generation().next();
        state.forget_node(next, node);
        assert_eq!((state.node(node).is_some(), state.generation()), (is_left, next));
    }
    // Its addresses and key are free again.
    assert!(state.apply(Timestamp::ZERO, Change::AddNode(idle)).is_ok());
}

/// The same records again change nothing, of the nodes that the project shares with others either.
#[test]
fn a_project_is_replaced_by_itself() {
    let (mut state, before) = (state(), state());
    for n in 1..=3 {
        let project = ProjectId::from_u128(n);
        state.replace_project(state.generation(), project, state.records_of(project)).unwrap();
        assert_eq!((&state, state.plan()), (&before, before.plan()));
        for node in (1..=3).map(NodeId::from_u128) {
            assert_eq!(state.node_plan(node), before.node_plan(node));
        }
    }
}
