//! What runs on every node: it follows plans, and keeps a data plane and the names true.
//!
//! An [`Agent`] gets plans from a [`PlanSource`](pn_core::PlanSource) and drives one [`OverlayBackend`](pn_core::OverlayBackend)
//! and any number of [`DnsBackend`](pn_core::DnsBackend)s. What it does, and when, is decided by a [`Machine`] without I/O;
//! the agent around it (feature `agent`) has the clock and the tasks.
//!
//! - **Names follow packets (X4).** For each plan, names that vanish are withdrawn, the data plane is changed, names are
//!   announced. Where applying fails in part, the data plane is read, and only names that have their way are announced: a
//!   network that failed keeps what it answers meanwhile, others go on.
//! - **What fails is tried again**, later each time and with jitter. Plans that come faster than they can be applied are
//!   passed over; the last one counts.
//! - **What is, is compared with what should be (X8)**, every [`AgentOptions::compare_every`], and repaired.
//! - **A lost source changes nothing (L4).** Packets are forwarded and names answered; [`AgentStatus::stale`] says since when,
//!   so that whoever answers names can end it after a time of its choice (D10).
//! - **A mass deletion waits for a confirmation (L3).** See [`breaker`]. What only adds, and what concerns other networks, is
//!   applied all the same. A later plan that removes less lets the rest go by itself.
//! - **A fenced node stops (L6).** Its names are withdrawn and its data plane is taken down at once: its place was taken, so
//!   its addresses may be others' by now, and what it would answer or forward may lead to the wrong container. A newer plan
//!   brings it back.
//!
//! A new agent first reads what its predecessor left. What has its way already is answered at once, the rest after it was
//! applied.

pub mod breaker;
mod machine;
mod options;
#[cfg(feature = "agent")]
mod run;
mod status;
mod ways;

pub use self::machine::{Machine, Task};
pub use self::options::{AgentOptions, Leave};
#[cfg(feature = "agent")]
pub use self::run::{Agent, AgentHandle};
pub use self::status::{AgentStatus, Failure, Held, Phase, Stale};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
