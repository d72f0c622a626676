//! A lost state, from what the nodes still have.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use pn_core::{App, Container, Formation, Generation, Node, NodeId, Record, State};
use tokio::time::{Instant, sleep};

use crate::layout::{self, Item};
use crate::recall::formation;
use crate::{Key, Registry, RegistryError, StoreExt};

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

impl Registry {
    /// Asks every node that is alive what it has, waits for the answers, and returns what the store has not.
    ///
    /// A plan does not tell everything: what people call projects and apps, how apps are hosted, under which terms a network was
    /// enabled, how many containers were wanted beyond those there were, and projects and apps without containers. Projects and
    /// apps are called `recovered-ID`, so a [backup](Self::restore) comes first where there is one.
    ///
    /// # Errors
    /// [`RegistryError`]: [`Contradiction`](RegistryError::Contradiction) where what nodes have and what the store has cannot
    /// both be.
    pub async fn recall(&self, patience: Duration) -> Result<Rebuild, RegistryError> {
        const POLL: Duration = Duration::from_millis(100);
        let asked = self.ask(layout::recall()).await?;
        let until = Instant::now() + patience;
        let mut answers = BTreeMap::new();
        let silent = loop {
            let alive = self.alive().await?;
            for node in &alive {
                if !answers.contains_key(node)
                    && let Some(answer) = self.answer(*node, asked).await?
                {
                    answers.insert(*node, answer);
                }
            }
            let silent: BTreeSet<NodeId> = alive.iter().filter(|node| !answers.contains_key(node)).copied().collect();
            if (silent.is_empty() && !alive.is_empty()) || Instant::now() >= until {
                break silent;
            }
            sleep(POLL).await;
        };
        let generation = answers.values().map(|answer| answer.generation).max().unwrap_or_default();
        let answered = answers.keys().copied().collect();
        let seen = answers.into_iter().flat_map(|(node, answer)| answer.records.into_iter().map(move |r| (node, r)));
        let missing = self.missing(seen.collect()).await?;
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

    pub(crate) async fn alive(&self) -> Result<BTreeSet<NodeId>, RegistryError> {
        let (_, entries) = self.store().list_all(&layout::nodes(), None).await?;
        Ok(layout::alive_among(&entries))
    }

    /// Returns what of the records that nodes have the store has not.
    async fn missing(&self, seen: Vec<(NodeId, Record)>) -> Result<Vec<Record>, RegistryError> {
        let (_, entries) = self.list(&layout::state_and_ways()).await?;
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
