//! A machine with a data plane and two name servers in memory that fail when they are told to, and a naive model of what is
//! to be obeyed. Every task is checked against the laws when it is done.

use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;

use pn_core::backend::Observed;
use pn_core::{
    BackendError, DnsBackend, ErrorKind, Followed, Generation, NetworkId, NodePlan, OverlayBackend, Report, Stage,
    Timestamp, ZoneSet,
};

use crate::agent::breaker::{Tolerance, judge, judge_first, merge};
use crate::agent::fixture::{HERE, World, network};
use crate::agent::{AgentOptions, Machine, Phase, Task};
use crate::{MemoryNames, MemoryOverlay};

/// What goes wrong with one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is refused and nothing is done.
    Refuse,
    /// It is done, and said not to be.
    Deny,
    /// The part that concerns one network fails, and takes away what was there.
    Part(u128),
    /// It never answers and does nothing.
    HangBefore,
    /// It does what it should and never answers.
    HangAfter,
}

pub(super) struct Sim {
    pub(super) world: World,
    pub(super) machine: Machine,
    pub(super) overlay: MemoryOverlay,
    pub(super) names: [MemoryNames; 2],
    pub(super) faults: VecDeque<Option<Fault>>,
    pub(super) now: Timestamp,
    /// What was done, in short.
    pub(super) log: Vec<String>,
    options: AgentOptions,
    model: Model,
    /// Whether the task under way will never answer.
    is_hanging: bool,
    /// Whether ways were lost that nobody could have known of.
    is_tampered: bool,
    /// Whether a name server may answer what it was told to forget.
    is_deaf: [bool; 2],
    /// The last that this machine published to each name server.
    latest: [Option<(Generation, Stage)>; 2],
    /// Of which generation this machine said each network is.
    told: BTreeMap<NetworkId, Generation>,
}

/// What is to be obeyed.
#[derive(Default)]
struct Model {
    wanted: Option<NodePlan>,
    target: Option<NodePlan>,
    found: Option<Observed>,
    is_fenced: bool,
    is_holding: bool,
    /// Every plan that was to be obeyed at some time.
    targets: Vec<NodePlan>,
    /// The last plan of the source that this machine took.
    plan: Option<NodePlan>,
}

/// Returns what a future that does not wait comes to.
pub(super) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("backends in memory do not wait"),
    }
}

impl Sim {
    pub(super) fn new() -> Self {
        let options = AgentOptions::new(1);
        Self {
            world: World::new(),
            machine: Machine::new(HERE, "memory", 2, options.clone()),
            overlay: MemoryOverlay::new(),
            names: Default::default(),
            faults: VecDeque::new(),
            now: Timestamp::ZERO,
            log: Vec::new(),
            options,
            model: Model::default(),
            is_hanging: false,
            is_tampered: false,
            is_deaf: [false; 2],
            latest: [None; 2],
            told: BTreeMap::new(),
        }
    }

    /// Replaces the machine by a new one, which may know the last plan.
    pub(super) fn crash(&mut self, is_resumed: bool) {
        let mut options = self.options.clone();
        options.resume = self.model.target.clone().filter(|_| is_resumed);
        self.model.wanted = options.resume.clone();
        self.model.target = options.resume.clone();
        (self.model.found, self.model.is_holding, self.model.is_fenced) = (None, false, false);
        self.machine = Machine::new(HERE, "memory", 2, options);
        (self.latest, self.is_hanging) = ([None; 2], false);
        self.model.plan = None;
        self.machine.on_start(self.now);
    }

    pub(super) fn deliver(&mut self, plan: NodePlan) {
        self.model.take(&plan);
        self.machine.on_followed(self.now, Followed::Plan(plan));
        self.told.clear();
        self.check_told();
    }

    pub(super) fn deliver_world(&mut self) {
        let plan = self.world.plan();
        self.deliver(plan);
    }

    pub(super) fn confirm(&mut self) {
        if self.model.is_holding {
            self.model.obey(self.model.wanted.clone());
            self.model.is_holding = false;
        }
        self.machine.on_confirmed(self.now);
    }

    /// Fences the node, unless it does not know of any generation yet.
    pub(super) fn fence(&mut self) {
        if let Some(newest) = self.model.newest() {
            self.model.is_fenced = true;
            self.model.is_holding = false;
            self.model.obey(Some(NodePlan::empty(HERE, newest)));
            self.machine.on_followed(self.now, Followed::Fenced("taken".to_owned()));
        }
    }

    pub(super) fn tamper(&mut self, of: u128) {
        self.overlay.tamper(|found| drop(found.networks.remove(&network(of))));
        self.is_tampered = true;
    }

    pub(super) fn wait(&mut self, time: Duration) {
        // A task begins at once.
        while self.step() {}
        let until = self.now.after(time);
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= until) {
            self.time_out(at);
            while self.step() {}
        }
        self.now = until;
    }

    /// Does what is to be done until nothing is, waiting where something failed.
    pub(super) fn settle(&mut self) {
        for _ in 0..40 {
            while self.step() {}
            let is_quiet = !self.is_hanging && self.machine.status().failures.is_empty();
            if is_quiet && !self.is_tampered {
                return;
            }
            let Some(at) = self.machine.poll_timeout() else { return };
            self.time_out(at);
        }
    }

    fn time_out(&mut self, at: Timestamp) {
        self.now = self.now.max(at);
        self.machine.on_timeout(self.now);
        if !self.step() {
            let next = self.machine.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "what is due is not done after {:?}", self.log);
        }
    }

    /// Does one task, if there is one, and checks the laws.
    pub(super) fn step(&mut self) -> bool {
        let Some(task) = self.machine.poll_task() else { return false };
        self.is_hanging = false;
        let fault = self.faults.pop_front().flatten();
        match task {
            Task::Publish(sets) => {
                for (number, set) in sets {
                    // One of them fails, the other does not.
                    let is_hit = usize::try_from(set.generation.get() % 2).unwrap() == number;
                    self.publish(number, &set, fault.filter(|_| is_hit));
                }
            }
            Task::Apply(plan) => self.apply(&plan, fault),
            Task::Observe => self.observe(fault),
        }
        self.check_told();
        true
    }

    /// A network that is said to be of the source's last plan is all of what that plan says (D14), whatever is obeyed of it.
    fn check_told(&mut self) {
        let status = self.machine.status();
        let Some(plan) = self.model.plan.as_ref().filter(|_| status.phase == Phase::Following) else { return };
        let found = ready(self.overlay.observe()).unwrap();
        for id in [1, 2].map(network) {
            let of = status.apart.get(&id).copied().or(status.announced).unwrap_or_default();
            let is_new = self.told.insert(id, of) != Some(of);
            if !is_new || of < plan.generation || self.is_tampered {
                continue;
            }
            assert_eq!(found.networks.get(&id), Observed::from(plan).networks.get(&id), "after {:?}", self.log);
            for names in &self.names {
                let zone = plan.networks.get(&id).map(|network| &network.zone);
                assert_eq!(names.published().zones.get(&id), zone, "after {:?}", self.log);
            }
        }
    }

    fn publish(&mut self, number: usize, set: &ZoneSet, fault: Option<Fault>) {
        self.log.push(format!("publish {:?} of {} to {number} ({fault:?})", set.stage, set.generation));
        let age = Some((set.generation, set.stage));
        assert!(
            age >= self.latest[number],
            "an older set is published after {:?}: {:?}",
            self.latest[number],
            self.log
        );
        self.latest[number] = age;
        let report = if matches!(fault, Some(Fault::Refuse | Fault::HangBefore | Fault::Part(_))) {
            self.is_deaf[number] = true;
            Report::refused(set.generation, error("publish", "the zones"))
        } else {
            self.check_ways(set);
            self.is_deaf[number] = false;
            ready(self.names[number].publish(set))
        };
        assert!(fault.is_some() || report.failures().next().is_none(), "{report:?} after {:?}", self.log);
        match fault {
            Some(Fault::HangBefore | Fault::HangAfter) => self.is_hanging = true,
            Some(Fault::Deny) => {
                let report = Report::refused(set.generation, error("publish", "the zones"));
                self.machine.on_published(self.now, number, &report);
            }
            Some(Fault::Refuse | Fault::Part(_)) | None => self.machine.on_published(self.now, number, &report),
        }
    }

    fn apply(&mut self, plan: &NodePlan, fault: Option<Fault>) {
        self.log.push(format!("apply {} ({fault:?})", plan.generation));
        assert!(self.model.targets.contains(plan), "nobody asked for this: {:?}", self.log);
        if matches!(fault, Some(Fault::Refuse | Fault::HangBefore)) {
            self.is_hanging = fault == Some(Fault::HangBefore);
            if fault == Some(Fault::Refuse) {
                let generation = plan.generation;
                let error = error("apply", &format!("generation {generation}"));
                self.machine.on_applied(self.now, &Report::refused(generation, error));
            }
            return;
        }
        let hit = match fault {
            Some(Fault::Part(of)) => Some(network(of)),
            Some(Fault::Deny) => Some(network(1)),
            Some(Fault::Refuse | Fault::HangBefore | Fault::HangAfter) | None => None,
        };
        let is_partial = matches!(fault, Some(Fault::Part(_)));
        let possible = if is_partial { plan.only(|network| Some(network.id) != hit) } else { plan.clone() };
        let mut report = ready(self.overlay.apply(&possible));
        assert!(report.failures().next().is_none(), "{report:?} after {:?}", self.log);
        if !is_partial {
            self.is_tampered = false;
            for number in 0..self.names.len() {
                if !self.is_deaf[number] {
                    self.check_ways(&self.names[number].published());
                }
            }
        }
        if let Some(hit) = hit {
            report.record(format!("network {hit}"), Err(error("create", &format!("network {hit}"))));
        }
        self.is_hanging = fault == Some(Fault::HangAfter);
        if !self.is_hanging {
            self.machine.on_applied(self.now, &report);
        }
    }

    fn observe(&mut self, fault: Option<Fault>) {
        self.log.push(format!("observe ({fault:?})"));
        match fault {
            Some(Fault::HangBefore | Fault::HangAfter) => self.is_hanging = true,
            // Nobody sees now what failed before.
            Some(Fault::Refuse | Fault::Part(_)) => {
                self.is_tampered = true;
                self.machine.on_observed(self.now, Err(error("observe", "the data plane")));
            }
            Some(Fault::Deny) | None => {
                let mut found = ready(self.overlay.observe()).unwrap();
                if fault.is_some() {
                    // A lie: there is less than there is.
                    drop(found.networks.pop_first());
                }
                self.model.find(&found);
                self.machine.on_observed(self.now, Ok(found));
            }
        }
        if self.is_hanging {
            self.is_tampered = true;
        }
    }

    /// No name leads to an address that has no way (X4).
    fn check_ways(&self, set: &ZoneSet) {
        if self.is_tampered {
            return;
        }
        let found = ready(self.overlay.observe()).unwrap();
        let here = crate::agent::fixture::node(1).tunnel_address;
        for (id, zone) in &set.zones {
            for (_, address) in zone.types().flat_map(|of_type| of_type.containers.iter()) {
                let way = found.networks.get(id).and_then(|network| network.endpoints.get(address));
                let is_there = way.is_some_and(|way| {
                    way.via == here || found.peers.values().any(|peer| peer.tunnel_address == way.via)
                });
                assert!(is_there, "{address} of {id} has a name and no way after {:?}", self.log);
            }
        }
    }

    /// The node is what the model says, and answers it.
    pub(super) fn check(&self) {
        let found = ready(self.overlay.observe()).unwrap();
        let Some(target) = &self.model.target else { return };
        assert_eq!(found, Observed::from(target), "after {:?}", self.log);
        for names in &self.names {
            assert_eq!(names.published().zones, target.zones().zones, "after {:?}", self.log);
        }
        assert_eq!(!self.machine.status().held.is_empty(), self.model.is_holding, "after {:?}", self.log);
        assert_eq!(self.machine.status().applied, Some(target.generation), "after {:?}", self.log);
        assert_eq!(self.machine.status().announced, Some(target.generation), "after {:?}", self.log);
        let phase = if self.model.is_fenced { Phase::Fenced } else { Phase::Following };
        assert_eq!(self.machine.status().phase, phase);
    }
}

impl Model {
    fn newest(&self) -> Option<Generation> {
        [&self.wanted, &self.target].into_iter().flatten().map(|plan| plan.generation).max()
    }

    fn take(&mut self, plan: &NodePlan) {
        let newest = self.newest();
        if newest.is_some_and(|newest| plan.generation < newest || self.is_fenced && plan.generation == newest) {
            return;
        }
        self.is_fenced = false;
        self.wanted = Some(plan.clone());
        self.plan = Some(plan.clone());
        self.judge();
    }

    fn find(&mut self, found: &Observed) {
        if self.found.is_none() && self.wanted.is_some() {
            self.found = Some(found.clone());
            if self.target.is_none() {
                self.judge();
            }
        }
    }

    fn judge(&mut self) {
        let Some(plan) = self.wanted.clone() else { return };
        let tolerance = Tolerance::default();
        if let Some(before) = &self.target {
            let mut held = judge(before, &plan, &tolerance).held;
            let merged = merge(before, &plan, &mut held);
            self.is_holding = !held.is_empty();
            self.obey(Some(merged));
        } else if let Some(found) = &self.found {
            self.is_holding = !judge_first(found, &plan, &tolerance).held.is_empty();
            if !self.is_holding {
                self.obey(Some(plan));
            }
        }
    }

    fn obey(&mut self, plan: Option<NodePlan>) {
        self.targets.extend(plan.clone());
        self.target = plan;
    }
}

fn error(operation: &'static str, object: &str) -> BackendError {
    BackendError::new(ErrorKind::Io, operation, object)
}
