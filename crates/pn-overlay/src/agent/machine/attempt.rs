//! One attempt after the other: withdraw, drain where the node is left, apply, announce; and comparisons between them.

use core::time::Duration;
use std::collections::BTreeSet;

use pn_core::backend::Observed;
use pn_core::{BackendError, NetworkId, NodePlan, Stage, Timestamp, ZoneSet};

use super::problems::Problem;
use super::{Machine, Server, Step, Task};
use crate::agent::status::Phase;
use crate::agent::ways;

/// How often a node that is left is tried to be taken down.
const LAST_ATTEMPTS: u32 = 3;

impl Machine {
    /// Begins what is due, if nothing is under way.
    pub(super) fn next(&mut self, now: Timestamp) {
        if self.step != Step::Idle || self.is_done() {
            return;
        }
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let is_taken_down = matches!(self.status.phase, Phase::Fenced | Phase::Leaving);
        if self.found.is_none() && !is_taken_down {
            // There is nothing to compare with yet.
            self.compare_at = None;
            if self.wanted.is_some() && (self.retry_at.is_none() || is_due(self.retry_at)) {
                self.observe(now, Step::Finding);
            }
        } else if self.is_dirty || is_due(self.retry_at) {
            self.begin(now);
        } else if is_due(self.compare_at) {
            self.observe(now, Step::Comparing);
        }
    }

    /// Drops what is under way.
    pub(super) fn abandon(&mut self) {
        for server in &mut self.servers {
            if let Some(set) = server.pending.take() {
                server.take(set, Certainty::Unknown);
            }
        }
        (self.step, self.task, self.deadline) = (Step::Idle, None, None);
        self.problems.clear();
    }

    /// Begins an attempt: withdraws the names that vanish.
    fn begin(&mut self, now: Timestamp) {
        let Some(plan) = self.target.clone() else { return };
        self.is_dirty = false;
        (self.retry_at, self.compare_at) = (None, None);
        self.problems.clear();
        let sets = self.servers.iter().map(|server| match (&server.published, &self.found) {
            (Some(published), _) => {
                let meanwhile = plan.zones_meanwhile(published);
                (!server.is_certain || meanwhile.zones != published.zones).then_some(meanwhile)
            }
            (None, Some(found)) => Some(ways::with_ways(meanwhile(plan.zones()), &plan, found)),
            (None, None) => Some(plan.zones_meanwhile(&ZoneSet::default())),
        });
        let sets = sets.collect();
        (self.kept, self.is_of_source) = (self.not_as_wanted(&plan), self.is_judged);
        self.current = Some(plan);
        self.publish(now, Step::Withdrawing, sets);
    }

    fn publish(&mut self, now: Timestamp, step: Step, sets: Vec<Option<ZoneSet>>) {
        let mut to_publish = Vec::new();
        for (number, (server, set)) in self.servers.iter_mut().zip(sets).enumerate() {
            let Some(mut set) = set else { continue };
            // Once the names of a generation were settled, what is called meanwhile is refused as older. An earlier agent may
            // have settled them.
            match server.tried {
                None => set.stage = Stage::Settled,
                Some((generation, stage)) if generation == set.generation => set.stage = set.stage.max(stage),
                Some(_) => {}
            }
            server.tried = server.tried.max(Some((set.generation, set.stage)));
            server.pending = Some(set.clone());
            to_publish.push((number, set));
        }
        self.enter(now, step, self.options.publish_timeout);
        if to_publish.is_empty() {
            self.after_publishing(now);
        } else {
            self.task = Some(Task::Publish(to_publish));
        }
    }

    /// Takes what came of telling a name server a set.
    pub(super) fn take_published(&mut self, number: usize, set: ZoneSet, failures: Vec<BackendError>) {
        let certainty = if failures.is_empty() { Certainty::Known } else { Certainty::Unknown };
        if let Some(server) = self.servers.get_mut(number) {
            server.take(set, certainty);
        }
        self.problems.extend(failures.into_iter().map(|error| Problem::of_server(number, error)));
    }

    /// Goes on when every name server has answered.
    pub(super) fn after_publishing(&mut self, now: Timestamp) {
        if self.servers.iter().any(|server| server.pending.is_some()) {
            return;
        }
        match self.step {
            Step::Withdrawing if self.status.phase == Phase::Leaving && !self.is_drained => {
                self.enter(now, Step::Draining, self.options.drain);
            }
            Step::Withdrawing => self.apply(now),
            Step::Announcing => self.finish(now),
            Step::Idle | Step::Finding | Step::Draining | Step::Applying | Step::Inspecting | Step::Comparing => {}
        }
    }

    pub(super) fn apply(&mut self, now: Timestamp) {
        if let Some(plan) = self.current.clone() {
            self.enter(now, Step::Applying, self.options.apply_timeout);
            self.task = Some(Task::Apply(plan));
        }
    }

    /// Takes what came of applying, and announces what has its way now.
    pub(super) fn take_applied(&mut self, now: Timestamp, failures: Vec<BackendError>) {
        let Some(plan) = &self.current else { return };
        self.status.last_apply = Some(Duration::from_millis(now.as_millis().saturating_sub(self.since.as_millis())));
        self.made.clear();
        if failures.is_empty() {
            self.made.extend(plan.networks.keys());
            self.status.applied = Some(plan.generation);
            let zones = plan.zones();
            return self.announce(now, |_| zones.clone());
        }
        self.problems.extend(failures.into_iter().map(Problem::from));
        self.observe(now, Step::Inspecting);
    }

    /// Takes what an attempt that failed has left, and announces what has its way in it.
    pub(super) fn take_inspected(&mut self, now: Timestamp, observed: Result<Observed, BackendError>) {
        let Some(plan) = self.current.clone() else { return };
        match observed {
            Ok(found) => {
                let problems = self.problems.clone();
                let failed = || problems.iter().map(|problem| problem.object.as_str());
                self.made = ways::made(&plan, failed(), &found);
                self.announce(now, |published| {
                    ways::after_failures(&plan, plan.zones_meanwhile(published), failed(), &found)
                });
            }
            Err(error) => {
                // Nobody knows what has its way: what is answered is what stays in any case.
                self.problems.push(error.into());
                self.finish(now);
            }
        }
    }

    fn announce(&mut self, now: Timestamp, set: impl Fn(&ZoneSet) -> ZoneSet) {
        let nothing = ZoneSet::default();
        let sets = self.servers.iter().map(|server| {
            let published = server.published.as_ref().unwrap_or(&nothing);
            let set = set(published);
            (!server.is_certain || *published != set).then_some(set)
        });
        let sets = sets.collect();
        self.publish(now, Step::Announcing, sets);
    }

    /// Ends an attempt.
    fn finish(&mut self, now: Timestamp) {
        (self.step, self.deadline) = (Step::Idle, None);
        self.tell_problems(now);
        self.tell_apart();
        if self.problems.is_empty() {
            self.status.announced = self.current.as_ref().map(|plan| plan.generation);
            (self.attempts, self.status.is_pending, self.is_hurried) = (0, self.is_dirty, false);
            self.compare_at = Some(now.after(self.options.compare_every));
        } else {
            self.retry_later(now);
        }
        let is_enough = self.problems.is_empty() || self.attempts >= LAST_ATTEMPTS || !self.may_succeed();
        if self.status.phase == Phase::Leaving && is_enough {
            self.status.phase = Phase::Stopped;
        }
        self.next(now);
    }

    /// Returns the networks of which a target does not say what the source wants: where they are held, or taken down.
    fn not_as_wanted(&self, target: &NodePlan) -> BTreeSet<NetworkId> {
        let Some(wanted) = &self.wanted else { return BTreeSet::new() };
        let differs = |id: &&NetworkId| target.networks.get(*id) != wanted.networks.get(*id);
        target.networks.keys().chain(wanted.networks.keys()).filter(differs).copied().collect()
    }

    /// Says which networks are of another generation than what is announced now.
    fn tell_apart(&mut self) {
        let Some(plan) = self.current.as_ref().filter(|_| self.is_of_source) else { return };
        let apart = &mut self.status.apart;
        if self.problems.is_empty() {
            let before = self.status.announced.unwrap_or_default();
            apart.retain(|id, _| self.kept.contains(id));
            for id in &self.kept {
                apart.entry(*id).or_insert(before);
            }
            return;
        }
        // Whatever is made was announced as planned.
        let is_answered = self.servers.iter().all(|server| server.is_certain);
        let made = self.made.iter().filter(|id| is_answered && !self.kept.contains(id));
        apart.extend(made.map(|id| (*id, plan.generation)));
    }

    fn retry_later(&mut self, now: Timestamp) {
        let (first, max) = (self.options.retry_first, self.options.retry_max);
        // What does not change by itself is not tried often.
        let most = if self.may_succeed() { first.saturating_mul(1 << self.attempts.min(30)).min(max) } else { max };
        self.attempts = self.attempts.saturating_add(1);
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        let mut delay = Duration::from_millis(self.rng.u64(millis / 2..=millis));
        if core::mem::take(&mut self.is_hurried) {
            delay = Duration::ZERO;
        }
        self.retry_at = Some(now.after(delay));
    }

    fn may_succeed(&self) -> bool {
        self.problems.iter().any(|problem| problem.error.is_retryable())
    }

    /// Takes what the data plane holds from an earlier life.
    pub(super) fn take_found(&mut self, now: Timestamp, observed: Result<Observed, BackendError>) {
        (self.step, self.deadline) = (Step::Idle, None);
        self.problems.clear();
        match observed {
            Ok(found) => {
                self.found = Some(found);
                (self.attempts, self.retry_at) = (0, None);
                if self.target.is_some() {
                    self.status.phase = Phase::Following;
                } else {
                    self.judge();
                }
            }
            Err(error) => {
                self.problems.push(error.into());
                self.retry_later(now);
            }
        }
        self.tell_problems(now);
        self.next(now);
    }

    /// Takes what a comparison found, and repairs it (X8).
    pub(super) fn take_compared(&mut self, now: Timestamp, observed: Result<Observed, BackendError>) {
        (self.step, self.deadline) = (Step::Idle, None);
        self.compare_at = Some(now.after(self.options.compare_every));
        self.problems.clear();
        let is_different = match observed {
            Ok(found) => self.current.as_ref().is_some_and(|plan| found != Observed::from(plan)),
            Err(error) => {
                self.problems.push(error.into());
                false
            }
        };
        self.tell_problems(now);
        if is_different {
            self.status.repairs += 1;
            self.status.is_pending = true;
        }
        // A newer plan repairs as well.
        if is_different && !self.is_dirty {
            return self.apply(now);
        }
        self.next(now);
    }

    fn observe(&mut self, now: Timestamp, step: Step) {
        self.enter(now, step, self.options.apply_timeout);
        self.task = Some(Task::Observe);
    }

    fn enter(&mut self, now: Timestamp, step: Step, limit: Duration) {
        (self.step, self.since, self.deadline) = (step, now, Some(now.after(limit)));
    }
}

/// Whether it is known that a name server took a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    Known,
    Unknown,
}

impl Server {
    /// Takes what the server was told. Where it may have taken it or not, what counts is what it answers in both cases.
    fn take(&mut self, set: ZoneSet, certainty: Certainty) {
        self.is_certain = certainty == Certainty::Known;
        self.published = Some(match self.published.take() {
            Some(before) if !self.is_certain => ways::common(set, &before),
            _ => set,
        });
    }
}

fn meanwhile(set: ZoneSet) -> ZoneSet {
    ZoneSet { stage: Stage::Meanwhile, ..set }
}
