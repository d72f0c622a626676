//! What a node is to be, and what it is, for people to compare.

use core::time::Duration;

use pn_core::{NodeId, NodePlan, Phase, Record, State, Timestamp};
use tokio::time::{Instant, sleep};

use crate::{Registry, RegistryError, layout};

impl Registry {
    /// Plans a node as its agent does: containers of dead nodes have no names.
    ///
    /// It reads the whole state. A node that is not known has the empty plan.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn node_plan(&self, node: NodeId) -> Result<NodePlan, RegistryError> {
        let (revision, entries) = self.list(&layout::state()).await?;
        let alive = layout::alive_among(&entries);
        let mut records = crate::registry::records(&entries)?;
        for record in &mut records {
            if let Record::Container(container) = record
                && container.is_live()
                && container.node != node
                && !alive.contains(&container.node)
            {
                container.phase = Phase::Draining { since: Timestamp::ZERO };
            }
        }
        let generation = self.generation(revision, &entries)?;
        Ok(State::load(self.region().clone(), generation, records)?.node_plan(node))
    }

    /// Asks a node's agent for the plan that it has applied, whole. `None` where it does not answer in time: then nobody knows.
    ///
    /// It is what the agent has in everything that [`NodePlan::changes_since`] compares.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn applied_plan(&self, node: NodeId, patience: Duration) -> Result<Option<NodePlan>, RegistryError> {
        const POLL: Duration = Duration::from_millis(50);
        let asked = self.ask(layout::recall_of(node)).await?;
        let until = Instant::now() + patience;
        loop {
            if let Some(answer) = self.answer(node, asked).await? {
                let state = State::load(self.region().clone(), answer.generation, answer.records)?;
                return Ok(Some(state.node_plan(node)));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }
}
