//! What an agent does, and when: a state machine without I/O, clock or randomness of its own.

mod attempt;
mod holds;
mod problems;

use std::collections::{BTreeMap, BTreeSet};

use pn_core::backend::Observed;
use pn_core::{
    BackendError, ErrorKind, Followed, Generation, NetworkId, NodeId, NodePlan, Report, Stage, Timestamp, ZoneSet,
};

use self::holds::Hold;
use self::problems::Problem;
use super::options::{AgentOptions, Leave};
use super::status::{AgentStatus, Phase, Stale};

/// Decides what an agent does. Whoever owns one tells it what happened (`on_…`) with the time, and then
///
/// 1. takes [`poll_task`](Self::poll_task): a task takes the place of the one under way, which is dropped with whatever it
///    would have answered;
/// 2. hands what a task led to back;
/// 3. calls [`on_timeout`](Self::on_timeout) when [`poll_timeout`](Self::poll_timeout) has come;
/// 4. ends when [`is_done`](Self::is_done).
///
/// Every plan is realised in one *attempt*: names that vanish are withdrawn, the data plane is changed, names are announced
/// (X4). Plans that come meanwhile wait, and only the last of them is realised. What fails is tried again.
#[derive(Debug)]
pub struct Machine {
    node: NodeId,
    options: AgentOptions,
    rng: fastrand::Rng,
    /// The newest plan the source gave.
    wanted: Option<NodePlan>,
    /// What of it is obeyed: with the networks that are held as they were.
    target: Option<NodePlan>,
    /// What the data plane held before the first attempt.
    found: Option<Observed>,
    holds: BTreeMap<NetworkId, Hold>,
    /// Whether the target is what was decided of a plan of the source.
    is_judged: bool,
    /// Removals up to this generation were confirmed.
    confirmed: Option<Generation>,
    /// What the source said last and was not taken.
    refused: Option<String>,
    servers: Vec<Server>,
    step: Step,
    /// The plan of the attempt that is under way, or was the last one.
    current: Option<NodePlan>,
    /// Whether it is what was decided of a plan of the source: of what was kept of an earlier life, nobody knows what was held.
    is_of_source: bool,
    /// The networks of which it does not say what the source wants.
    kept: BTreeSet<NetworkId>,
    /// The networks that the data plane has as it says.
    made: BTreeSet<NetworkId>,
    /// What failed in that attempt.
    problems: Vec<Problem>,
    /// Whether the target is another than the last attempt's.
    is_dirty: bool,
    /// Whether caches had time to forget the names that were withdrawn to leave.
    is_drained: bool,
    attempts: u32,
    retry_at: Option<Timestamp>,
    /// Whether what fails in the attempt under way is tried again at once.
    is_hurried: bool,
    compare_at: Option<Timestamp>,
    /// When what is under way began, and when it ends at the latest.
    since: Timestamp,
    deadline: Option<Timestamp>,
    task: Option<Task>,
    status: AgentStatus,
}

/// Something to do for who owns a [`Machine`].
#[derive(Debug, Clone)]
pub enum Task {
    /// Publishes to the name servers with these numbers, at the same time; [`Machine::on_published`] hears of each.
    Publish(Vec<(usize, ZoneSet)>),
    /// Applies to the data plane; [`Machine::on_applied`] hears of it.
    Apply(NodePlan),
    /// Reads the data plane; [`Machine::on_observed`] hears of it.
    Observe,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    /// The data plane is read for the first time.
    Finding,
    Withdrawing,
    Draining,
    Applying,
    /// The data plane is read to see what a failed attempt left.
    Inspecting,
    Announcing,
    Comparing,
}

/// What is known of a name server.
#[derive(Debug, Default)]
struct Server {
    /// What it answers, or less. `None` before the first attempt, when it may answer what an earlier agent published.
    published: Option<ZoneSet>,
    /// Whether it answers just that.
    is_certain: bool,
    /// The latest that was tried with it.
    tried: Option<(Generation, Stage)>,
    /// What it is being told.
    pending: Option<ZoneSet>,
}

impl Machine {
    /// Makes the machine of a node's agent for a data plane with this name and so many name servers.
    #[must_use]
    pub fn new(node: NodeId, backend: &'static str, servers: usize, options: AgentOptions) -> Self {
        let mut status = AgentStatus::new(backend);
        let resumed = options.resume.clone().filter(|plan| plan.node == node);
        (status.wanted, status.is_pending) = (resumed.as_ref().map(|plan| plan.generation), resumed.is_some());
        Self {
            node,
            rng: fastrand::Rng::with_seed(options.seed),
            is_dirty: resumed.is_some(),
            wanted: resumed.clone(),
            target: resumed,
            options,
            found: None,
            holds: BTreeMap::new(),
            is_judged: false,
            confirmed: None,
            refused: None,
            servers: (0..servers).map(|_| Server::default()).collect(),
            step: Step::Idle,
            current: None,
            is_of_source: false,
            kept: BTreeSet::new(),
            made: BTreeSet::new(),
            problems: Vec::new(),
            is_drained: false,
            attempts: 0,
            retry_at: None,
            is_hurried: false,
            compare_at: None,
            since: Timestamp::ZERO,
            deadline: None,
            task: None,
            status,
        }
    }

    /// Returns what to do now, in the place of what is under way.
    pub fn poll_task(&mut self) -> Option<Task> {
        self.task.take()
    }

    /// Returns when [`on_timeout`](Self::on_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.is_done() {
            return None;
        }
        if self.step != Step::Idle {
            return self.deadline;
        }
        [self.retry_at, self.compare_at].into_iter().flatten().min()
    }

    /// Returns how the agent is.
    #[must_use]
    pub const fn status(&self) -> &AgentStatus {
        &self.status
    }

    /// Returns the plan that the node was last made, whole: what was obeyed, with what is held as it was. `None` while another
    /// one is being realised, or fails.
    #[must_use]
    pub fn realised(&self) -> Option<&NodePlan> {
        self.current.as_ref().filter(|_| !self.status.is_pending)
    }

    /// Returns whether the agent has been shut down.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.status.phase == Phase::Stopped
    }

    /// Begins with what was kept of an earlier life, if anything was.
    pub fn on_start(&mut self, now: Timestamp) {
        self.next(now);
    }

    /// Takes the source's next word.
    pub fn on_followed(&mut self, now: Timestamp, followed: Followed) {
        if matches!(self.status.phase, Phase::Leaving | Phase::Stopped) {
            return;
        }
        match followed {
            Followed::Plan(plan) => self.take(now, plan),
            Followed::Lost(why) => self.grow_stale(now, why),
            Followed::Back => self.status.stale = None,
            Followed::Confirmed(generation) => self.confirm(generation),
            Followed::Fenced(why) => self.fence(why),
            Followed::Closed => self.grow_stale(now, "the source has ended".to_owned()),
            other => {
                let error = BackendError::new(ErrorKind::Unsupported, "follow", format!("{other:?}"));
                self.refuse(now, error.into());
            }
        }
        self.next(now);
    }

    /// Confirms everything that is held now.
    pub fn on_confirmed(&mut self, now: Timestamp) {
        if let Some(plan) = self.wanted.as_ref().filter(|_| !self.holds.is_empty()) {
            self.confirm(plan.generation);
        }
        self.next(now);
    }

    /// Tries again at once what failed, or fails in the attempt under way: its reason is gone.
    pub fn on_retry(&mut self, now: Timestamp) {
        self.is_hurried = self.step != Step::Idle;
        if !self.is_hurried && self.retry_at.is_some() {
            self.retry_at = Some(now);
            self.next(now);
        }
    }

    /// Begins to leave.
    pub fn on_shutdown(&mut self, now: Timestamp, leave: Leave) {
        match (leave, self.status.phase) {
            (_, Phase::Stopped) | (Leave::Nothing, Phase::Leaving) => {}
            (Leave::Running, _) => {
                self.abandon();
                self.status.phase = Phase::Stopped;
            }
            (Leave::Nothing, _) => {
                self.status.phase = Phase::Leaving;
                self.empty();
                self.next(now);
            }
        }
    }

    /// Takes what came of publishing to one name server.
    pub fn on_published(&mut self, now: Timestamp, server: usize, report: &Report) {
        if !matches!(self.step, Step::Withdrawing | Step::Announcing) {
            return;
        }
        let Some(set) = self.servers.get_mut(server).and_then(|server| server.pending.take()) else { return };
        let failures: Vec<_> = report.failures().cloned().collect();
        self.take_published(server, set, failures);
        self.after_publishing(now);
    }

    /// Takes what came of applying.
    pub fn on_applied(&mut self, now: Timestamp, report: &Report) {
        if self.step == Step::Applying {
            let failures = report.failures().cloned().collect();
            self.take_applied(now, failures);
        }
    }

    /// Takes what was observed.
    pub fn on_observed(&mut self, now: Timestamp, observed: Result<Observed, BackendError>) {
        match self.step {
            Step::Finding => self.take_found(now, observed),
            Step::Inspecting => self.take_inspected(now, observed),
            Step::Comparing => self.take_compared(now, observed),
            Step::Idle | Step::Withdrawing | Step::Draining | Step::Applying | Step::Announcing => {}
        }
    }

    /// Does what has become due.
    pub fn on_timeout(&mut self, now: Timestamp) {
        if self.step == Step::Idle {
            return self.next(now);
        }
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let generation =
            format!("generation {}", self.current.as_ref().map_or(Generation::ZERO, |plan| plan.generation));
        let late = |operation, object: &str| BackendError::new(ErrorKind::TimedOut, operation, object);
        match self.step {
            Step::Idle => {}
            Step::Draining => {
                self.is_drained = true;
                self.apply(now);
            }
            Step::Applying => self.take_applied(now, vec![late("apply", &generation)]),
            Step::Finding | Step::Inspecting | Step::Comparing => {
                self.on_observed(now, Err(late("observe", "the data plane")));
            }
            Step::Withdrawing | Step::Announcing => {
                let silent = self.servers.iter_mut().enumerate();
                let silent = silent.filter_map(|(number, server)| Some((number, server.pending.take()?)));
                for (number, set) in silent.collect::<Vec<_>>() {
                    let error = late("publish", &generation);
                    self.take_published(number, set, vec![error]);
                }
                self.after_publishing(now);
            }
        }
    }

    /// Takes a plan.
    fn take(&mut self, now: Timestamp, plan: NodePlan) {
        if let Err(error) = self.check(&plan) {
            return self.refuse(now, Problem { object: format!("generation {}", plan.generation), error });
        }
        if let Some(object) = self.refused.take() {
            self.status.failures.remove(&object);
        }
        (self.status.stale, self.status.fenced) = (None, None);
        self.status.wanted = Some(plan.generation);
        self.wanted = Some(plan);
        self.judge();
    }

    fn check(&self, plan: &NodePlan) -> Result<(), BackendError> {
        if plan.node != self.node {
            let object = format!("a plan for {} on {}", plan.node, self.node);
            return Err(BackendError::new(ErrorKind::WrongNode, "take", object));
        }
        let is_fenced = self.status.phase == Phase::Fenced;
        match self.newest() {
            Some(newest) if plan.generation < newest || is_fenced && plan.generation == newest => {
                Err(BackendError::superseded(plan.generation, newest))
            }
            _ => Ok(()),
        }
    }

    /// Stops forwarding and answering: what is known here may be somebody else's by now.
    fn fence(&mut self, why: String) {
        self.status.fenced = Some(why);
        if self.status.phase != Phase::Fenced {
            self.status.phase = Phase::Fenced;
            self.empty();
        }
    }

    /// Makes nothing at all the target.
    fn empty(&mut self) {
        self.abandon();
        self.holds.clear();
        self.tell_holds();
        self.is_drained = false;
        self.set_target(NodePlan::empty(self.node, self.newest().unwrap_or_default()));
    }

    fn set_target(&mut self, target: NodePlan) {
        self.target = Some(target);
        (self.is_dirty, self.attempts, self.status.is_pending) = (true, 0, true);
        (self.retry_at, self.compare_at) = (None, None);
    }

    /// Returns the newest generation there was.
    fn newest(&self) -> Option<Generation> {
        let plans = [&self.wanted, &self.target, &self.current];
        plans.into_iter().flatten().map(|plan| plan.generation).max()
    }

    fn grow_stale(&mut self, now: Timestamp, why: String) {
        let since = self.status.stale.as_ref().map_or(now, |stale| stale.since);
        self.status.stale = Some(Stale { since, why });
    }
}
