//! The agent itself: the only file with a clock and tasks.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pn_core::backend::Observed;
use pn_core::{BackendError, DnsBackend, Followed, NodeId, NodePlan, OverlayBackend, PlanSource, Report, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{AgentOptions, AgentStatus, Leave, Machine, Task};

/// Drives one node's data plane and name servers from a source of plans, as [the module](super) tells.
///
/// The future of [`run`](Self::run) may be dropped at any time: what is there stays, and a new agent goes on from it.
#[derive(Debug)]
pub struct Agent {
    machine: Machine,
    overlay: Arc<dyn OverlayBackend>,
    names: Vec<Arc<dyn DnsBackend>>,
    clock: Clock,
    status: watch::Sender<AgentStatus>,
    realised: watch::Sender<Option<NodePlan>>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Keeps the channel open when no handle is left.
    _orders: mpsc::UnboundedSender<Order>,
}

/// A hand on an agent that runs. Dropping it stops nothing.
#[derive(Clone)]
pub struct AgentHandle {
    status: watch::Receiver<AgentStatus>,
    realised: watch::Receiver<Option<NodePlan>>,
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    Confirm,
    Retry,
    Shutdown(Leave),
}

/// What came of a part of a task.
enum Answer {
    Published(usize, Report),
    Applied(Report),
    Observed(Result<Observed, BackendError>),
}

impl Agent {
    /// Makes the agent of a node, which does nothing before it runs.
    #[must_use]
    pub fn new(
        node: NodeId,
        overlay: Arc<dyn OverlayBackend>,
        names: Vec<Arc<dyn DnsBackend>>,
        options: AgentOptions,
    ) -> (Self, AgentHandle) {
        let machine = Machine::new(node, overlay.capabilities().name, names.len(), options);
        let (status, watched) = watch::channel(machine.status().clone());
        let (realised, last) = watch::channel(None);
        let (sender, orders) = mpsc::unbounded_channel();
        let handle = AgentHandle { status: watched, realised: last, orders: sender.clone() };
        (Self { machine, overlay, names, clock: Clock::new(), status, realised, orders, _orders: sender }, handle)
    }

    /// Follows the source until the agent is shut down, and returns how it was then.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled, and where a backend panics.
    ///
    /// # Cancel safety
    /// A dropped `run` leaves names and data plane as they are.
    pub async fn run(mut self, mut source: impl PlanSource) -> AgentStatus {
        let mut tasks = JoinSet::new();
        let mut is_open = true;
        self.machine.on_start(self.clock.now());
        loop {
            if let Some(task) = self.machine.poll_task() {
                // What it takes the place of is ended first, so that no two attempts meet.
                tasks.shutdown().await;
                self.start(task, &mut tasks);
            }
            // Before the status, so that who hears of one finds the plan that belongs to it.
            if let Some(plan) = self.machine.realised() {
                self.realised.send_if_modified(|told| {
                    told.as_ref() != Some(plan) && {
                        *told = Some(plan.clone());
                        true
                    }
                });
            }
            let status = self.machine.status();
            self.status.send_if_modified(|told| {
                *told != *status && {
                    told.clone_from(status);
                    true
                }
            });
            if self.machine.is_done() {
                return status.clone();
            }
            let deadline = self.machine.poll_timeout().and_then(|at| self.clock.instant(at));
            tokio::select! {
                Some(answer) = tasks.join_next() => match answer {
                    Ok(answer) => self.take(answer),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
                Some(order) = self.orders.recv() => match order {
                    Order::Confirm => self.machine.on_confirmed(self.clock.now()),
                    Order::Retry => self.machine.on_retry(self.clock.now()),
                    Order::Shutdown(leave) => self.machine.on_shutdown(self.clock.now(), leave),
                },
                followed = source.next(), if is_open => {
                    is_open = followed != Followed::Closed;
                    self.machine.on_followed(self.clock.now(), followed);
                }
                () = sleep_until(deadline) => self.machine.on_timeout(self.clock.now()),
            }
        }
    }

    fn start(&self, task: Task, tasks: &mut JoinSet<Answer>) {
        match task {
            Task::Publish(sets) => {
                for (number, set) in sets {
                    if let Some(names) = self.names.get(number).cloned() {
                        tasks.spawn(async move { Answer::Published(number, names.publish(&set).await) });
                    }
                }
            }
            Task::Apply(plan) => {
                let overlay = Arc::clone(&self.overlay);
                tasks.spawn(async move { Answer::Applied(overlay.apply(&plan).await) });
            }
            Task::Observe => {
                let overlay = Arc::clone(&self.overlay);
                tasks.spawn(async move { Answer::Observed(overlay.observe().await) });
            }
        }
    }

    fn take(&mut self, answer: Answer) {
        let now = self.clock.now();
        match answer {
            Answer::Published(number, report) => self.machine.on_published(now, number, &report),
            Answer::Applied(report) => self.machine.on_applied(now, &report),
            Answer::Observed(observed) => self.machine.on_observed(now, observed),
        }
    }
}

impl AgentHandle {
    /// Returns how the agent is.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        self.status.borrow().clone()
    }

    /// Returns a receiver that sees every change of how the agent is, or the last of several.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<AgentStatus> {
        self.status.clone()
    }

    /// Returns the plan that the node was last made, whole: the newest one, with what is held as it was. `None` before the first.
    #[must_use]
    pub fn realised(&self) -> Option<NodePlan> {
        self.realised.borrow().clone()
    }

    /// Confirms what is held now, so that it goes (L3).
    pub fn confirm(&self) {
        self.order(Order::Confirm);
    }

    /// Tries again at once what failed, for who knows that its reason is gone.
    pub fn retry(&self) {
        self.order(Order::Retry);
    }

    /// Ends the agent; [`Agent::run`] returns when it has left what is to be left.
    pub fn shutdown(&self, leave: Leave) {
        self.order(Order::Shutdown(leave));
    }

    fn order(&self, order: Order) {
        // An agent that has ended needs no orders.
        drop(self.orders.send(order));
    }
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentHandle").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => core::future::pending().await,
    }
}

/// The time of day, that does not jump while the agent runs.
#[derive(Debug, Clone, Copy)]
struct Clock {
    start: Instant,
    epoch: Timestamp,
}

impl Clock {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), epoch: Timestamp::ZERO.after(since) }
    }

    fn now(self) -> Timestamp {
        self.epoch.after(self.start.elapsed())
    }

    /// Returns the moment after which [`now`](Self::now) says `at`; `None` if it is too far away to be told.
    fn instant(self, at: Timestamp) -> Option<Instant> {
        // A millisecond later, since the time is rounded down.
        let millis = at.as_millis().saturating_sub(self.epoch.as_millis()).saturating_add(1);
        self.start.checked_add(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests;
