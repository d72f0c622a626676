//! Slots and the containers that fill them.

use core::fmt;
use core::net::Ipv4Addr;

use crate::container_type::ContainerType;
use crate::id::{AppId, ContainerId, NodeId};
use crate::time::Timestamp;

/// Why a slot cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Slots are numbered from 1.
    #[error("a slot of {container_type} has number 0: slots are numbered from 1")]
    Zero {
        /// The type of the slot.
        container_type: ContainerType,
    },
}

/// A place in an app's formation, the *N* of its type, that one container at a time fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    app: AppId,
    container_type: ContainerType,
    index: u32,
}

impl Slot {
    /// Makes a slot.
    ///
    /// # Errors
    /// [`SlotError::Zero`].
    pub const fn new(app: AppId, container_type: ContainerType, index: u32) -> Result<Self, SlotError> {
        if index == 0 {
            return Err(SlotError::Zero { container_type });
        }
        Ok(Self { app, container_type, index })
    }

    /// Returns the app.
    #[must_use]
    pub const fn app(&self) -> AppId {
        self.app
    }

    /// Returns the container type.
    #[must_use]
    pub const fn container_type(&self) -> ContainerType {
        self.container_type
    }

    /// Returns the number, from 1.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.index, self.container_type, self.app)
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It has its address and no name yet.
    Starting,
    /// It has its address and its name.
    Ready,
    /// It has lost its name and keeps its address until it is removed.
    Draining {
        /// When its name was withdrawn.
        since: Timestamp,
    },
}

/// One incarnation of a slot, on a node, with an address of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Container {
    /// Identifies it.
    pub id: ContainerId,
    /// The slot it fills.
    pub slot: Slot,
    /// The node it runs on.
    pub node: NodeId,
    /// Its address in the network, recorded when it was started.
    pub address: Ipv4Addr,
    /// Where it is in its life.
    pub phase: Phase,
}

impl Container {
    /// Makes the record of a container, as it was decided elsewhere.
    #[must_use]
    pub const fn new(id: ContainerId, slot: Slot, node: NodeId, address: Ipv4Addr, phase: Phase) -> Self {
        Self { id, slot, node, address, phase }
    }

    /// Returns whether it fills its slot: it is starting or ready, not draining.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Draining { .. })
    }
}
