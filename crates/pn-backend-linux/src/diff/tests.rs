//! Steps against a naive kernel: whatever it holds, they lead to what is wanted, and never ask for what a kernel would refuse.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::kernel::{Firewall, Identity, alias};
use crate::lower::lower;
use pn_core::{
    App, AppId, ContainerType, Families, NetworkRequest, Node, NodeId, NodePlan, Project, ProjectId, Region, Slot,
    State, Terms, Timestamp,
};

/// A kernel that does what it is asked, and panics where a real one would fail.
fn carry_out(kernel: &mut Kernel, steps: &[Step]) {
    for step in steps {
        match &step.change {
            Change::CreateNamespace(place) => {
                assert!(kernel.places.insert(*place, Namespace::default()).is_none(), "{place} is there already");
            }
            Change::RemoveNamespace(place) => {
                let gone = kernel.places.remove(place).expect("it is there");
                assert!(gone.links.is_empty(), "{place} goes with its links");
            }
            Change::ReplaceFirewall(place, elements) => {
                let firewall = Firewall { is_intact: true, elements: elements.clone() };
                kernel.places.get_mut(place).expect("it is there").firewall = Some(firewall);
            }
            Change::UpdateFirewall { place, remove, add } => {
                let namespace = kernel.places.get_mut(place).expect("it is there");
                let elements = &mut namespace.firewall.as_mut().expect("it has one").elements;
                assert!(remove.iter().all(|element| elements.remove(element)), "what is removed is there");
                assert!(add.iter().all(|element| elements.insert(element.clone())), "what is added is not there");
            }
            Change::RemoveLink(place, name) => remove_link(kernel, *place, *name),
            Change::AddLink(place, name, link) => {
                let bare = Link { alias: None, port: None, is_up: false, ..link.clone() };
                let namespace = kernel.places.get_mut(place).expect("it is there");
                assert!(namespace.links.insert(*name, bare).is_none(), "{name} of {place} is there already");
            }
            Change::AddPair { network, port, link, container, inner } => {
                for (place, name, link) in [(network, *port, link), (container, LinkName::Inner, inner)] {
                    let bare = Link { alias: None, port: None, is_up: false, ..link.clone() };
                    let namespace = kernel.places.get_mut(place).expect("it is there");
                    assert!(namespace.links.insert(name, bare).is_none(), "{name} of {place} is there already");
                }
            }
            Change::SetLink(place, name, link) => {
                let namespace = kernel.places.get_mut(place).expect("it is there");
                assert!(
                    link.port.is_none() || namespace.links.contains_key(&LinkName::Bridge),
                    "a port needs its bridge"
                );
                *namespace.links.get_mut(name).expect("it is there") = link.clone();
            }
            Change::Set(place, object) => {
                let namespace = kernel.places.get_mut(place).expect("it is there");
                assert!(namespace.links.contains_key(&object.link()), "{object:?} needs its link");
                change(namespace, *object, true);
            }
            Change::Remove(place, object) => {
                change(kernel.places.get_mut(place).expect("it is there"), *object, false);
            }
            Change::SetPeer(key, peer) => drop(kernel.peers.insert(*key, peer.clone())),
            Change::RemovePeer(key) => drop(kernel.peers.remove(key)),
        }
    }
}

fn change(namespace: &mut Namespace, object: Object, is_set: bool) {
    let removed = match object {
        Object::Address(link, prefix) => namespace.addresses.remove(&(link, prefix)),
        Object::Route(link, prefix) => namespace.routes.remove(&(link, prefix)),
        Object::Neighbour(link, to, _) => namespace.neighbours.remove(&(link, to)).is_some(),
        Object::BridgeFdb(link, mac) => namespace.bridge_fdb.remove(&(link, mac)),
        Object::VxlanFdb(mac, _) => namespace.vxlan_fdb.remove(&mac).is_some(),
    };
    assert!(is_set || removed, "{object:?} is not there");
    if is_set {
        match object {
            Object::Address(link, prefix) => drop(namespace.addresses.insert((link, prefix))),
            Object::Route(link, prefix) => drop(namespace.routes.insert((link, prefix))),
            Object::Neighbour(link, to, mac) => drop(namespace.neighbours.insert((link, to), mac)),
            Object::BridgeFdb(link, mac) => drop(namespace.bridge_fdb.insert((link, mac))),
            Object::VxlanFdb(mac, via) => drop(namespace.vxlan_fdb.insert(mac, via)),
        }
    }
}

/// A link goes with all it has; the other end of a container's link goes with it, and a bridge lets go of its ports.
fn remove_link(kernel: &mut Kernel, place: Place, name: LinkName) {
    let Some(link) = kernel.places.get_mut(&place).and_then(|namespace| namespace.links.remove(&name)) else {
        return;
    };
    let namespace = kernel.places.get_mut(&place).expect("it had the link");
    for object in objects(&namespace.clone()).filter(|object| object.link() == name) {
        change(namespace, object, false);
    }
    if name == LinkName::Bridge {
        namespace.bridge_fdb.clear();
        namespace.links.values_mut().for_each(|link| link.port = None);
    }
    if name == LinkName::Tunnel {
        kernel.peers.clear();
    }
    if matches!(name, LinkName::Port(_) | LinkName::Inner) {
        let ends = kernel.places.iter().flat_map(|(place, namespace)| {
            namespace.links.iter().map(|(name, link)| (*place, *name, link.alias.clone()))
        });
        let other = ends.filter(|(_, _, alias)| *alias == link.alias).map(|(place, name, _)| (place, name)).next();
        if let Some((place, name)) = other {
            remove_link(kernel, place, name);
        }
    }
}

/// The plans of a node whose networks, containers and peers come, move and go.
fn plans() -> Vec<NodePlan> {
    let mut state = State::new(Region::default());
    let here = NodeId::from_u128(1);
    let mut plans = vec![NodePlan::empty(here, state.generation())];
    let mut apply = |change| state.apply(Timestamp::ZERO, change).expect("the changes hold");
    for n in 1..=3_u8 {
        let (underlay, tunnel) = (format!("192.0.2.{n}:51820"), format!("100.64.0.{n}"));
        let (underlay, tunnel) = (underlay.parse().expect("an address"), tunnel.parse().expect("an address"));
        let label = "node".parse().expect("a label");
        let key = PublicKey::new([n; 32]);
        apply(pn_core::Change::AddNode(Node::new(NodeId::from_u128(n.into()), label, underlay, tunnel, key)));
    }
    for n in 1..=2 {
        let (project, label) = (ProjectId::from_u128(n), || "label".parse().expect("a label"));
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        let mut request = NetworkRequest::new(project, NetworkId::from_u128(n), terms);
        if n == 2 {
            request.families = Families::DualStack;
        }
        apply(pn_core::Change::AddProject(Project::new(project, label())));
        apply(pn_core::Change::EnablePrivateNetwork(request));
        apply(pn_core::Change::AddApp(App::new(AppId::from_u128(n), project, label())));
        apply(pn_core::Change::Scale { app: AppId::from_u128(n), formation: "web:9".parse().expect("a formation") });
    }
    for (container, app, index, node) in
        [(1, 1, 1, 1), (2, 1, 2, 2), (3, 2, 1, 1), (4, 2, 2, 3), (5, 1, 3, 1), (6, 2, 3, 2)]
    {
        let slot = Slot::new(AppId::from_u128(app), ContainerType::web(), index).expect("indexes from 1");
        let (container, node) = (ContainerId::from_u128(container), NodeId::from_u128(node));
        state.apply(Timestamp::ZERO, pn_core::Change::Start { container, slot, node }).expect("it starts");
        plans.push(state.node_plan(here));
    }
    for container in [2, 3, 4, 1] {
        let container = ContainerId::from_u128(container);
        state.apply(Timestamp::ZERO, pn_core::Change::Fail(container)).expect("it was started");
        plans.push(state.node_plan(here));
    }
    // The slot of a container elsewhere comes here, with its address.
    let slot = Slot::new(AppId::from_u128(1), ContainerType::web(), 2).expect("indexes from 1");
    let start = pn_core::Change::Start { container: ContainerId::from_u128(2), slot, node: here };
    state.apply(Timestamp::ZERO, start).expect("it starts");
    plans.push(state.node_plan(here));
    plans
}

fn kernel(plan: &NodePlan, kind: &LinkKind) -> Kernel {
    let attached = (1..=6).map(ContainerId::from_u128).collect();
    let mut kernel = lower(plan, &attached, kind);
    for container in attached {
        kernel.places.entry(Place::Container(container)).or_default();
    }
    kernel
}

const WIREGUARD: LinkKind = LinkKind::WireGuard(Some(Identity { public_key: PublicKey::new([1; 32]), port: 51820 }));

/// Breaks something.
fn damage(kernel: &mut Kernel, what: u8, which: Index) {
    let places: Vec<Place> = kernel.places.keys().copied().collect();
    if places.is_empty() {
        return;
    }
    let place = *which.get(&places);
    let names: Vec<LinkName> = kernel.places[&place].links.keys().copied().collect();
    let found: Vec<Object> = objects(&kernel.places[&place]).collect();
    let namespace = kernel.places.get_mut(&place).expect("it is one of them");
    match what % 9 {
        0 if !names.is_empty() => remove_link(kernel, place, *which.get(&names)),
        1 if !names.is_empty() => namespace.links.get_mut(which.get(&names)).expect("it is one of them").mtu = 1000,
        2 if !found.is_empty() => change(namespace, *which.get(&found), false),
        3 => namespace.firewall.iter_mut().for_each(|firewall| firewall.is_intact = false),
        4 => namespace.firewall.iter_mut().for_each(|firewall| drop(firewall.elements.pop_first())),
        5 if namespace.links.contains_key(&LinkName::Vxlan) => {
            let mac = MacAddr::new([2, 0, 9, 9, 9, 9]);
            change(namespace, Object::VxlanFdb(mac, IpAddr::from([192, 0, 2, 77])), true);
            change(namespace, Object::BridgeFdb(LinkName::Vxlan, mac), true);
        }
        6 if namespace.links.contains_key(&LinkName::Bridge) => {
            namespace.links.values_mut().for_each(|link| link.port = None);
            namespace.bridge_fdb.clear();
        }
        7 if !names.is_empty() => {
            namespace.links.get_mut(which.get(&names)).expect("it is one of them").is_plain = false
        }
        8 if !names.is_empty() => {
            namespace.links.get_mut(which.get(&names)).expect("it is one of them").kind = LinkKind::Other;
        }
        _ => drop(kernel.peers.pop_first()),
    }
}

#[test]
fn x5_from_every_plan_to_every_other() {
    let plans = plans();
    for kind in [LinkKind::Tun, WIREGUARD] {
        for (from, to) in plans.iter().flat_map(|from| plans.iter().map(move |to| (from, to))) {
            let (mut is, should) = (kernel(from, &kind), kernel(to, &kind));
            let steps = steps(&is, &should);
            assert_eq!(steps.is_empty(), from == to || is == should);
            carry_out(&mut is, &steps);
            assert_eq!((&is.places, &is.peers), (&should.places, &should.peers));
        }
    }
}

#[test]
fn x4_filters_come_first_and_peers_last() {
    let rank = |change: &Change| match change {
        Change::CreateNamespace(_) => 0,
        Change::ReplaceFirewall(..) | Change::UpdateFirewall { .. } => 1,
        Change::Remove(..) | Change::RemoveLink(..) => 2,
        Change::RemoveNamespace(_) => 3,
        Change::AddLink(..) | Change::AddPair { .. } | Change::SetLink(..) | Change::Set(..) => 4,
        Change::SetPeer(..) => 5,
        Change::RemovePeer(_) => 6,
    };
    let plans = plans();
    let keeps_its_tunnel = |to: &&NodePlan| !to.networks.is_empty();
    for (from, to) in plans.iter().flat_map(|from| plans.iter().filter(keeps_its_tunnel).map(move |to| (from, to))) {
        let steps = steps(&kernel(from, &LinkKind::Tun), &kernel(to, &LinkKind::Tun));
        assert!(steps.windows(2).all(|pair| rank(&pair[0].change) <= rank(&pair[1].change)), "{steps:#?}");
    }
}

#[test]
fn k3_a_key_that_is_replaced_hands_its_address_over_before_it_goes() {
    let mut plan = plans().into_iter().rev().find(|plan| !plan.peers.is_empty()).expect("there are peers");
    let [old, new] = [2, 9].map(|n| PublicKey::new([n; 32]));
    let peers = |public_key, next_public_key| {
        let (id, label) = (NodeId::from_u128(2), "node".parse().expect("a label"));
        let underlay = "192.0.2.2:51820".parse().expect("an address");
        let mut node = Node::new(id, label, underlay, [100, 64, 0, 2].into(), public_key);
        node.next_public_key = next_public_key;
        BTreeMap::from([(id, node.into())])
    };
    let stages = [peers(old, None), peers(old, Some(new)), peers(new, None)].map(|peers| {
        plan.peers = peers.into();
        kernel(&plan, &WIREGUARD)
    });
    let changes = |from: usize, to: usize| {
        let steps = steps(&stages[from], &stages[to]);
        steps.into_iter().map(|step| step.change).filter(is_about_peers).collect::<Vec<_>>()
    };
    let offered = changes(0, 1);
    let [Change::SetPeer(key, peer)] = &offered[..] else { panic!("{offered:?}") };
    assert_eq!((*key, peer.allowed.len()), (new, 0));
    let taken_over = changes(1, 2);
    let [Change::SetPeer(set, peer), Change::RemovePeer(removed)] = &taken_over[..] else { panic!("{taken_over:?}") };
    assert_eq!((*set, peer.tunnel_address(), *removed), (new, Some([100, 64, 0, 2].into()), old));
    // One that nobody offered first is the same.
    assert_eq!(changes(0, 2), taken_over);
}

const fn is_about_peers(change: &Change) -> bool {
    matches!(change, Change::SetPeer(..) | Change::RemovePeer(_))
}

#[test]
fn the_alias_of_a_link_is_read_back() {
    let (network, container) = (NetworkId::from_u128(7), ContainerId::from_u128(8));
    assert_eq!(crate::kernel::parse_alias(&alias(network, container)), Some((network, container)));
    for text in ["", "private-network", "private-network pn-1 ct-2", "other pn-1 ct-2"] {
        assert_eq!(crate::kernel::parse_alias(text), None, "{text:?}");
    }
}

proptest! {
    #[test]
    fn whatever_was_broken_is_repaired(
        from: Index, to: Index, is_kernel: bool, damages in prop::collection::vec((any::<u8>(), any::<Index>()), 0..6),
    ) {
        let (plans, kind) = (plans(), if is_kernel { WIREGUARD } else { LinkKind::Tun });
        let (mut is, should) = (kernel(from.get(&plans), &kind), kernel(to.get(&plans), &kind));
        for (what, which) in damages {
            damage(&mut is, what, which);
        }
        let steps = steps(&is, &should);
        carry_out(&mut is, &steps);
        prop_assert_eq!(&is.places, &should.places);
        prop_assert_eq!(&is.peers, &should.peers);
    }
}
