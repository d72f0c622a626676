//! The agent with real tasks, on a clock that is wound on when everybody waits.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use async_trait::async_trait;
use pn_core::{Capabilities, Generation, NodePlan, ZoneSet};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::agent::Phase;
use crate::agent::fixture::{HERE, World};
use crate::{MemoryNames, MemoryOverlay};

#[derive(Debug)]
struct Words(mpsc::UnboundedReceiver<Followed>);

#[async_trait]
impl PlanSource for Words {
    async fn next(&mut self) -> Followed {
        self.0.recv().await.unwrap_or(Followed::Closed)
    }
}

/// What a data plane does with its next plans: one entry each, and then nothing out of the ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Hang,
    Panic,
}

/// A data plane that takes its time, and counts.
#[derive(Debug, Default)]
struct Slow {
    inner: MemoryOverlay,
    moods: Mutex<Vec<Mood>>,
    applies: AtomicUsize,
    cancelled: AtomicUsize,
    under_way: AtomicUsize,
}

/// Counts what is under way, and what ends before it should.
struct Guard<'a>(&'a Slow, bool);

impl<'a> Guard<'a> {
    fn new(slow: &'a Slow) -> Self {
        assert_eq!(slow.under_way.fetch_add(1, Ordering::SeqCst), 0, "two attempts at once");
        Self(slow, false)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        self.0.cancelled.fetch_add(usize::from(!self.1), Ordering::SeqCst);
    }
}

#[async_trait]
impl OverlayBackend for Slow {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn apply(&self, plan: &NodePlan) -> Report {
        self.applies.fetch_add(1, Ordering::SeqCst);
        let mut guard = Guard::new(self);
        let mood = self.moods.lock().unwrap().pop();
        match mood {
            Some(Mood::Hang) => core::future::pending().await,
            Some(Mood::Panic) => panic!("a data plane that panics"),
            None => sleep(Duration::from_millis(100)).await,
        }
        guard.1 = true;
        self.inner.apply(plan).await
    }

    async fn observe(&self) -> Result<Observed, BackendError> {
        let mut guard = Guard::new(self);
        sleep(Duration::from_millis(10)).await;
        guard.1 = true;
        self.inner.observe().await
    }
}

/// A name server that never answers.
#[derive(Debug)]
struct Mute;

#[async_trait]
impl DnsBackend for Mute {
    async fn publish(&self, _: &ZoneSet) -> Report {
        core::future::pending().await
    }
}

struct Node {
    world: World,
    overlay: Arc<Slow>,
    names: Arc<MemoryNames>,
    handle: AgentHandle,
    words: UnboundedSender<Followed>,
    running: JoinHandle<AgentStatus>,
}

impl Node {
    fn new(more_names: Option<Arc<dyn DnsBackend>>) -> Self {
        let (overlay, names) = (Arc::new(Slow::default()), Arc::new(MemoryNames::new()));
        let (words, receiver) = mpsc::unbounded_channel();
        let mut servers: Vec<Arc<dyn DnsBackend>> = vec![names.clone()];
        servers.extend(more_names);
        let (agent, handle) = Agent::new(HERE, overlay.clone(), servers, AgentOptions::new(7));
        let running = tokio::spawn(agent.run(Words(receiver)));
        Self { world: World::new(), overlay, names, handle, words, running }
    }

    /// Starts a container here and tells the agent.
    fn start(&mut self, n: u32) -> Generation {
        self.world.run([n], 1, 1);
        self.tell();
        self.world.state.generation()
    }

    fn tell(&self) {
        self.words.send(Followed::Plan(self.world.plan())).unwrap();
    }

    async fn until(&self, is_so: impl FnMut(&AgentStatus) -> bool) -> AgentStatus {
        let mut status = self.handle.subscribe();
        let is_so = status.wait_for(is_so);
        let within = tokio::time::timeout(Duration::from_secs(3600), is_so).await;
        within.expect("within an hour of such a clock").expect("the agent runs").clone()
    }

    async fn check(&self) {
        let plan = self.world.plan();
        assert_eq!(self.overlay.inner.observe().await.unwrap(), Observed::from(&plan));
        assert_eq!(self.names.published(), plan.zones());
    }
}

#[tokio::test(start_paused = true)]
async fn d14_a_writer_can_wait_until_a_generation_is_there() {
    let mut node = Node::new(None);
    assert_eq!(node.handle.status().phase, Phase::Starting);
    for n in 1..=3 {
        let generation = node.start(n);
        let status = node.until(|status| status.announced >= Some(generation)).await;
        assert!(status.is_settled());
        assert_eq!(status.backend, "memory");
        assert!(status.last_apply >= Some(Duration::from_millis(99)), "{:?}", status.last_apply);
        node.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn fifty_plans_at_once_are_three_attempts_at_most() {
    let mut node = Node::new(None);
    let last = (1..=50).map(|n| node.start(n)).last();
    node.until(|status| status.announced == last).await;
    node.check().await;
    let applies = node.overlay.applies.load(Ordering::SeqCst);
    assert!(applies <= 3, "{applies}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_dropped_before_the_next() {
    let mut node = Node::new(None);
    node.overlay.moods.lock().unwrap().extend([Mood::Hang, Mood::Hang]);
    let generation = node.start(1);
    let status = node.until(|status| !status.failures.is_empty()).await;
    assert!(status.failures.contains_key(&format!("generation {generation}")), "{status:?}");
    let status = node.until(AgentStatus::is_settled).await;
    assert!(status.failures.is_empty());
    assert_eq!(node.overlay.cancelled.load(Ordering::SeqCst), 2);
    node.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_is_mute_keeps_no_other_from_its_names() {
    let mut node = Node::new(Some(Arc::new(Mute)));
    let generation = node.start(1);
    let status = node.until(|status| !status.failures.is_empty()).await;
    assert_eq!(status.applied, Some(generation));
    let object = format!("name server 1: generation {generation}");
    assert_eq!(status.failures.keys().collect::<Vec<_>>(), [&object]);
    node.check().await;
    assert!(!node.handle.status().is_settled());
}

#[tokio::test(start_paused = true)]
async fn a_handle_confirms() {
    let mut node = Node::new(None);
    node.start(1);
    node.until(AgentStatus::is_settled).await;
    node.world.fail([1]);
    node.tell();
    let status = node.until(|status| !status.held.is_empty() && !status.is_pending).await;
    assert_eq!(status.held.len(), 1);
    let kept = node.handle.realised().unwrap();
    assert_eq!((Some(kept.generation), kept.networks.len()), (status.announced, 1), "what is held is there");
    node.handle.confirm();
    node.until(AgentStatus::is_settled).await;
    assert_eq!(node.handle.realised(), Some(node.world.plan()));
    node.check().await;
}

#[tokio::test(start_paused = true)]
async fn shutting_down_leaves_all_or_nothing() {
    for (leave, rest) in [(Leave::Running, 1), (Leave::Nothing, 0)] {
        let mut node = Node::new(None);
        node.start(1);
        node.until(AgentStatus::is_settled).await;
        // In the middle of an attempt that would never end.
        node.overlay.moods.lock().unwrap().push(Mood::Hang);
        node.start(2);
        while node.overlay.under_way.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        node.handle.shutdown(leave);
        let last = node.running.await.unwrap();
        assert_eq!(last.phase, Phase::Stopped);
        assert_eq!(node.handle.status(), last);
        let seconds = start.elapsed().as_secs();
        assert_eq!(seconds, if leave == Leave::Running { 0 } else { 5 });
        assert_eq!(node.overlay.inner.observe().await.unwrap().networks.len(), rest);
        assert_eq!(node.names.published().zones.len(), rest);
        // Whoever still has a handle may use it.
        node.handle.shutdown(Leave::Nothing);
        node.handle.confirm();
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_dropped_leaves_everything_to_the_next() {
    let mut node = Node::new(None);
    node.start(1);
    node.until(AgentStatus::is_settled).await;
    node.running.abort();
    assert!((&mut node.running).await.unwrap_err().is_cancelled());
    let (words, receiver) = mpsc::unbounded_channel();
    let names: Vec<Arc<dyn DnsBackend>> = vec![node.names.clone()];
    let (agent, handle) = Agent::new(HERE, node.overlay.clone(), names, AgentOptions::new(7));
    (node.handle, node.words) = (handle, words);
    node.running = tokio::spawn(agent.run(Words(receiver)));
    node.start(2);
    node.until(AgentStatus::is_settled).await;
    node.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_does_not_end_the_agent() {
    let mut node = Node::new(None);
    node.start(1);
    let (words, _) = mpsc::unbounded_channel();
    node.words = words;
    node.until(|status| status.stale.is_some() && status.announced.is_some()).await;
    node.overlay.inner.tamper(|found| found.networks.clear());
    let status = node.until(|status| status.repairs == 1 && !status.is_pending).await;
    assert_eq!(status.stale.unwrap().why, "the source has ended");
    node.check().await;
    assert!(!node.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_backend_is_not_swallowed() {
    let mut node = Node::new(None);
    node.overlay.moods.lock().unwrap().push(Mood::Panic);
    node.start(1);
    assert!((&mut node.running).await.unwrap_err().is_panic());
}
