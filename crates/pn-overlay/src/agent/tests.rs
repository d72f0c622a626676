//! The laws of agents, with random lives and with stories.

mod laws;
mod sim;
mod stories;
