//! What carries packets, behind what the agent needs of it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pn_backend_userspace::{TunPort, UserspaceBackend};
use pn_core::{BackendError, ContainerId, NodeId, OverlayBackend, Resolver};
use pn_overlay::PrivateKey;

use crate::{Backend, Error};

/// The node's data plane.
#[derive(Debug, Clone)]
pub(crate) enum DataPlane {
    /// In this process.
    Userspace(UserspaceBackend),
}

impl DataPlane {
    pub(crate) async fn build(
        backend: Backend,
        node: NodeId,
        underlay: SocketAddr,
        key: PrivateKey,
        resolver: Arc<dyn Resolver>,
        upstreams: &[SocketAddr],
    ) -> Result<Self, Error> {
        if !upstreams.is_empty() {
            return Err("--dns-upstream is not there yet".into());
        }
        match backend {
            Backend::Userspace => {
                let builder = UserspaceBackend::builder(node).listen(underlay).private_key(key).resolver(resolver);
                Ok(Self::Userspace(builder.build().await?))
            }
            Backend::Linux => Err("--backend linux is not there yet".into()),
        }
    }

    pub(crate) fn overlay(&self) -> Arc<dyn OverlayBackend> {
        match self {
            Self::Userspace(backend) => Arc::new(backend.clone()),
        }
    }

    /// Gives a container an interface in a network namespace.
    pub(crate) async fn attach(&self, container: ContainerId, netns: &Path) -> Result<(), BackendError> {
        match self {
            Self::Userspace(backend) => backend.attach(container, TunPort::in_netns(netns)).await,
        }
    }

    /// Says how packets are protected.
    pub(crate) const fn encryption(&self) -> &'static str {
        match self {
            Self::Userspace(_) => "WireGuard in this process (boringtun)",
        }
    }

    /// Returns how many packets were dropped, by reason.
    pub(crate) fn dropped(&self) -> impl Iterator<Item = (String, u64)> {
        let drops = match self {
            Self::Userspace(backend) => backend.drops(),
        };
        drops.iter().map(|(reason, count)| (reason.to_string(), count)).collect::<Vec<_>>().into_iter()
    }
}
