//! Projects: what a private network belongs to.

use crate::id::ProjectId;
use crate::label::Label;

/// A group of apps, which may have one private network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Identifies it.
    pub id: ProjectId,
    /// What people call it.
    pub label: Label,
}

impl Project {
    /// Makes a project.
    #[must_use]
    pub const fn new(id: ProjectId, label: Label) -> Self {
        Self { id, label }
    }
}
