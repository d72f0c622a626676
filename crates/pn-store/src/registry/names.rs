//! What a change names.

use std::collections::BTreeSet;

use pn_core::{Change, NetworkId, NodeId, ProjectId};

use crate::{Key, layout};

/// The keys that say where to look for what a change names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Projects that it names itself.
    pub(super) projects: BTreeSet<ProjectId>,
    /// Keys that lead to projects.
    pub(super) locators: Vec<Key>,
    pub(super) nodes: BTreeSet<NodeId>,
    /// Claims of nodes, by which others are found.
    pub(super) claims: Vec<Key>,
    pub(super) network: Option<NetworkId>,
    pub(super) takes_vni: bool,
    pub(super) gives_vni: bool,
    pub(super) places: Option<NodeId>,
    /// A node of which every network has to be known.
    pub(super) everywhere: Option<NodeId>,
}

impl Names {
    pub(super) fn of(change: &Change) -> Self {
        let mut names = Self::default();
        match change {
            Change::AddProject(project) => drop(names.projects.insert(project.id)),
            Change::RemoveProject(project) => drop(names.projects.insert(*project)),
            Change::EnablePrivateNetwork(request) => {
                names.projects.insert(request.project);
                names.locators.push(layout::network(request.network));
                (names.network, names.takes_vni) = (Some(request.network), true);
            }
            Change::DisablePrivateNetwork(project) => {
                names.projects.insert(*project);
                names.gives_vni = true;
            }
            Change::AddApp(app) => {
                names.projects.insert(app.project);
                names.locators.push(layout::app(app.id));
            }
            Change::RemoveApp(app)
            | Change::SetHosting { app, .. }
            | Change::Scale { app, .. }
            | Change::DeclarePorts { app, .. }
            | Change::Undeclare { app, .. } => names.locators.push(layout::app(*app)),
            Change::MoveApp { app, project } => {
                names.projects.insert(*project);
                names.locators.push(layout::app(*app));
            }
            Change::AddNode(node) | Change::UpdateNode(node) => {
                names.nodes.insert(node.id);
                names.claims = layout::claims(node);
            }
            Change::RemoveNode(node) => {
                names.nodes.insert(*node);
                names.everywhere = Some(*node);
            }
            Change::SetAvailability { node, .. } | Change::PromoteKey(node) => drop(names.nodes.insert(*node)),
            Change::OfferKey { node, public_key } => {
                names.nodes.insert(*node);
                names.claims = vec![layout::public_key(public_key)];
            }
            Change::Start { container, slot, node } => {
                names.locators.extend([layout::app(slot.app()), layout::container(*container)]);
                names.nodes.insert(*node);
                names.places = Some(*node);
            }
            Change::Replace { container, replaces, node } => {
                names.locators.extend([layout::container(*replaces), layout::container(*container)]);
                names.nodes.insert(*node);
                names.places = Some(*node);
            }
            Change::Ready(container)
            | Change::Stop(container)
            | Change::Remove(container)
            | Change::Fail(container) => {
                names.locators.push(layout::container(*container));
            }
            // A change that is newer than this: the state refuses what it does not find.
            _ => (),
        }
        names
    }
}
