//! What nodes say about themselves, and what people say to them.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use pn_core::{Generation, NetworkId, NodeId, NodePlan, ProjectId, Record, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::follower::Progress;
use crate::store::list_families;
use crate::{
    Entry, Key, LeaseId, Outcome, Precondition, Registry, RegistryError, Revision, StoreExt, Transaction, layout,
    recall,
};

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The generation that its data plane and its names were made.
    #[serde(with = "number")]
    pub applied: Generation,
    /// Networks that are of another generation, as its agent knows: of a later one, where only others failed, or of an earlier one,
    /// where they are held. It is not recorded by itself, but told to those who [wait](Registry::synced).
    #[serde(skip)]
    pub apart: BTreeMap<NetworkId, Generation>,
    /// The plan that it does not follow until somebody confirms it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Since when it has not reached the store.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "moment")]
    pub stale_since: Option<Timestamp>,
    /// What its data plane is called.
    pub backend: String,
    /// How its packets are protected.
    pub encryption: String,
    /// What failed of the last plan, object by object; a [`Reporter`] tells the first of many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// What it counts, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    /// How much fits on it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, u64>,
}

impl NodeStatus {
    /// Makes the status of a node that follows without trouble.
    #[must_use]
    pub fn new(applied: Generation, backend: impl Into<String>, encryption: impl Into<String>) -> Self {
        let (backend, encryption) = (backend.into(), encryption.into());
        Self {
            applied,
            apart: BTreeMap::new(),
            held: None,
            stale_since: None,
            backend,
            encryption,
            failures: Vec::new(),
            counters: BTreeMap::new(),
            limits: BTreeMap::new(),
        }
    }

    /// Cuts what may be long, so that one node in trouble does not make a region's statuses too large to be read.
    fn bounded(mut self) -> Self {
        let more = self.failures.len().saturating_sub(Reporter::FAILURES);
        self.failures.truncate(Reporter::FAILURES);
        self.failures.iter_mut().for_each(|line| cut(line, Reporter::LINE));
        if more > 0 {
            self.failures.push(format!("and {more} more"));
        }
        if let Some(held) = &mut self.held {
            cut(&mut held.reason, Reporter::REASON);
        }
        self
    }
}

/// Cuts a text that has more than some octets, and shows that it does not end there.
fn cut(text: &mut String, most: usize) {
    const MORE: &str = "…";
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - MORE.len()));
        text.push_str(MORE);
    }
}

/// A plan that a node does not follow until somebody confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its generation.
    #[serde(with = "number")]
    pub generation: Generation,
    /// Why it is held.
    pub reason: String,
}

/// A status as it was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// What the node said; `None` where it has not said anything yet.
    pub status: Option<NodeStatus>,
    /// When it said so.
    pub at: Timestamp,
    /// Whether its lease lives.
    pub is_alive: bool,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    at_ms: u64,
    #[serde(flatten)]
    status: NodeStatus,
}

mod number {
    use pn_core::Generation;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(generation: &Generation, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(generation.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Generation, D::Error> {
        u64::deserialize(deserializer).map(Generation::new)
    }
}

mod moment {
    use pn_core::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(moment: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        moment.map(Timestamp::as_millis).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Timestamp::from_millis))
    }
}

/// How many statuses are read at once, since each may be long.
const PAGE: NonZeroUsize = NonZeroUsize::new(128).expect("128 is not zero");

/// Tells the region what a node has applied, for those who [wait for it](Registry::synced) and for people.
#[derive(Debug)]
pub struct Reporter {
    progress: Progress,
    last: Option<Told>,
    /// The last calls for what nodes see that were answered. A store that went back to an earlier state may say the same
    /// revision again, or an earlier one.
    recalled: Vec<Entry>,
    /// How often somebody might have asked when it was looked last.
    looked: u64,
}

/// What was reported last.
#[derive(Debug)]
struct Told {
    status: NodeStatus,
    at: Instant,
    lease: LeaseId,
    /// Whether it goes with the lease.
    is_leased: bool,
}

impl Reporter {
    /// How often a status is written that differs in its counters only.
    pub const COUNTERS: Duration = Duration::from_secs(10);

    /// How many failures are told; of more, how many there are.
    pub const FAILURES: usize = 50;

    /// How long a failure is at most, in octets: what is longer is cut, and ends with an ellipsis.
    pub const LINE: usize = 300;

    /// How long the reason is at most why a plan is held, in octets.
    pub const REASON: usize = 3000;

    /// How many keys are written at once.
    const CHUNK: usize = 100;

    /// Makes the reporter of a follower's node.
    #[must_use]
    pub const fn new(progress: Progress) -> Self {
        Self { progress, last: None, recalled: Vec::new(), looked: 0 }
    }

    /// Reports what is applied: to be called whenever that changed, and every second or so.
    ///
    /// It writes what is new: one transaction after a plan was applied, none where nothing is. `applied` is the plan whose
    /// generation the status says, from which the node's part of a lost state is made when [somebody asks](Registry::recall).
    ///
    /// Of a status with more than [50 failures](Self::FAILURES) it tells the first, and how many more there are; texts of more
    /// than [300 octets](Self::LINE), or [3000](Self::REASON) of why a plan is held, are cut.
    ///
    /// # Errors
    /// [`RegistryError`]: what could not be said is said with the next report.
    pub async fn report(&mut self, status: NodeStatus, applied: Option<&NodePlan>) -> Result<(), RegistryError> {
        let told = self.progress.applied(status.applied, &status.apart);
        let status = status.bounded();
        let result = self.tell(&status, &told).await;
        if result.is_err() {
            self.progress.put_back(status.applied, told);
        }
        result?;
        match applied {
            Some(plan) => self.answer(plan).await,
            None => Ok(()),
        }
    }

    /// Writes what is new. Of a node that the region does not know, since it was removed or the store lost it, it goes with the lease.
    async fn tell(&mut self, status: &NodeStatus, told: &BTreeMap<NetworkId, Revision>) -> Result<(), RegistryError> {
        let registry = self.progress.registry();
        let (node, lease) = (self.progress.node(), self.progress.lease());
        let is_new = self.last.as_ref().is_none_or(|Told { status: last, at, lease: under, .. }| {
            let counted = NodeStatus { counters: status.counters.clone(), ..last.clone() };
            // Whoever joined again may have been removed before, with what it had said.
            counted != *status || *under != lease || at.elapsed() >= Self::COUNTERS && last != status
        });
        let is_due = is_new || self.last.as_ref().is_some_and(|last| last.is_leased);
        let mut puts = Vec::new();
        if is_due {
            let at_ms = registry.clock().now().as_millis();
            let document = Document { version: 1, at_ms, status: status.clone() };
            let json = serde_json::to_vec(&document).expect("texts and numbers are JSON");
            puts.push((layout::status(node), json, None));
        }
        for (network, revision) in told {
            puts.push((layout::applied(*network, node), revision.to_string().into_bytes(), Some(lease)));
        }
        let mut is_leased = false;
        for chunk in puts.chunks(Self::CHUNK) {
            let put = |transaction: Transaction, (key, value, lease): &(Key, Vec<u8>, _)| match lease {
                Some(lease) => transaction.put_leased(key.clone(), value.clone(), *lease),
                None => transaction.put(key.clone(), value.clone()),
            };
            let known = Transaction::new().when(Precondition::Present(layout::node(node)));
            if registry.store().commit(chunk.iter().fold(known, put)).await? == Outcome::Refused {
                is_leased = true;
                // What was said so before needs not be said again.
                let news = chunk.iter().filter(|(_, _, lease)| is_new || lease.is_some());
                let put = |transaction: Transaction, (key, value, _): &(Key, Vec<u8>, _)| {
                    transaction.put_leased(key.clone(), value.clone(), lease)
                };
                let leased = news.fold(Transaction::new(), put);
                if !leased.operations.is_empty() {
                    registry.store().commit(leased).await?;
                }
            }
        }
        if is_due && (is_new || !is_leased) {
            self.last = Some(Told { status: status.clone(), at: Instant::now(), lease, is_leased });
        }
        Ok(())
    }

    /// Says what the node sees where somebody asks.
    async fn answer(&mut self, plan: &NodePlan) -> Result<(), RegistryError> {
        let questions = self.progress.questions();
        if questions == self.looked {
            return Ok(());
        }
        let registry = self.progress.registry();
        let node = self.progress.node();
        let asked = registry.store().get(&[layout::recall(), layout::recall_of(node)]).await?.entries;
        let asked: Vec<Entry> = asked.into_iter().flatten().collect();
        if let Some(last) = asked.iter().map(|asked| asked.revision).max().filter(|_| asked != self.recalled) {
            recall::publish(registry, node, plan, last).await?;
            self.recalled = asked;
        }
        self.looked = questions;
        Ok(())
    }
}

impl Registry {
    /// Reads what every node says about itself.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn statuses(&self) -> Result<BTreeMap<NodeId, Reported>, RegistryError> {
        let prefixes = [layout::nodes(), layout::statuses()];
        let (_, entries) = list_families(&**self.store(), &prefixes, None, PAGE).await?;
        let mut statuses: BTreeMap<NodeId, Reported> = BTreeMap::new();
        for entry in &entries {
            let Some(node) = layout::id_in(&entry.key, &layout::nodes()) else { continue };
            let absent = || Reported { status: None, at: Timestamp::ZERO, is_alive: false };
            statuses.entry(node).or_insert_with(absent).is_alive |= entry.key == layout::alive(node);
        }
        for entry in &entries {
            let reported = layout::id_in(&entry.key, &layout::statuses()).and_then(|node| statuses.get_mut(&node));
            let Some(reported) = reported else { continue };
            let document: Document =
                serde_json::from_slice(&entry.value).map_err(|error| RegistryError::record(&entry.key, error))?;
            reported.at = Timestamp::from_millis(document.at_ms);
            reported.status = Some(document.status);
        }
        Ok(statuses)
    }

    /// Tells a node that somebody has looked at what a plan that it holds would remove, and wants it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn confirm(&self, node: NodeId, generation: Generation) -> Result<(), RegistryError> {
        self.store().commit(Transaction::new().put(layout::confirm(node), generation.to_string())).await?;
        Ok(())
    }

    /// Waits until every node of a network that is alive has applied what was changed there at a revision (D14).
    ///
    /// # Errors
    /// [`RegistryError`]: [`TimedOut`](RegistryError::TimedOut), which names the nodes that have not, and what they say.
    pub async fn synced(
        &self,
        revision: Revision,
        network: NetworkId,
        patience: Duration,
    ) -> Result<(), RegistryError> {
        /// How often it is looked at whether nodes died.
        const DEATHS: Duration = Duration::from_millis(500);
        let until = Instant::now() + patience;
        let prefix = layout::applied_by(network);
        loop {
            let mut behind = self.live_hosts(network).await?;
            let (read, entries) = self.store().list_all(&prefix, None).await?;
            for entry in &entries {
                is_applied(entry, &prefix, revision)?.map(|node| behind.remove(&node));
            }
            if behind.is_empty() {
                return Ok(());
            }
            let mut watch = self.store().watch(&prefix, read.next()).await?;
            let again = until.min(Instant::now() + DEATHS);
            while !behind.is_empty() {
                let Ok(batch) = timeout_at(again, watch.next()).await else { break };
                // Whatever ends the watch, everything is read again.
                let Ok(batch) = batch else { break };
                for entry in batch.events.iter().filter_map(|event| event.after.as_ref()) {
                    is_applied(entry, &prefix, revision)?.map(|node| behind.remove(&node));
                }
            }
            if behind.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let nodes: Vec<String> = self.say_why(&behind).await?;
                let what = format!("applying revision {revision} of {network} on {}", nodes.join(", "));
                return Err(RegistryError::TimedOut { what, millis: patience.as_millis() });
            }
        }
    }

    /// Names nodes, with what each says that keeps it from being what it should.
    async fn say_why(&self, nodes: &BTreeSet<NodeId>) -> Result<Vec<String>, RegistryError> {
        let keys: Vec<Key> = nodes.iter().map(|node| layout::status(*node)).collect();
        let mut entries = Vec::new();
        for chunk in keys.chunks(PAGE.get()) {
            entries.extend(self.store().get(chunk).await?.entries);
        }
        let say = |(node, entry): (&NodeId, Option<Entry>)| {
            let document = entry.and_then(|entry| serde_json::from_slice::<Document>(&entry.value).ok());
            let status = document.map(|document| document.status);
            match status.map(|NodeStatus { held, failures, .. }| (held, failures.into_iter().next())) {
                Some((_, Some(failure))) => format!("{node} (it says {failure:?})"),
                Some((Some(Held { generation, reason }), None)) => {
                    format!("{node} (it waits until generation {generation} is confirmed: {reason})")
                }
                Some((None, None)) | None => node.to_string(),
            }
        };
        Ok(nodes.iter().zip(entries).map(say).collect())
    }

    /// Reads which nodes that are alive have containers of a network.
    async fn live_hosts(&self, network: NetworkId) -> Result<BTreeSet<NodeId>, RegistryError> {
        let (_, entry) = self.store().get_one(&layout::network(network)).await?;
        let Some(project) = entry.and_then(|entry| layout::id::<ProjectId>(&entry).ok()) else {
            return Ok(BTreeSet::new());
        };
        let (_, entries) = self.store().list_all(&layout::addresses(project), None).await?;
        let mut hosts = BTreeSet::new();
        for entry in &entries {
            if let Some(Record::Container(container)) = layout::record(entry)? {
                hosts.insert(container.node);
            }
        }
        let keys: Vec<Key> = hosts.iter().map(|node| layout::alive(*node)).collect();
        let alive = self.store().get(&keys).await?.entries;
        Ok(hosts.into_iter().zip(alive).filter(|(_, alive)| alive.is_some()).map(|(node, _)| node).collect())
    }
}

/// Returns the node that says it has applied a revision, if it says so.
fn is_applied(entry: &Entry, prefix: &Key, revision: Revision) -> Result<Option<NodeId>, RegistryError> {
    let applied: u64 = layout::id(entry)?;
    Ok(layout::id_in(&entry.key, prefix).filter(|_| applied >= revision.get()))
}

#[cfg(test)]
mod tests;
