//! Several nodes in one process, on loopback addresses: for tests, demonstrations and development.

use core::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use pn_core::{
    ApplyError, BackendError, Change, ContainerId, DnsBackend as _, ErrorKind, Generation, Node, NodeId,
    OverlayBackend as _, Region, Report, State, Timestamp,
};
use pn_dns::Names;

use crate::backend::UserspaceBackend;
use crate::port::Port;
use crate::tap::UnderlayTap;

/// One of the nodes.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoopbackNode {
    /// The node.
    pub id: NodeId,
    /// Its data plane.
    pub backend: UserspaceBackend,
    /// The names it answers.
    pub names: Arc<Names>,
}

/// Nodes on 127.0.0.1, 127.0.0.2 and so on, each with a data plane, a socket and names of its own, and the one state that
/// all of them follow.
///
/// ```
/// use pn_backend_userspace::Loopback;
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let mut region = Loopback::start(2, None).await?;
/// // region.change(…)?, as often as there is something to change, and then:
/// region.apply().await?;
/// assert_eq!(region.nodes().len(), 2);
/// # Ok::<(), pn_core::BackendError>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Loopback {
    state: State,
    nodes: Vec<LoopbackNode>,
}

impl Loopback {
    /// Starts nodes that run nothing yet. A tap sees the datagrams of all.
    ///
    /// # Errors
    /// Those of the backend's builder.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub async fn start(nodes: u8, tap: Option<Arc<dyn UnderlayTap>>) -> Result<Self, BackendError> {
        let mut region = Self { state: State::new(Region::default()), nodes: Vec::new() };
        for n in 1..=nodes {
            let id = NodeId::from_u128(n.into());
            let names = Arc::new(Names::new(n.into()));
            let listen = SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), 0));
            let mut builder = UserspaceBackend::builder(id).listen(listen).resolver(names.clone());
            if let Some(tap) = &tap {
                builder = builder.tap(Arc::clone(tap));
            }
            let backend = builder.build().await?;
            let node = Node::new(
                id,
                format!("node-{n}").parse().expect("letters, a hyphen and digits are a label"),
                backend.local_addr(),
                Ipv4Addr::new(100, 64, 0, n).into(),
                backend.public_key(),
            );
            region.change(Change::AddNode(node)).expect("every node has addresses and a key of its own");
            region.nodes.push(LoopbackNode { id, backend, names });
        }
        Ok(region)
    }

    /// Changes the state, as of now. The nodes follow with the next [`apply`](Self::apply).
    ///
    /// # Errors
    /// As [`State::apply`].
    pub fn change(&mut self, change: Change) -> Result<Generation, ApplyError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.state.apply(Timestamp::ZERO.after(now), change)
    }

    /// Makes every node what the state says: names that vanish go first, then the ways change, then new names come, each step
    /// on every node before the next. What fails holds nothing else up.
    ///
    /// # Errors
    /// The first failure, once everything else is done.
    pub async fn apply(&self) -> Result<(), BackendError> {
        let plans: Vec<_> = self.nodes.iter().map(|node| (node, self.state.node_plan(node.id))).collect();
        let mut reports = Vec::new();
        for (node, plan) in &plans {
            let meanwhile = plan.zones_meanwhile(&node.names.published());
            reports.push(node.names.publish(&meanwhile).await);
        }
        for (node, plan) in &plans {
            reports.push(node.backend.apply(plan).await);
        }
        for (node, plan) in &plans {
            reports.push(node.names.publish(&plan.zones()).await);
        }
        reports.into_iter().try_for_each(Report::into_result)
    }

    /// Returns the state.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Returns the nodes in the order of their addresses.
    #[must_use]
    pub fn nodes(&self) -> &[LoopbackNode] {
        &self.nodes
    }

    /// Returns the node that runs a container.
    #[must_use]
    pub fn node_of(&self, container: ContainerId) -> Option<&LoopbackNode> {
        let node = self.state.container(container)?.node;
        self.nodes.iter().find(|running| running.id == node)
    }

    /// Returns the port of a container, wherever it runs.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the state has no such container, or it was not applied yet.
    pub fn port(&self, container: ContainerId) -> Result<Port, BackendError> {
        let unknown = || BackendError::new(ErrorKind::NotFound, "open the port of", format!("unknown {container}"));
        self.node_of(container).ok_or_else(unknown)?.backend.port(container)
    }
}
