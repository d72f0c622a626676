//! Commands about projects.

use std::io::Write;

use pn_core::{Change, Label, NetworkRequest, Project, ProjectId, Terms};
use pn_store::{Clock as _, Registry, SystemClock};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Error;
use crate::cli::{Enable, Format};
use crate::lookup::{self, Lookup};
use crate::output::{self, List};

pub(crate) async fn list(lookup: &Lookup<'_>, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let state = lookup.state().await?;
    let columns = [("Name", "name"), ("ID", "id"), ("Private network", "private_network_id"), ("Apps", "apps")];
    let rows = state.projects().map(|project| {
        let network = state.network_of(project.id).map(|network| network.id.to_string());
        [json!(project.label.as_str()), id(project), json!(network), json!(state.apps_of(project.id).count())]
    });
    Ok(List::new(columns, rows).print(format, out)?)
}

pub(crate) async fn add(
    registry: &Registry,
    lookup: &Lookup<'_>,
    name: Label,
    out: &mut impl Write,
) -> Result<(), Error> {
    let state = lookup.state().await?;
    lookup::refuse_taken("a project", name.as_str(), state.projects(), |project| project.label == name)?;
    let project = Project::new(ProjectId::from_u128(Uuid::new_v4().as_u128()), name);
    let id = project.id;
    registry.apply(Change::AddProject(project)).await?;
    Ok(writeln!(out, "{id}")?)
}

pub(crate) async fn details(
    lookup: &Lookup<'_>,
    name: &str,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let state = lookup.state().await?;
    let project = lookup::project(&state, name)?;
    let network = state.network_of(project.id);
    let used: Vec<String> = network
        .map(|network| state.containers(network.id).map(|container| container.address.to_string()).collect())
        .unwrap_or_default();
    let of = |value: fn(&pn_core::Network) -> Value| network.map_or(Value::Null, value);
    let fields = [
        ("Name", "name", json!(project.label.as_str())),
        ("ID", "id", id(project)),
        ("Network ID", "network_id", of(|network| json!(network.id.to_string()))),
        ("Subnet", "subnet", of(|network| json!(network.subnet.to_string()))),
        // Nothing leads out of a private network.
        ("Gateway", "gateway", Value::Null),
        ("Max IPs", "max_ips", of(|network| json!(network.subnet.capacity()))),
        ("Used IP count", "used_ips_count", json!(used.len())),
        ("Used IPs", "used_ips", json!(used)),
    ];
    Ok(output::object(fields, format, out)?)
}

pub(crate) async fn enable(
    registry: &Registry,
    lookup: &Lookup<'_>,
    enable: Enable,
    out: &mut impl Write,
) -> Result<(), Error> {
    let project = lookup::project(&lookup.state().await?, &enable.name)?.id;
    let network = pn_core::NetworkId::from_u128(Uuid::new_v4().as_u128());
    let families = enable.families();
    let terms =
        Terms { accepted_by: enable.accept_terms, version: enable.terms_version, accepted_at: SystemClock.now() };
    let mut request = NetworkRequest::new(project, network, terms);
    (request.subnet, request.families) = (enable.subnet, families);
    registry.apply(Change::EnablePrivateNetwork(request)).await?;
    Ok(writeln!(out, "{network}")?)
}

pub(crate) async fn disable(registry: &Registry, lookup: &Lookup<'_>, name: &str) -> Result<(), Error> {
    let project = lookup::project(&lookup.state().await?, name)?.id;
    registry.apply(Change::DisablePrivateNetwork(project)).await?;
    Ok(())
}

pub(crate) async fn remove(registry: &Registry, lookup: &Lookup<'_>, name: &str) -> Result<(), Error> {
    let project = lookup::project(&lookup.state().await?, name)?.id;
    registry.apply(Change::RemoveProject(project)).await?;
    Ok(())
}

fn id(project: &Project) -> Value {
    json!(project.id.to_string())
}
