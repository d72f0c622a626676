//! What an embedder may choose.

use core::time::Duration;

use pn_core::NodePlan;

use super::breaker::Tolerance;

/// Options of an agent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentOptions {
    /// Decides the jitter of retries, so that nodes that fail together do not retry together: different on every node.
    pub seed: u64,
    /// How long after one comparison with what is observed the next follows (X8): 30 s.
    pub compare_every: Duration,
    /// How long one attempt to apply or to observe may take before it is cancelled: 30 s.
    pub apply_timeout: Duration,
    /// How long one attempt to publish may take before it is cancelled: 5 s.
    pub publish_timeout: Duration,
    /// How long after a first failure the next attempt follows; twice as long after each further one: 100 ms.
    pub retry_first: Duration,
    /// How long after a failure the next attempt follows at most: 30 s.
    pub retry_max: Duration,
    /// How long addresses keep their ways after the last name is withdrawn when the agent leaves: 5 s, as long as names live
    /// in caches.
    pub drain: Duration,
    /// What a plan may take away without being asked about (L3).
    pub tolerance: Tolerance,
    /// The last plan of an earlier life, if the embedder kept it. It is applied and answered before the source says
    /// anything (L4), and is what the first plan is compared with; otherwise that is what the data plane holds.
    pub resume: Option<NodePlan>,
}

impl AgentOptions {
    /// Makes the default options. The seed should be random.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            compare_every: Duration::from_secs(30),
            apply_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(5),
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            tolerance: Tolerance::default(),
            resume: None,
        }
    }
}

/// What an agent leaves behind when it is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Everything stays as it is, so that a new agent finds it: for a restart.
    Running,
    /// Names are withdrawn, and when no cache has them any more the data plane is taken down: for good.
    Nothing,
}
