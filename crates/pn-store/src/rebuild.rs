//! A lost state, from what the nodes still have.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use pn_core::{
    App, AppId, Container, Formation, Generation, Label, Node, NodeId, NodePlan, Phase, Project, Record, State,
    Timestamp,
};
use tokio::time::{Instant, sleep};

use crate::layout::{self, Item};
use crate::{Key, Registry, RegistryError, Revision, StoreExt, Transaction};

/// What nodes have and the store has not, to be looked at before it is [put back](Registry::rebuild).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rebuild {
    /// The records that are missing, in an order in which they can be read.
    pub missing: Vec<Record>,
    /// The nodes that said what they have.
    pub answered: BTreeSet<NodeId>,
    /// The nodes that are alive and did not.
    pub silent: BTreeSet<NodeId>,
    /// The greatest generation that one of them has applied.
    pub generation: Generation,
}

/// How long what nodes say is kept.
const KEPT: Duration = Duration::from_secs(600);

/// How many records one key holds.
const CHUNK: usize = 200;

/// Says what a node has, as its last plan tells.
pub(crate) async fn publish(
    registry: &Registry,
    node: NodeId,
    plan: &NodePlan,
    asked: Revision,
) -> Result<(), RegistryError> {
    let lease = registry.store().grant(KEPT).await?;
    let prefix = layout::seen(node);
    let key = |name: &str| format!("{prefix}{name}").parse::<Key>().expect("ids and numbers are a key");
    for (n, chunk) in records_of(plan).chunks(CHUNK).enumerate() {
        let lines: Vec<String> = chunk.iter().map(Record::to_json).collect();
        let put = Transaction::new().put_leased(key(&format!("{n:06}")), lines.join("\n"), lease.id);
        registry.store().commit(put).await?;
    }
    let done = format!("{asked} {}", plan.generation);
    registry.store().commit(Transaction::new().put_leased(key("done"), done, lease.id)).await?;
    Ok(())
}

impl Registry {
    /// Asks every node that is alive what it has, waits for the answers, and returns what the store has not.
    ///
    /// A plan does not tell everything: what people call projects and apps, how apps are hosted, under which terms a network was
    /// enabled and how many containers were wanted beyond those there were. These are made up, so a
    /// [backup](Self::restore) comes first where there is one.
    ///
    /// # Errors
    /// [`RegistryError`]: [`Contradiction`](RegistryError::Contradiction) where what nodes have and what the store has cannot
    /// both be.
    pub async fn recall(&self, patience: Duration) -> Result<Rebuild, RegistryError> {
        const POLL: Duration = Duration::from_millis(100);
        let mark = self.clock().now().as_millis().to_string();
        let asked = match self.store().commit(Transaction::new().put(layout::recall(), mark)).await? {
            crate::Outcome::Committed(revision) => revision,
            crate::Outcome::Refused => Revision::ZERO,
        };
        let until = Instant::now() + patience;
        let (mut answered, alive) = loop {
            let (alive, answered) = (self.alive().await?, self.answers(asked).await?);
            let is_complete = !alive.is_empty() && alive.iter().all(|node| answered.contains_key(node));
            if is_complete || Instant::now() >= until {
                break (answered, alive);
            }
            sleep(POLL).await;
        };
        let generation = answered.values().max().copied().unwrap_or_default();
        let mut seen = Vec::new();
        for node in answered.keys() {
            seen.extend(self.seen(*node).await?.into_iter().map(|record| (*node, record)));
        }
        let missing = self.missing(seen).await?;
        let silent = alive.into_iter().filter(|node| !answered.contains_key(node)).collect();
        let answered = core::mem::take(&mut answered).into_keys().collect();
        Ok(Rebuild { missing, answered, silent, generation })
    }

    /// Puts back what was missing, and returns how many records that were.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn rebuild(&self, rebuild: Rebuild) -> Result<u64, RegistryError> {
        let state = self.state().await?;
        let mut records = state.records();
        records.extend(rebuild.missing);
        self.put_back(records, Some(rebuild.generation)).await
    }

    async fn alive(&self) -> Result<BTreeSet<NodeId>, RegistryError> {
        let (_, entries) = self.store().list_all(&layout::nodes(), None).await?;
        let nodes = entries.iter().filter_map(|entry| {
            let node = layout::id_in(&entry.key, &layout::nodes())?;
            (entry.key == layout::alive(node)).then_some(node)
        });
        Ok(nodes.collect())
    }

    /// Returns the nodes that answered, and the generation that each has applied.
    async fn answers(&self, asked: Revision) -> Result<BTreeMap<NodeId, Generation>, RegistryError> {
        let (_, entries) = self.store().list_all(&layout::all_seen(), None).await?;
        let answers = entries.iter().filter(|entry| entry.key.as_str().ends_with("/done")).filter_map(|entry| {
            let text = String::from_utf8_lossy(&entry.value);
            let (to, generation) = text.split_once(' ')?;
            let is_answer = to.parse::<u64>().ok()? >= asked.get();
            let node = layout::id_in(&entry.key, &layout::all_seen())?;
            is_answer.then_some((node, Generation::new(generation.parse().ok()?)))
        });
        Ok(answers.collect())
    }

    async fn seen(&self, node: NodeId) -> Result<Vec<Record>, RegistryError> {
        let (_, entries) = self.store().list_all(&layout::seen(node), None).await?;
        let mut records = Vec::new();
        for entry in entries.iter().filter(|entry| !entry.key.as_str().ends_with("/done")) {
            let text = String::from_utf8_lossy(&entry.value);
            for line in text.lines() {
                let record = Record::from_json(line);
                records.push(record.map_err(|source| RegistryError::Record { key: entry.key.clone(), source })?);
            }
        }
        Ok(records)
    }

    /// Returns what of the records that nodes have the store has not.
    async fn missing(&self, seen: Vec<(NodeId, Record)>) -> Result<Vec<Record>, RegistryError> {
        let (_, entries) = self.store().list_all(&Key::all(), None).await?;
        let there: BTreeSet<&Key> = entries.iter().map(|entry| &entry.key).collect();
        let known = crate::registry::records(&entries)?;
        let mut together: BTreeMap<String, (bool, Record)> = BTreeMap::new();
        for (node, record) in seen {
            // The node that a container is on knows best; apps may have more containers elsewhere.
            let is_own = matches!(&record, Record::Container(Container { node: on, .. }) if *on == node)
                || matches!(&record, Record::Node(Node { id, .. }) if *id == node);
            let Some(name) = name(&record) else { continue };
            let merged = match (together.remove(&name), record) {
                (Some((_, Record::App(one))), Record::App(two)) => {
                    (false, Record::App(App { formation: greater(&one, &two), ..one }))
                }
                (Some(before), _) if before.0 || !is_own => before,
                (_, record) => (is_own, record),
            };
            together.insert(name, merged);
        }
        let recorded: BTreeSet<String> = known.iter().filter_map(name).collect();
        let missing: Vec<Record> =
            together.into_iter().filter(|(name, _)| !recorded.contains(name)).map(|(_, (_, record))| record).collect();
        let both = known.into_iter().chain(missing);
        let state = State::load(self.region().clone(), Generation::ZERO, both)?;
        let image = layout::image(&state.records());
        let mut missing: Vec<Record> = image
            .into_iter()
            .filter(|(key, _)| !there.contains(key))
            .filter_map(|(_, item)| if let Item::Record(record) = item { Some(record) } else { None })
            .collect();
        missing.sort_by_key(|record| match record {
            Record::Node(_) => 0,
            Record::Project(_) => 1,
            Record::Network(_) => 2,
            Record::App(_) => 3,
            Record::Container(_) | Record::Rest(_) | Record::Next(..) | _ => 4,
        });
        Ok(missing)
    }
}

/// Returns what tells a record from others of its kind.
fn name(record: &Record) -> Option<String> {
    Some(match record {
        Record::Project(project) => project.id.to_string(),
        Record::App(app) => app.id.to_string(),
        Record::Network(network) => network.id.to_string(),
        Record::Node(node) => node.id.to_string(),
        Record::Container(container) => container.id.to_string(),
        Record::Rest(_) | Record::Next(..) | _ => return None,
    })
}

/// Returns a formation with the greater count of each type.
fn greater(one: &App, two: &App) -> Formation {
    let mut counts: BTreeMap<_, u32> = one.formation.types().map(|(of_type, count)| (*of_type, count)).collect();
    for (of_type, count) in two.formation.types() {
        let known = counts.entry(*of_type).or_default();
        *known = count.max(*known);
    }
    formation(counts.into_iter().map(|(of_type, count)| format!("{of_type}:{count}")))
}

fn formation(items: impl Iterator<Item = String>) -> Formation {
    let items: Vec<String> = items.collect();
    items.join(" ").parse().expect("the types of a formation differ, and counts are in range")
}

/// Returns the records that a plan comes from, as far as it tells.
fn records_of(plan: &NodePlan) -> Vec<Record> {
    let label: Label = "recovered".parse().expect("letters are a label");
    let nodes = plan.host.iter().chain(plan.peers.values());
    let mut records: Vec<Record> = nodes.map(|node| Record::Node(Node::clone(node))).collect();
    for network in plan.networks.values() {
        records.push(Record::Project(Project::new(network.project, label.clone())));
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
            let mut app = App::new(id, network.project, label.clone());
            app.formation = formation;
            records.push(Record::App(app));
        }
    }
    records
}
