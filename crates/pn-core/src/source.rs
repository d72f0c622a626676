//! The trait that an agent gets its plans from.

use core::fmt;

use async_trait::async_trait;

use crate::plan::{Generation, NodePlan};

/// Where one node's plans come from, in order.
///
/// # Contract
/// - What was said stays true until the next word: a source that loses its origin says [`Followed::Lost`] once and
///   never an empty plan.
/// - Plans come in the order of their generations. What changed faster than it was asked for may come as one plan.
///
/// # Cancel safety
/// A dropped `next` loses nothing: the next call returns what it would have.
#[async_trait]
pub trait PlanSource: fmt::Debug + Send {
    /// Waits for what comes next.
    async fn next(&mut self) -> Followed;
}

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Followed {
    /// This is what the node is to be.
    Plan(NodePlan),
    /// The origin cannot be reached, and why: the last plan stands, and grows stale.
    Lost(String),
    /// The origin is back, and nothing was missed.
    Back,
    /// Somebody has looked at what this generation would remove, and wants it: it is applied whatever it removes.
    Confirmed(Generation),
    /// The node's place was taken, and by whom: it must stop until there is a newer plan.
    Fenced(String),
    /// There will be nothing more.
    Closed,
}
