//! Asking nodes what they have, and answering.

use core::fmt::Display;
use core::time::Duration;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use pn_core::{
    App, AppId, Container, Formation, Generation, Label, Node, NodeId, NodePlan, Phase, Project, Record, Timestamp,
};

use crate::store::list_families;
use crate::{Key, Outcome, Registry, RegistryError, Revision, Transaction, layout};

/// How long what nodes say is kept.
const KEPT: Duration = Duration::from_secs(600);

/// How many records one key holds.
const CHUNK: usize = 200;

/// How many such keys are read at once.
const PAGE: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");

/// What a node said it has.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The generation that it has applied.
    pub(crate) generation: Generation,
    /// The records that its plan comes from.
    pub(crate) records: Vec<Record>,
}

/// Says what a node has, as its last plan tells, in the place of what it said before.
pub(crate) async fn publish(
    registry: &Registry,
    node: NodeId,
    plan: &NodePlan,
    asked: Revision,
) -> Result<(), RegistryError> {
    let lease = registry.store().grant(KEPT).await?;
    let prefix = layout::seen(node);
    let key = |name: &str| format!("{prefix}{name}").parse::<Key>().expect("ids and numbers are a key");
    registry.store().commit(Transaction::new().delete_prefix(prefix.clone())).await?;
    for (n, chunk) in records_of(plan).chunks(CHUNK).enumerate() {
        let lines: Vec<String> = chunk.iter().map(Record::to_json).collect();
        let put = Transaction::new().put_leased(key(&format!("{n:06}")), lines.join("\n"), lease.id);
        registry.store().commit(put).await?;
    }
    let done = format!("{asked} {}", plan.generation);
    registry.store().commit(Transaction::new().put_leased(key(DONE), done, lease.id)).await?;
    Ok(())
}

/// The key that is put last, beneath those of a node's answer.
const DONE: &str = "done";

impl Registry {
    /// Asks by a key that nodes look at, and returns the revision that answers name.
    pub(crate) async fn ask(&self, key: Key) -> Result<Revision, RegistryError> {
        // No two questions are the same, even where a store went back and says a revision again.
        let mark = format!("{} {:016x}", self.clock().now().as_millis(), self.clock().random());
        match self.store().commit(Transaction::new().put(key, mark)).await? {
            Outcome::Committed(revision) => Ok(revision),
            Outcome::Refused => Ok(Revision::ZERO),
        }
    }

    /// Reads what a node has said since it was asked; `None` where it has not said all of it.
    pub(crate) async fn answer(&self, node: NodeId, asked: Revision) -> Result<Option<Answer>, RegistryError> {
        let prefix = layout::seen(node);
        let (_, entries) = list_families(&**self.store(), core::slice::from_ref(&prefix), None, PAGE).await?;
        let (mut generation, mut records) = (None, Vec::new());
        for entry in &entries {
            let text = String::from_utf8_lossy(&entry.value);
            if entry.key.strip_prefix(&prefix) == Some(DONE) {
                generation = text.split_once(' ').and_then(|(to, generation)| {
                    let is_answer = to.parse::<u64>().ok()? >= asked.get();
                    is_answer.then_some(Generation::new(generation.parse().ok()?))
                });
                continue;
            }
            for line in text.lines() {
                let record = Record::from_json(line);
                records.push(record.map_err(|source| RegistryError::Record { key: entry.key.clone(), source })?);
            }
        }
        Ok(generation.map(|generation| Answer { generation, records }))
    }
}

/// Returns a label for what agents see and cannot call by its name.
fn made_up(id: impl Display) -> Label {
    format!("recovered-{id}").parse().expect("ids are letters, digits and dashes")
}

pub(crate) fn formation(items: impl Iterator<Item = String>) -> Formation {
    let items: Vec<String> = items.collect();
    items.join(" ").parse().expect("the types of a formation differ, and counts are in range")
}

/// Returns the records that a plan comes from, as far as it tells.
pub(crate) fn records_of(plan: &NodePlan) -> Vec<Record> {
    let nodes = plan.host.iter().chain(plan.peers.values());
    let mut records: Vec<Record> = nodes.map(|node| Record::Node(Node::clone(node))).collect();
    for network in plan.networks.values() {
        records.push(Record::Project(Project::new(network.project, made_up(network.project))));
        records.push(Record::Network(network.network()));
        let mut apps: BTreeMap<AppId, BTreeMap<_, u32>> = BTreeMap::new();
        for of_type in network.zone.types() {
            apps.entry(of_type.app).or_default().insert(of_type.container_type, 0);
        }
        for endpoint in &network.endpoints {
            let slot = endpoint.slot();
            let types = apps.entry(slot.app()).or_default();
            if network.is_named(endpoint) {
                let count = types.entry(slot.container_type()).or_default();
                *count = slot.index().max(*count);
            }
            // What has no name drains, for all that can be seen: it leaves if nobody says otherwise.
            let phase =
                if network.is_named(endpoint) { Phase::Ready } else { Phase::Draining { since: Timestamp::ZERO } };
            records.push(Record::Container(Container::new(
                endpoint.container,
                slot,
                endpoint.node,
                endpoint.address,
                phase,
            )));
        }
        for (id, types) in apps {
            let formation = formation(types.into_iter().map(|(of_type, count)| format!("{of_type}:{count}")));
            let mut app = App::new(id, network.project, made_up(id));
            app.formation = formation;
            records.push(Record::App(app));
        }
    }
    records
}
