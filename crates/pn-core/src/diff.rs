//! What differs between two plans, to be read before anything happens.

use core::fmt;
use core::net::Ipv4Addr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::container::Slot;
use crate::id::{ContainerId, NetworkId, NodeId};
use crate::label::Label;
use crate::node::Node;
use crate::plan::{Endpoint, NetworkPlan, NodePlan, Plan};

/// One difference between a plan and an older one. Its `Display` is a line of a review: `+` comes, `-` goes, `~` changes.
///
/// ```text
/// + 3.web.ap-… 10.240.0.7 on node-b
/// ~ network pn-…: MTU 1390 → 1290
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanChange {
    /// A node comes.
    NodeAdded(Arc<Node>),
    /// A node goes.
    NodeRemoved(Arc<Node>),
    /// A node is different.
    NodeChanged {
        /// What it was.
        before: Arc<Node>,
        /// What it is to be.
        after: Arc<Node>,
    },
    /// A network comes; its containers follow.
    NetworkAdded(Arc<NetworkPlan>),
    /// A network goes; its containers went before.
    NetworkRemoved(Arc<NetworkPlan>),
    /// A network is different, other than by its containers.
    NetworkChanged {
        /// What it was.
        before: Arc<NetworkPlan>,
        /// What it is to be.
        after: Arc<NetworkPlan>,
    },
    /// A container comes.
    ContainerAdded(PlannedContainer),
    /// A container goes.
    ContainerRemoved(PlannedContainer),
    /// A container gets its name.
    ContainerNamed(PlannedContainer),
    /// A container loses its name and keeps its way.
    ContainerUnnamed(PlannedContainer),
}

/// A container as a plan has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedContainer {
    /// The network it is in.
    pub network: NetworkId,
    /// The container.
    pub container: ContainerId,
    /// The slot it fills.
    pub slot: Slot,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node it runs on.
    pub node: NodeId,
    /// What people call the node.
    pub node_label: Option<Label>,
    /// Whether it has the name of its slot.
    pub is_named: bool,
}

impl Plan {
    /// Lists what is different from an older plan: nodes, then each network and its containers. Networks that both plans
    /// share cost nothing.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Vec<PlanChange> {
        changes((&old.nodes, &old.networks), (&self.nodes, &self.networks))
    }
}

impl NodePlan {
    /// Lists what is different from an older plan, as [`Plan::changes_since`] does, of the nodes and networks it has.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Vec<PlanChange> {
        let nodes = |plan: &Self| {
            let host = plan.host.iter().map(|host| (host.id, Arc::clone(host)));
            host.chain(plan.peers.iter().map(|(id, node)| (*id, Arc::clone(node)))).collect::<BTreeMap<_, _>>()
        };
        changes((&nodes(old), &old.networks), (&nodes(self), &self.networks))
    }
}

type Nodes = BTreeMap<NodeId, Arc<Node>>;
type Networks = BTreeMap<NetworkId, Arc<NetworkPlan>>;

fn changes(old: (&Nodes, &Networks), new: (&Nodes, &Networks)) -> Vec<PlanChange> {
    let mut found = Vec::new();
    for (before, after) in pairs(old.0, new.0) {
        found.extend(match (before, after) {
            (None, Some(after)) => Some(PlanChange::NodeAdded(Arc::clone(after))),
            (Some(before), None) => Some(PlanChange::NodeRemoved(Arc::clone(before))),
            (Some(before), Some(after)) if before != after => {
                Some(PlanChange::NodeChanged { before: Arc::clone(before), after: Arc::clone(after) })
            }
            (Some(_), Some(_)) | (None, None) => None,
        });
    }
    for (before, after) in pairs(old.1, new.1) {
        if let (Some(before), Some(after)) = (before, after)
            && Arc::ptr_eq(before, after)
        {
            continue;
        }
        match (before, after) {
            (None, Some(after)) => found.push(PlanChange::NetworkAdded(Arc::clone(after))),
            (Some(before), Some(after)) if header(before) != header(after) => {
                found.push(PlanChange::NetworkChanged { before: Arc::clone(before), after: Arc::clone(after) });
            }
            (Some(_), _) | (None, None) => {}
        }
        let (was, is) = (containers(before, old.0), containers(after, new.0));
        for (before, after) in pairs(&was, &is) {
            found.extend(match (before, after) {
                (None, Some(after)) => Some(PlanChange::ContainerAdded(after.clone())),
                (Some(before), None) => Some(PlanChange::ContainerRemoved(before.clone())),
                (Some(before), Some(after)) if !before.is_named && after.is_named => {
                    Some(PlanChange::ContainerNamed(after.clone()))
                }
                (Some(before), Some(after)) if before.is_named && !after.is_named => {
                    Some(PlanChange::ContainerUnnamed(after.clone()))
                }
                (Some(_), Some(_)) | (None, None) => None,
            });
        }
        if let (Some(before), None) = (before, after) {
            found.push(PlanChange::NetworkRemoved(Arc::clone(before)));
        }
    }
    found
}

/// Walks two maps side by side.
fn pairs<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> Vec<(Option<&'a V>, Option<&'a V>)> {
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    keys.into_iter().map(|key| (old.get(key), new.get(key))).collect()
}

/// What of a network is not its containers.
fn header(network: &NetworkPlan) -> impl PartialEq + use<> {
    let NetworkPlan { vni, subnet, ipv6, mtu, resolver, encryption, key_scope, .. } = network;
    (*vni, *subnet, *ipv6, *mtu, *resolver, *encryption, *key_scope)
}

fn containers(
    network: Option<&Arc<NetworkPlan>>,
    nodes: &Nodes,
) -> BTreeMap<(Ipv4Addr, ContainerId), PlannedContainer> {
    let planned = |network: &NetworkPlan, endpoint: &Endpoint| PlannedContainer {
        network: network.id,
        container: endpoint.container,
        slot: endpoint.slot(),
        address: endpoint.address,
        node: endpoint.node,
        node_label: nodes.get(&endpoint.node).map(|node| node.label.clone()),
        is_named: network.is_named(endpoint),
    };
    let all = network.into_iter().flat_map(|network| network.endpoints.iter().map(move |endpoint| (network, endpoint)));
    all.map(|(network, endpoint)| ((endpoint.address, endpoint.container), planned(network, endpoint))).collect()
}

impl fmt::Display for PlannedContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on ", self.slot, self.address)?;
        match &self.node_label {
            Some(label) => write!(f, "{label}"),
            None => write!(f, "{}", self.node),
        }
    }
}

impl fmt::Display for PlanChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeAdded(node) => write!(f, "+ node {} at {}", node.label, node.underlay),
            Self::NodeRemoved(node) => write!(f, "- node {} at {}", node.label, node.underlay),
            Self::NodeChanged { before, after } => {
                write!(f, "~ node {}:", before.label)?;
                let mut fields = Fields::new(f);
                fields.field("label", &before.label, &after.label)?;
                fields.field("underlay", &before.underlay, &after.underlay)?;
                fields.field("tunnel address", &before.tunnel_address, &after.tunnel_address)?;
                fields.field("public key", &before.public_key, &after.public_key)?;
                fields.field("next public key", &Optional(before.next_public_key), &Optional(after.next_public_key))?;
                fields.field("underlay MTU", &before.underlay_mtu, &after.underlay_mtu)?;
                fields.field("registration", &before.registration, &after.registration)?;
                fields.debug("availability", &before.availability, &after.availability)
            }
            Self::NetworkAdded(network) => {
                write!(f, "+ network {}: VNI {}, {}, MTU {}", network.id, network.vni, network.subnet, network.mtu)
            }
            Self::NetworkRemoved(network) => write!(f, "- network {}: VNI {}", network.id, network.vni),
            Self::NetworkChanged { before, after } => {
                write!(f, "~ network {}:", before.id)?;
                let mut fields = Fields::new(f);
                fields.field("VNI", &before.vni, &after.vni)?;
                fields.field("subnet", &before.subnet, &after.subnet)?;
                fields.field("IPv6", &Optional(before.ipv6), &Optional(after.ipv6))?;
                fields.field("MTU", &before.mtu, &after.mtu)?;
                fields.field("resolver", &before.resolver, &after.resolver)?;
                fields.debug("encryption", &before.encryption, &after.encryption)?;
                fields.debug("key scope", &before.key_scope, &after.key_scope)
            }
            Self::ContainerAdded(container) if container.is_named => write!(f, "+ {container}"),
            Self::ContainerAdded(container) => write!(f, "+ {container}, without its name"),
            Self::ContainerRemoved(container) => write!(f, "- {container}"),
            Self::ContainerNamed(container) => write!(f, "~ {container}: gets its name"),
            Self::ContainerUnnamed(container) => write!(f, "~ {container}: loses its name"),
        }
    }
}

/// Writes the fields that differ, with commas between.
struct Fields<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    separator: &'static str,
}

impl<'a, 'f> Fields<'a, 'f> {
    const fn new(f: &'a mut fmt::Formatter<'f>) -> Self {
        Self { f, separator: " " }
    }

    fn field<T: fmt::Display + PartialEq>(&mut self, name: &str, before: &T, after: &T) -> fmt::Result {
        if before == after {
            return Ok(());
        }
        write!(self.f, "{}{name} {before} → {after}", core::mem::replace(&mut self.separator, ", "))
    }

    fn debug<T: fmt::Debug + PartialEq>(&mut self, name: &str, before: &T, after: &T) -> fmt::Result {
        self.field(name, &format!("{before:?}"), &format!("{after:?}"))
    }
}

#[derive(PartialEq)]
struct Optional<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Optional<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => write!(f, "{value}"),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    fn lines(changes: &[PlanChange]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plan_reads_like_a_review() {
        let mut state = State::new(Region::default());
        let (app, network) = (AppId::from_u128(1), NetworkId::from_u128(1));
        let project = ProjectId::from_u128(1);
        let label = || "x".parse::<Label>().unwrap();
        let node = |n: u8| {
            let (underlay, tunnel) = (([192, 0, 2, n], 51820).into(), [100, 64, 0, n].into());
            let label = format!("node-{n}").parse().unwrap();
            Node::new(NodeId::from_u128(n.into()), label, underlay, tunnel, PublicKey::new([n; 32]))
        };
        let slot = |index| Slot::new(app, ContainerType::web(), index).unwrap();
        let start = |n: u32, on: u128| Change::Start {
            container: ContainerId::from_u128(n.into()),
            slot: slot(n),
            node: NodeId::from_u128(on),
        };
        let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
        let mut step = |changes: Vec<Change>| {
            let (before, before_1) = (state.plan(), state.node_plan(NodeId::from_u128(1)));
            for change in changes {
                state.apply(Timestamp::ZERO, change).unwrap();
            }
            let found = state.plan().changes_since(&before);
            assert_eq!(state.plan().changes_since(&state.plan()), []);
            (lines(&found), lines(&state.node_plan(NodeId::from_u128(1)).changes_since(&before_1)))
        };
        let begin = vec![
            Change::AddNode(node(1)),
            Change::AddNode(node(2)),
            Change::AddProject(Project::new(project, label())),
            Change::EnablePrivateNetwork(NetworkRequest::new(project, network, terms)),
            Change::AddApp(App::new(app, project, label())),
            Change::Scale { app, formation: Formation::web(9) },
            start(1, 1),
        ];
        let (all, first) = step(begin);
        let expected = [
            "+ node node-1 at 192.0.2.1:51820".to_owned(),
            "+ node node-2 at 192.0.2.2:51820".to_owned(),
            format!("+ network {network}: VNI 1, 10.240.0.0/22, MTU 1390"),
            format!("+ 1.web.{app} 10.240.0.1 on node-1, without its name"),
        ];
        assert_eq!(all, expected);
        let ours = [0, 2, 3].map(|n| expected[n].clone());
        assert_eq!(first, ours, "node 2 shares nothing with node 1 yet");

        let one = ContainerId::from_u128(1);
        let (all, first) = step(vec![Change::Ready(one), start(2, 2), Change::Ready(ContainerId::from_u128(2))]);
        assert_eq!(
            all,
            [
                format!("~ 1.web.{app} 10.240.0.1 on node-1: gets its name"),
                format!("+ 2.web.{app} 10.240.0.2 on node-2")
            ]
        );
        assert_eq!(first[0], expected[1], "node 2 becomes a peer");
        assert_eq!(first[1..], all);

        let mut smaller = node(2);
        (smaller.underlay_mtu, smaller.availability) = (1400, Availability::Draining);
        let (all, _) = step(vec![Change::Stop(one), Change::UpdateNode(smaller)]);
        assert_eq!(
            all,
            [
                "~ node node-2: underlay MTU 1500 → 1400, availability Open → Draining".to_owned(),
                format!("~ network {network}: MTU 1390 → 1290"),
                format!("~ 1.web.{app} 10.240.0.1 on node-1: loses its name"),
            ]
        );
        let (all, first) = step(vec![Change::Fail(one)]);
        assert_eq!(all, [format!("- 1.web.{app} 10.240.0.1 on node-1")]);
        assert_eq!(first.last().unwrap(), &format!("- network {network}: VNI 1"));
    }
}
