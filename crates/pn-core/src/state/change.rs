//! What a state can be told.

use crate::app::{App, Formation, Hosting};
use crate::container::Slot;
use crate::container_type::ContainerType;
use crate::id::{AppId, ContainerId, NodeId, ProjectId};
use crate::net::PublicKey;
use crate::network::NetworkRequest;
use crate::node::{Availability, Node};
use crate::ports::Ports;
use crate::project::Project;

/// Something that is to be different from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Adds a project, without a private network.
    AddProject(Project),
    /// Removes a project that has neither apps nor a private network.
    RemoveProject(ProjectId),
    /// Gives a project its private network, with a VNI of its own.
    EnablePrivateNetwork(NetworkRequest),
    /// Takes the private network from a project that has no app left; its VNI goes to rest.
    DisablePrivateNetwork(ProjectId),
    /// Adds an app to a project.
    AddApp(App),
    /// Removes an app that has no container left.
    RemoveApp(AppId),
    /// Moves an app that has no container left to another project, and so into its network or out of one.
    MoveApp {
        /// The app.
        app: AppId,
        /// The project it belongs to from now on.
        project: ProjectId,
    },
    /// Says how an app is hosted.
    SetHosting {
        /// The app.
        app: AppId,
        /// How it is hosted.
        hosting: Hosting,
    },
    /// Puts new counts over an app's formation. Containers beyond a smaller count lose their names and drain.
    Scale {
        /// The app.
        app: AppId,
        /// The counts; types it does not name keep theirs.
        formation: Formation,
    },
    /// Takes a type of which no container is left from an app's formation; its names cease to exist.
    Undeclare {
        /// The app.
        app: AppId,
        /// The type.
        container_type: ContainerType,
    },
    /// Says which ports the containers of a declared type listen on, in place of what was said before.
    DeclarePorts {
        /// The app.
        app: AppId,
        /// The type.
        container_type: ContainerType,
        /// The ports; none take the declaration back.
        ports: Ports,
    },
    /// Adds a node.
    AddNode(Node),
    /// Replaces what is known of a node.
    UpdateNode(Node),
    /// Removes a node that runs no container.
    RemoveNode(NodeId),
    /// Says whether a node takes new containers.
    SetAvailability {
        /// The node.
        node: NodeId,
        /// Whether it does.
        availability: Availability,
    },
    /// Announces the key that a node is about to change to; peers get to know it beside the one it has.
    OfferKey {
        /// The node.
        node: NodeId,
        /// Its next public key.
        public_key: PublicKey,
    },
    /// Makes the key that a node offered its key.
    PromoteKey(NodeId),
    /// Starts a container in a slot that no live container fills, and gives it an address. It has no name until it is ready.
    Start {
        /// The new container.
        container: ContainerId,
        /// The slot it fills.
        slot: Slot,
        /// The node it runs on.
        node: NodeId,
    },
    /// Starts the next incarnation of a ready container's slot beside it; when it is ready, it takes over the name.
    Replace {
        /// The new container.
        container: ContainerId,
        /// The ready container it replaces.
        replaces: ContainerId,
        /// The node the new one runs on.
        node: NodeId,
    },
    /// A starting container is ready: it gets the name of its slot, and whoever had it drains.
    Ready(ContainerId),
    /// A live container loses its name and drains. Draining already is success.
    Stop(ContainerId),
    /// A container that has drained long enough is removed: its address goes to rest. An unknown one is success.
    Remove(ContainerId),
    /// A container is gone without warning, whatever it was doing: its name is withdrawn and its address goes to rest. An
    /// unknown one is success.
    Fail(ContainerId),
}
