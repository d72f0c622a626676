//! What carries packets, behind what the agent needs of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pn_backend_linux::{LinuxBackend, TunnelKind};
use pn_backend_userspace::{TunPort, UserspaceBackend};
use pn_core::{BackendError, ContainerId, NodeId, OverlayBackend};
use pn_dns::{Forwarder, Names};
use pn_overlay::PrivateKey;

use crate::{Backend, Error};

/// The node's data plane.
#[derive(Debug, Clone)]
pub(crate) enum DataPlane {
    /// In this process.
    Userspace(UserspaceBackend),
    /// In the kernel.
    Linux(LinuxBackend),
}

impl DataPlane {
    pub(crate) async fn build(
        backend: Backend,
        node: NodeId,
        underlay: SocketAddr,
        key: PrivateKey,
        names: Arc<Names>,
        upstreams: &[SocketAddr],
    ) -> Result<Self, Error> {
        let forwarder = match upstreams {
            [] => None,
            upstreams => Some(Arc::new(Forwarder::new(upstreams.iter().copied())?)),
        };
        match backend {
            Backend::Userspace => {
                let mut builder = UserspaceBackend::builder(node).listen(underlay).private_key(key).resolver(names);
                if let Some(forwarder) = forwarder {
                    builder = builder.other_names(forwarder);
                }
                Ok(Self::Userspace(builder.build().await?))
            }
            Backend::Linux => {
                let mut builder = LinuxBackend::builder(node).listen(underlay).private_key(key).resolver(names);
                if let Some(forwarder) = forwarder {
                    builder = builder.other_names(forwarder);
                }
                Ok(Self::Linux(builder.build().await?))
            }
        }
    }

    pub(crate) fn overlay(&self) -> Arc<dyn OverlayBackend> {
        match self {
            Self::Userspace(backend) => Arc::new(backend.clone()),
            Self::Linux(backend) => Arc::new(backend.clone()),
        }
    }

    /// Gives a container an interface in a network namespace.
    pub(crate) async fn attach(&self, container: ContainerId, netns: &Path) -> Result<(), BackendError> {
        match self {
            Self::Userspace(backend) => backend.attach(container, TunPort::in_netns(netns)).await,
            Self::Linux(backend) => backend.attach(container, netns).await,
        }
    }

    /// Lets go of the network namespace of a container that is gone.
    pub(crate) async fn detach(&self, container: ContainerId) -> Result<(), BackendError> {
        match self {
            Self::Userspace(backend) => backend.detach(container).await.map(drop),
            Self::Linux(backend) => backend.detach(container).await,
        }
    }

    /// Lists the containers that have interfaces, or whose network namespaces are kept, by an earlier agent too.
    pub(crate) async fn attached(&self) -> Result<BTreeSet<ContainerId>, BackendError> {
        match self {
            Self::Userspace(backend) => backend.attached().await,
            Self::Linux(backend) => backend.attached().await,
        }
    }

    /// Lets go of every container's network namespace.
    pub(crate) async fn detach_all(&self) -> Result<(), BackendError> {
        for container in self.attached().await? {
            self.detach(container).await?;
        }
        Ok(())
    }

    /// Says how packets are protected.
    pub(crate) const fn encryption(&self) -> &'static str {
        match self {
            Self::Userspace(_) => "WireGuard in this process",
            Self::Linux(backend) => encryption_by(backend.tunnel()),
        }
    }

    /// Says how much fits on the node, where something limits it (N9).
    pub(crate) fn limits(&self) -> BTreeMap<String, u64> {
        let limits = match self {
            Self::Userspace(_) => return BTreeMap::new(),
            Self::Linux(backend) => backend.limits(),
        };
        let named = [("containers_of_a_network", limits.bridge_ports), ("neighbours", limits.neighbours)];
        named.map(|(name, limit)| (name.to_owned(), limit as u64)).into()
    }

    /// Returns how many packets were dropped, by reason.
    pub(crate) async fn dropped(&self) -> BTreeMap<String, u64> {
        let drops = match self {
            Self::Userspace(backend) => backend.drops(),
            Self::Linux(backend) => backend.drops(),
        };
        let mut counts: BTreeMap<String, u64> =
            drops.iter().map(|(reason, count)| (reason.to_string(), count)).collect();
        if let Self::Linux(backend) = self
            && let Ok(status) = backend.status().await
        {
            for (reason, count) in status.drops {
                *counts.entry(reason).or_default() += count;
            }
        }
        counts.retain(|_, count| *count > 0);
        counts
    }
}

/// Says who encrypts for the kernel.
const fn encryption_by(tunnel: TunnelKind) -> &'static str {
    match tunnel {
        TunnelKind::Kernel => "WireGuard in the kernel",
        TunnelKind::UserSpace => "WireGuard in this process, behind the kernel's VXLAN",
        TunnelKind::UserSpaceBridged => "WireGuard and VXLAN in this process, behind bridges",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_encrypts_is_told_apart() {
        let kinds = [TunnelKind::Kernel, TunnelKind::UserSpace, TunnelKind::UserSpaceBridged];
        assert_eq!(
            kinds.map(encryption_by),
            [
                "WireGuard in the kernel",
                "WireGuard in this process, behind the kernel's VXLAN",
                "WireGuard and VXLAN in this process, behind bridges"
            ]
        );
    }
}
