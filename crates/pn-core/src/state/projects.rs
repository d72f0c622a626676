//! Changes of projects, their private networks and their apps.

use std::collections::{BTreeMap, BTreeSet};

use super::network::NetworkState;
use super::{ApplyError, ProjectState, State};
use crate::alloc::Exhausted;
use crate::app::{App, Formation, Hosting};
use crate::container_type::{ContainerType, Exposure};
use crate::id::{AppId, NetworkId, ProjectId};
use crate::net::Vni;
use crate::network::{Families, Ipv6Prefix, Network, NetworkRequest};
use crate::policy::Requirement;
use crate::ports::Ports;
use crate::project::Project;
use crate::time::Timestamp;

impl State {
    pub(super) fn add_project(&mut self, project: Project) -> Result<(), ApplyError> {
        if self.projects.contains_key(&project.id) {
            return Err(ApplyError::ProjectExists { project: project.id });
        }
        let state = ProjectState { network: None, apps: BTreeSet::new(), project };
        self.projects.insert(state.project.id, state);
        Ok(())
    }

    pub(super) fn remove_project(&mut self, id: ProjectId) -> Result<(), ApplyError> {
        let state = self.projects.get(&id).ok_or(ApplyError::UnknownProject { project: id })?;
        state.refuse_apps()?;
        if let Some(network) = state.network {
            return Err(ApplyError::PrivateNetworkEnabled { project: id, network });
        }
        self.projects.remove(&id);
        Ok(())
    }

    pub(super) fn enable_private_network(&mut self, now: Timestamp, request: NetworkRequest) -> Result<(), ApplyError> {
        let NetworkRequest { project, network, terms, subnet, families, encryption, key_scope } = request;
        let state = self.projects.get_mut(&project).ok_or(ApplyError::UnknownProject { project })?;
        if let Some(network) = state.network {
            return Err(ApplyError::PrivateNetworkEnabled { project, network });
        }
        if self.networks.contains_key(&network) {
            return Err(ApplyError::NetworkExists { network });
        }
        if let Some(until) = self.vnis.rests_until(&network, now) {
            return Err(ApplyError::NetworkResting { network, until });
        }
        if self.policy.terms == Requirement::Required && terms.is_none() {
            return Err(ApplyError::TermsNotAccepted { project });
        }
        if self.policy.empty_project == Requirement::Required {
            state.refuse_apps()?;
        }
        if self.policy.ordinary_hosting == Requirement::Required {
            state.apps.iter().try_for_each(|app| refuse_health_data(*app, self.apps[app].hosting))?;
        }
        let (subnet, resolver) = (subnet.unwrap_or(self.policy.subnet), self.policy.resolver);
        if resolver.is_unspecified() || resolver.is_multicast() || resolver.is_broadcast() || subnet.contains(resolver)
        {
            return Err(ApplyError::Resolver { network, subnet, resolver });
        }
        let vni = self.vnis.take(&network, now).map_err(|exhausted| match exhausted {
            Exhausted::InUse => ApplyError::VnisInUse { network, count: self.policy.last_vni.get() },
            Exhausted::Resting { until } => ApplyError::VnisResting { network, until },
        })?;
        let vni = Vni::new(vni).expect("the pool's numbers are VNIs");
        let ipv6 = match families {
            Families::Ipv4 => None,
            Families::DualStack => Some(Ipv6Prefix::of_network(network)),
        };
        state.network = Some(network);
        let record = Network { id: network, project, vni, subnet, ipv6, encryption, key_scope, terms };
        let state = NetworkState::new(record, &self.policy);
        self.networks.insert(network, Box::new(state));
        self.networks_by_vni.insert(vni, network);
        self.touch(network);
        Ok(())
    }

    pub(super) fn disable_private_network(&mut self, now: Timestamp, project: ProjectId) -> Result<(), ApplyError> {
        let state = self.projects.get_mut(&project).ok_or(ApplyError::UnknownProject { project })?;
        state.refuse_apps()?;
        let network = state.network.take().ok_or(ApplyError::NoPrivateNetwork { project })?;
        let removed = self.networks.remove(&network).expect("a project's network exists");
        self.networks_by_vni.remove(&removed.network.vni);
        self.vnis.release(removed.network.vni.get(), network, now);
        self.touch(network);
        Ok(())
    }

    pub(super) fn add_app(&mut self, mut app: App) -> Result<(), ApplyError> {
        let (id, project) = (app.id, app.project);
        if self.apps.contains_key(&id) {
            return Err(ApplyError::AppExists { app: id });
        }
        self.check_types(id, &app.formation)?;
        app.ports = declared_ports(&app)?;
        self.admit(project, id, app.hosting)?;
        let state = self.projects.get_mut(&project).expect("it admitted the app");
        state.apps.insert(id);
        let network = state.network;
        self.apps.insert(id, app);
        network.into_iter().for_each(|network| self.touch_names(network, id));
        Ok(())
    }

    pub(super) fn remove_app(&mut self, id: AppId) -> Result<(), ApplyError> {
        let network = self.refuse_containers(id)?;
        let app = self.apps.remove(&id).expect("it is known");
        self.projects.get_mut(&app.project).expect("an app's project exists").apps.remove(&id);
        network.into_iter().for_each(|network| self.touch_names(network, id));
        Ok(())
    }

    pub(super) fn move_app(&mut self, id: AppId, project: ProjectId) -> Result<(), ApplyError> {
        let from = self.refuse_containers(id)?;
        self.admit(project, id, self.apps[&id].hosting)?;
        let app = self.apps.get_mut(&id).expect("it is known");
        let left = core::mem::replace(&mut app.project, project);
        self.projects.get_mut(&left).expect("an app's project exists").apps.remove(&id);
        let state = self.projects.get_mut(&project).expect("it admitted the app");
        state.apps.insert(id);
        let to = state.network;
        from.into_iter().chain(to).for_each(|network| self.touch_names(network, id));
        Ok(())
    }

    pub(super) fn set_hosting(&mut self, id: AppId, hosting: Hosting) -> Result<(), ApplyError> {
        let project = self.apps.get(&id).ok_or(ApplyError::UnknownApp { app: id })?.project;
        self.admit(project, id, hosting)?;
        self.apps.get_mut(&id).expect("it is known").hosting = hosting;
        Ok(())
    }

    pub(super) fn scale(&mut self, now: Timestamp, id: AppId, formation: &Formation) -> Result<(), ApplyError> {
        let app = self.apps.get(&id).ok_or(ApplyError::UnknownApp { app: id })?;
        let scaled = app.formation.scaled(formation);
        let scaled = scaled.map_err(|source| ApplyError::Formation { app: id, source })?;
        self.check_types(id, formation)?;
        let project = app.project;
        self.apps.get_mut(&id).expect("it is known").formation = scaled;
        let Some(network) = self.projects[&project].network else {
            return Ok(());
        };
        let state = self.networks.get_mut(&network).expect("a project's network exists");
        for (container_type, count) in formation.types() {
            state.drain_beyond(&(id, *container_type), count, now);
        }
        self.touch_names(network, id);
        Ok(())
    }

    pub(super) fn undeclare(&mut self, id: AppId, container_type: &ContainerType) -> Result<(), ApplyError> {
        let app = self.apps.get(&id).ok_or(ApplyError::UnknownApp { app: id })?;
        let network = self.projects[&app.project].network;
        let key = (id, *container_type);
        if app.formation.count(container_type).is_none() {
            return Err(ApplyError::UndeclaredType { app: id, container_type: *container_type });
        }
        let members = network.into_iter().flat_map(|network| self.networks[&network].members());
        let count = members.filter(|member| *member.of == key).count();
        if count > 0 {
            return Err(ApplyError::TypeHasContainers { app: id, container_type: *container_type, count });
        }
        let app = self.apps.get_mut(&id).expect("it is known");
        app.formation.undeclare(container_type);
        app.ports.remove(container_type);
        network.into_iter().for_each(|network| self.touch_names(network, id));
        Ok(())
    }

    pub(super) fn declare_ports(
        &mut self,
        id: AppId,
        container_type: &ContainerType,
        ports: Ports,
    ) -> Result<(), ApplyError> {
        let app = self.apps.get_mut(&id).ok_or(ApplyError::UnknownApp { app: id })?;
        let Some((declared, _)) = app.formation.declared(container_type) else {
            return Err(ApplyError::UndeclaredType { app: id, container_type: *container_type });
        };
        let declared = *declared;
        app.ports.remove(&declared);
        if !ports.is_empty() {
            app.ports.insert(declared, ports);
        }
        let network = self.projects[&app.project].network;
        network.into_iter().for_each(|network| self.touch_names(network, id));
        Ok(())
    }

    /// Refuses an app that may not be in a project.
    fn admit(&self, project: ProjectId, app: AppId, hosting: Hosting) -> Result<(), ApplyError> {
        let state = self.projects.get(&project).ok_or(ApplyError::UnknownProject { project })?;
        if state.network.is_some() && self.policy.ordinary_hosting == Requirement::Required {
            refuse_health_data(app, hosting)?;
        }
        Ok(())
    }

    /// Refuses types that the region does not take.
    fn check_types(&self, app: AppId, formation: &Formation) -> Result<(), ApplyError> {
        for (container_type, _) in formation.types() {
            let container_type = *container_type;
            if container_type.exposure() == Exposure::Reserved {
                return Err(ApplyError::ReservedType { app, container_type });
            }
            if !self.policy.types.takes(&container_type) {
                return Err(ApplyError::TypeProfile { app, container_type });
            }
        }
        Ok(())
    }

    /// Refuses an app that has containers, and returns the network it is in.
    fn refuse_containers(&self, id: AppId) -> Result<Option<NetworkId>, ApplyError> {
        let app = self.apps.get(&id).ok_or(ApplyError::UnknownApp { app: id })?;
        let network = self.projects[&app.project].network;
        let members = network.into_iter().flat_map(|network| self.networks[&network].members());
        match members.filter(|member| member.of.0 == id).count() {
            0 => Ok(network),
            count => Err(ApplyError::AppHasContainers { app: id, count }),
        }
    }
}

/// Returns the ports of an app's declared types, as those spell themselves; refuses those of others.
fn declared_ports(app: &App) -> Result<BTreeMap<ContainerType, Ports>, ApplyError> {
    let declared = |(container_type, ports): (&ContainerType, &Ports)| match app.formation.declared(container_type) {
        Some((declared, _)) => Ok((*declared, ports.clone())),
        None => Err(ApplyError::UndeclaredType { app: app.id, container_type: *container_type }),
    };
    let ports: Result<BTreeMap<_, _>, _> = app.ports.iter().map(declared).collect();
    ports.map(|mut ports| {
        ports.retain(|_, ports| !ports.is_empty());
        ports
    })
}

impl ProjectState {
    fn refuse_apps(&self) -> Result<(), ApplyError> {
        match self.apps.len() {
            0 => Ok(()),
            count => Err(ApplyError::ProjectHasApps { project: self.project.id, count }),
        }
    }
}

const fn refuse_health_data(app: AppId, hosting: Hosting) -> Result<(), ApplyError> {
    match hosting {
        Hosting::Ordinary => Ok(()),
        Hosting::HealthData => Err(ApplyError::HealthData { app }),
    }
}
