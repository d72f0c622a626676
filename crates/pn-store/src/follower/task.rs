//! The task of a follower.

mod changes;

use core::cmp::Ordering;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pn_core::{Followed, Generation, Node, NodeId, ProjectId, Record};
use tokio::time::{Instant, sleep, sleep_until};

use super::share::Share;
use super::watches::{Subject, Watches};
use super::{Progress, Words};
use crate::session::{Alive, Found};
use crate::{Entry, Key, Listing, Registry, RegistryError, Revision, Session, Store, StoreError, StoreExt, layout};

/// How long a node that seems dead has to show that it is not: its lease may live while somebody deleted its key.
const DOUBT: Duration = Duration::from_millis(500);

/// How long changes are gathered that come at once.
const GATHER: Duration = Duration::from_millis(2);

/// How long a store may take to answer before it is said to be lost.
const SILENCE: Duration = Duration::from_secs(1);

/// How long to wait between attempts to reach the store, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Why following ended.
enum End {
    /// It has to begin anew.
    Failed(RegistryError),
    /// The lease has ended, or the store does not have it.
    Expired,
    /// Another process has the node's place.
    Taken(u64),
}

impl From<RegistryError> for End {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// What outlives one time of following.
struct Task {
    session: Session,
    registry: Registry,
    node: NodeId,
    words: Arc<Words>,
    progress: Progress,
    /// The generation of the last plan.
    last: Generation,
    /// The last confirmation that was looked at.
    confirmed: Option<Revision>,
    /// What generations were ahead of revisions when they were read last; none before the first reading.
    offset: Option<u64>,
    /// Whether the node was found as it was recorded when it joined again.
    is_own: bool,
    is_lost: bool,
    failures: u32,
}

pub(super) async fn run(session: Session, words: Arc<Words>, progress: Progress) {
    let (registry, node) = (session.registry().clone(), session.node());
    let mut task = Task {
        session,
        registry,
        node,
        words,
        progress,
        last: Generation::ZERO,
        confirmed: None,
        offset: None,
        is_own: false,
        is_lost: false,
        failures: 0,
    };
    loop {
        let end = task.follow().await;
        if task.progress.has_left() {
            return;
        }
        match end {
            End::Failed(error) => task.failed(&error).await,
            End::Expired => {
                if !task.rejoin().await {
                    return;
                }
            }
            End::Taken(registration) => {
                let reason = format!("another agent took the place of node {node} with registration {registration}");
                task.words.say(Followed::Fenced(reason));
                task.words.say(Followed::Closed);
                return;
            }
        }
    }
}

impl Task {
    /// Says that the origin is lost if it is for longer than a moment, and waits for a while.
    async fn failed(&mut self, error: &RegistryError) {
        tracing::debug!(node = %self.node, error = chain(error), "following ended");
        self.failures += 1;
        // A watch that ends is nothing: what it would have said is read at once.
        if self.failures < 2 {
            return;
        }
        if !self.is_lost {
            self.is_lost = true;
            self.words.say(Followed::Lost(chain(error)));
        }
        sleep(PAUSE.1.min(PAUSE.0 * 2u32.saturating_pow(self.failures.min(10)))).await;
    }

    /// Takes the node's place again; `false` where somebody else has it. Nothing has to stop for it: what the node holds is what
    /// it was told last, and what it is to hold is told next.
    async fn rejoin(&mut self) -> bool {
        tracing::info!(node = %self.node, "the lease has ended; joining again");
        loop {
            match self.session.rejoin().await {
                Ok((session, found)) => {
                    if found == Found::Others {
                        let reason = format!("somebody else had the place of node {} meanwhile", self.node);
                        self.words.say(Followed::Fenced(reason));
                    }
                    self.is_own = found == Found::Own;
                    self.session = session;
                    self.progress.set_lease(self.session.lease());
                    return true;
                }
                Err(error @ RegistryError::NodeTaken { .. }) => {
                    self.words.say(Followed::Fenced(chain(&error)));
                    self.words.say(Followed::Closed);
                    return false;
                }
                Err(error) => {
                    tracing::debug!(node = %self.node, error = chain(&error), "the node could not join again yet");
                    if !core::mem::replace(&mut self.is_lost, true) {
                        self.words.say(Followed::Lost(chain(&error)));
                    }
                    sleep(PAUSE.1).await;
                }
            }
        }
    }

    /// Reads the share and follows it until that ends.
    async fn follow(&mut self) -> End {
        let (words, was_lost) = (Arc::clone(&self.words), self.is_lost);
        let mut is_silent = false;
        let begun = {
            let mut begin = core::pin::pin!(self.begin());
            tokio::select! {
                begun = &mut begin => begun,
                // A store that is gone may let one wait for long before it is known.
                () = sleep(SILENCE), if !was_lost => {
                    words.say(Followed::Lost("the store does not answer".to_owned()));
                    is_silent = true;
                    begin.await
                }
            }
        };
        self.is_lost |= is_silent;
        let mut following = match begun {
            Ok(following) => following,
            Err(end) => return end,
        };
        self.failures = 0;
        if core::mem::take(&mut self.is_lost) {
            self.words.say(Followed::Back);
        }
        // The plan of all of it takes their place, and what was read before may be of a history that the store has lost.
        self.progress.networks().clear();
        self.plan(&mut following.share);
        loop {
            if let Err(end) = self.step(&mut following).await {
                return end;
            }
        }
    }

    fn plan(&mut self, share: &mut Share) {
        let (plan, changed) = share.plan();
        self.last = plan.generation;
        self.progress.planned(plan.generation, changed);
        if core::mem::take(&mut self.is_own) {
            self.words.say(Followed::Confirmed(plan.generation));
        }
        self.words.say(Followed::Plan(plan));
    }

    /// Reads everything as of one revision, and begins to watch from there.
    async fn begin(&mut self) -> Result<Following, End> {
        let store = Arc::clone(self.registry.store());
        let memberships = layout::memberships(self.node);
        let (revision, members) = store.list_all(&memberships, None).await?;
        // Read after the revision from which everything is watched, so that nothing comes in between.
        let own = layout::alive(self.node);
        let keys = [own.clone(), layout::offset(), layout::confirm(self.node)];
        let mut entries = store.get(&keys).await?.entries.into_iter();
        let (alive, offset, confirmation) =
            (entries.next().flatten(), entries.next().flatten(), entries.next().flatten());
        self.check_own(&own, alive.as_ref()).await?;
        let offset = offset.as_ref().map(layout::id).transpose()?.unwrap_or(0);
        let members: BTreeSet<ProjectId> =
            members.iter().filter_map(|entry| layout::id_in(&entry.key, &memberships)).collect();
        let mut projects = Vec::new();
        let mut hosts: BTreeSet<NodeId> = [self.node].into();
        for project in members {
            let (_, entries) = store.list_all(&layout::project(project), Some(revision)).await?;
            let records = crate::registry::records(&entries)?;
            hosts.extend(layout::hosts(&records));
            projects.push((project, records));
        }
        let mut share = Share::new(self.registry.region().clone(), self.node, self.last, revision, offset);
        for (id, (node, is_alive)) in nodes_at(&*store, &hosts, revision).await? {
            share.put_node(id, node, is_alive, revision);
        }
        for (project, records) in projects {
            share.set_project(project, records, revision).map_err(RegistryError::from)?;
        }

        let mut watches = Watches::new();
        let from = revision.next();
        watches.add(&*store, Subject::Nodes, &layout::nodes(), from).await?;
        watches.add(&*store, Subject::Memberships, &memberships, from).await?;
        watches.add(&*store, Subject::Confirmations, &layout::confirm(self.node), from).await?;
        watches.add(&*store, Subject::Questions, &layout::recall(), from).await?;
        // There may be one already.
        self.progress.asked();
        for project in share.projects().collect::<Vec<_>>() {
            watches.add(&*store, Subject::Project(project), &layout::project(project), from).await?;
        }
        match self.offset {
            // What was confirmed before anybody followed is nothing to this process.
            None => self.confirmed = confirmation.map(|entry| entry.revision).filter(|seen| *seen <= revision),
            Some(_) => self.confirmation(confirmation.as_ref())?,
        }
        // Of a store that went on from what was read last, a node that was away is told what went meanwhile, and need not ask.
        let goes_on = revision.get().saturating_add(offset) >= self.last.get();
        self.is_own &= goes_on && self.offset == Some(offset);
        self.offset = Some(offset);
        Ok(Following { share, watches, doubted: BTreeMap::new() })
    }

    /// Checks that the node's place is still its own.
    async fn check_own(&self, key: &Key, alive: Option<&Entry>) -> Result<(), End> {
        let Some(alive) = alive else {
            return if self.session.revive().await? { Ok(()) } else { Err(End::Expired) };
        };
        let Alive { registration, .. } = Alive::read(key, &alive.value)?;
        match registration.cmp(&self.session.registration()) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(End::Taken(registration)),
            // Of an earlier life: the store went back.
            Ordering::Less => Err(End::Expired),
        }
    }

    /// Says a confirmation that was not looked at yet. A store that was restored may have begun again at lower revisions.
    fn confirmation(&mut self, entry: Option<&Entry>) -> Result<(), RegistryError> {
        if let Some(entry) = entry
            && self.confirmed != Some(entry.revision)
        {
            self.confirmed = Some(entry.revision);
            self.words.say(Followed::Confirmed(Generation::new(layout::id(entry)?)));
        }
        Ok(())
    }

    /// Waits for changes, takes in all that are there, and plans once.
    async fn step(&mut self, following: &mut Following) -> Result<(), End> {
        let doubted = following.doubted.values().min().copied();
        let (subject, batch) = tokio::select! {
            next = following.watches.next() => next,
            () = sleep_until(doubted.unwrap_or_else(Instant::now)), if doubted.is_some() => {
                if self.doubts(following).await? {
                    self.plan(&mut following.share);
                }
                return Ok(());
            }
            () = self.session.ended() => return Err(End::Expired),
        };
        let mut is_changed = self.take(following, subject, batch?).await?;
        let until = Instant::now() + GATHER;
        loop {
            match following.watches.try_next() {
                Some((subject, batch)) => is_changed |= self.take(following, subject, batch?).await?,
                None if Instant::now() < until => sleep_until(until).await,
                None => break,
            }
        }
        if is_changed {
            self.plan(&mut following.share);
        }
        Ok(())
    }
}

/// One time of following.
struct Following {
    share: Share,
    watches: Watches,
    /// Nodes that seem dead, and when to look again.
    doubted: BTreeMap<NodeId, Instant>,
}

/// Reads some nodes as of a revision, and whether they are alive; the others of the region pass by.
async fn nodes_at(
    store: &dyn Store,
    wanted: &BTreeSet<NodeId>,
    revision: Revision,
) -> Result<BTreeMap<NodeId, (Option<Node>, bool)>, RegistryError> {
    let mut nodes: BTreeMap<NodeId, (Option<Node>, bool)> = BTreeMap::new();
    let mut listing = Listing::new(layout::nodes()).at(revision);
    loop {
        let page = store.list(&listing).await?;
        for entry in &page.entries {
            let Some(id) = layout::id_in(&entry.key, &layout::nodes()).filter(|id| wanted.contains(id)) else {
                continue;
            };
            let known = nodes.entry(id).or_default();
            match layout::record(entry)? {
                Some(Record::Node(node)) => known.0 = Some(node),
                _ => known.1 = true,
            }
        }
        match page.entries.last() {
            Some(last) if !page.is_last => listing = listing.after(last.key.clone()),
            _ => return Ok(nodes),
        }
    }
}

/// Says an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
