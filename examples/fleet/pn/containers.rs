//! Commands about containers and their names.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use pn_core::{ApplyError, Change, ContainerId, Name, NodeId, Slot, State};
use pn_fleet::interface::{self, Progress};
use pn_store::{Applied, Registry, RegistryError, Revision};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::Error;
use crate::cli::{Format, Start};
use crate::lookup::{self, Lookup};
use crate::output;

/// How long an agent may take to make an interface, and nodes to answer a name.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn start(
    registry: &Registry,
    lookup: &Lookup<'_>,
    start: Start,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    if let Some(netns) = &start.netns {
        check_netns(netns)?;
    }
    let node = lookup::node(&lookup.state().await?, &start.node)?.id;
    let container = ContainerId::from_u128(Uuid::new_v4().as_u128());
    let store = &**registry.store();
    // Before the container, so that the plan that has it finds its namespace there.
    if let Some(netns) = &start.netns {
        interface::want(store, node, container, netns).await?;
    }
    let applied = match start_in_a_slot(registry, lookup, &start, node, container).await {
        Ok(applied) => applied,
        Err(error) => {
            interface::forget(store, node, container).await?;
            return Err(error);
        }
    };
    if !start.no_wait {
        wait_until_it_answers(registry, &start, &applied, node, container).await?;
    }
    let started = applied.container(container).ok_or("the container is gone")?;
    let environment = applied.environment(container).into_iter().flatten();
    let environment: Vec<(String, String)> = environment.collect();
    let shown = match format {
        Format::Table => json!(environment.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()),
        Format::Json => {
            Value::Object(Map::from_iter(environment.into_iter().map(|(name, value)| (name, json!(value)))))
        }
    };
    let fields = [
        ("ID", "id", json!(container.to_string())),
        ("Address", "address", json!(started.address.to_string())),
        ("Environment", "environment", shown),
    ];
    Ok(output::object(fields, format, out)?)
}

/// Starts the container in the slot that was asked for, or in the first that is free.
async fn start_in_a_slot(
    registry: &Registry,
    lookup: &Lookup<'_>,
    start: &Start,
    node: NodeId,
    container: ContainerId,
) -> Result<Applied, Error> {
    loop {
        let (state, app) = lookup.app().await?;
        let index = match start.index {
            Some(index) => index,
            None => free_index(&state, &app, start)?,
        };
        let slot = Slot::new(app.id, start.container_type, index)?;
        match registry.apply(Change::Start { container, slot, node }).await {
            // Somebody else was faster: there may be another slot.
            Err(RegistryError::Refused(ApplyError::SlotTaken { .. })) if start.index.is_none() => (),
            result => return Ok(result?),
        }
    }
}

/// Makes the container ready, by its agent where it is to have an interface first, and waits until its name is answered on
/// every node of its network.
async fn wait_until_it_answers(
    registry: &Registry,
    start: &Start,
    applied: &Applied,
    node: NodeId,
    container: ContainerId,
) -> Result<(), Error> {
    let network = applied.network_of_container(container).ok_or("the container is in no private network")?;
    if start.netns.is_none() {
        let applied = registry.apply(Change::Ready(container)).await?;
        return Ok(registry.synced(applied.revision(), network, PATIENCE).await?);
    }
    match interface::settled(&**registry.store(), node, container, PATIENCE).await? {
        Some(Progress::Ready { revision }) => Ok(registry.synced(Revision::new(revision), network, PATIENCE).await?),
        Some(Progress::Failed(why)) => {
            registry.apply(Change::Fail(container)).await?;
            interface::forget(&**registry.store(), node, container).await?;
            Err(format!("node {} cannot give {container} an interface: {why}", start.node).into())
        }
        Some(Progress::Wanted) | None => {
            let why = match what_fails(registry, applied, node, container).await? {
                Some(why) => format!("it says {why}"),
                None => "is its agent running?".to_owned(),
            };
            Err(format!(
                "node {} did not give {container} an interface within {} s: {why} The container stays started; `pn stop \
                 {container}` removes it",
                start.node,
                PATIENCE.as_secs()
            )
            .into())
        }
    }
}

/// Returns what the node says of the container, if something of it fails there.
async fn what_fails(
    registry: &Registry,
    applied: &Applied,
    node: NodeId,
    container: ContainerId,
) -> Result<Option<String>, Error> {
    let address = applied.container(container).map(|container| container.address.to_string());
    let id = container.to_string();
    let is_about_it = |failure: &&String| {
        let mut words = failure.split([' ', ':']);
        words.any(|word| word == id || Some(word) == address.as_deref())
    };
    let status = registry.statuses().await?.remove(&node).and_then(|reported| reported.status);
    let failures = status.map(|status| status.failures).unwrap_or_default();
    Ok(failures.iter().find(is_about_it).map(|failure| format!("{failure:?}.")))
}

/// Refuses a path that is no network namespace.
fn check_netns(path: &Path) -> Result<(), Error> {
    let found =
        rustix::fs::statfs(path).map_err(|error| format!("no network namespace at {}: {error}", path.display()))?;
    // NSFS_MAGIC of the kernel's linux/magic.h.
    if found.f_type != 0x6e73_6673 {
        return Err(
            format!("{} is not a network namespace: give a path such as /run/netns/NAME", path.display()).into()
        );
    }
    Ok(())
}

/// Finds the smallest number of a type that no live container has.
fn free_index(state: &State, app: &pn_core::App, start: &Start) -> Result<u32, Error> {
    let Some((container_type, count)) = app.formation.declared(&start.container_type) else {
        return Err(format!(
            "app {} has no type {}: `pn scale {}:1` declares it",
            app.label, start.container_type, start.container_type
        )
        .into());
    };
    let network = state.network_of(app.project).map(|network| network.id);
    let is_of_type = |slot: &Slot| slot.app() == app.id && slot.container_type() == *container_type;
    let taken: std::collections::BTreeSet<u32> = network
        .into_iter()
        .flat_map(|network| state.containers(network))
        .filter(|container| container.is_live() && is_of_type(&container.slot))
        .map(|container| container.slot.index())
        .collect();
    (1..=count).find(|index| !taken.contains(index)).ok_or_else(|| {
        format!("all {count} containers of type {container_type} of app {} are started: scale it up", app.label).into()
    })
}

pub(crate) async fn ready(registry: &Registry, container: ContainerId) -> Result<(), Error> {
    let applied = registry.apply(Change::Ready(container)).await?;
    if let Some(network) = applied.network_of_container(container) {
        registry.synced(applied.revision(), network, PATIENCE).await?;
    }
    Ok(())
}

pub(crate) async fn stop(registry: &Registry, container: ContainerId) -> Result<(), Error> {
    registry.apply(Change::Stop(container)).await?;
    Ok(())
}

pub(crate) async fn fail(registry: &Registry, container: ContainerId) -> Result<(), Error> {
    // Its name goes first: what vanishes with its name looks like an accident to agents, which then ask.
    let stopped = registry.apply(Change::Stop(container)).await?;
    if let Some(network) = stopped.network_of_container(container) {
        let withdrawn = registry.synced(stopped.revision(), network, PATIENCE).await;
        withdrawn.or_else(|error| if error.is_retryable() { Ok(()) } else { Err(error) })?;
    }
    registry.apply(Change::Fail(container)).await?;
    Ok(())
}

pub(crate) async fn resolve(
    registry: &Registry,
    name: Name,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let no_such_name = || format!("there is no name {name}");
    let project = registry.project_of_app(name.app_id()).await.map_err(|_| no_such_name())?;
    let plan = registry.project(project).await?.plan();
    let network = plan.networks.get(&name.network()).ok_or_else(no_such_name)?;
    let names = network.zone.names_of(name.app_id());
    let (_, addresses) = names.into_iter().find(|(known, _)| *known == name).ok_or_else(no_such_name)?;
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    match format {
        Format::Table => addresses.iter().try_for_each(|address| writeln!(out, "{address}"))?,
        Format::Json => writeln!(out, "{}", json!(addresses))?,
    }
    Ok(())
}
