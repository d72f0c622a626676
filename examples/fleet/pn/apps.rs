//! Commands about apps.

use std::io::Write;

use pn_core::{App, AppId, Change, ContainerType, Formation, Hosting, Label, NameScope, PageRequest, Phase};
use pn_store::Registry;
use serde_json::json;
use uuid::Uuid;

use crate::Error;
use crate::cli::Format;
use crate::lookup::{self, Lookup};
use crate::output::{self, List};

pub(crate) async fn list(lookup: &Lookup<'_>, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let state = lookup.state().await?;
    let columns =
        [("Name", "name"), ("ID", "id"), ("Project", "project"), ("Formation", "formation"), ("Hosting", "hosting")];
    let rows = state.apps().map(|app| {
        let hosting = match app.hosting {
            Hosting::Ordinary => "ordinary",
            Hosting::HealthData => "hds",
        };
        let project = lookup::project_label(&state, app.project);
        [app.label.as_str(), &app.id.to_string(), &project, &app.formation.to_string(), hosting].map(|text| json!(text))
    });
    Ok(List::new(columns, rows).print(format, out)?)
}

pub(crate) async fn create(
    registry: &Registry,
    lookup: &Lookup<'_>,
    name: Label,
    project: &str,
    hds: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let state = lookup.state().await?;
    let project = lookup::project(&state, project)?.id;
    lookup::refuse_taken("an app", name.as_str(), state.apps(), |app| app.label == name)?;
    let id = AppId::from_u128(Uuid::new_v4().as_u128());
    let hosting = if hds { Hosting::HealthData } else { Hosting::Ordinary };
    registry.apply(Change::AddApp(App { hosting, ..App::new(id, project, name) })).await?;
    Ok(writeln!(out, "{id}")?)
}

pub(crate) async fn destroy(registry: &Registry, lookup: &Lookup<'_>) -> Result<(), Error> {
    let (_, app) = lookup.app().await?;
    registry.apply(Change::RemoveApp(app.id)).await?;
    Ok(())
}

pub(crate) async fn migrate(registry: &Registry, lookup: &Lookup<'_>, project: &str) -> Result<(), Error> {
    let project = lookup::project(&lookup.state().await?, project)?.id;
    let (_, app) = lookup.app().await?;
    registry.apply(Change::MoveApp { app: app.id, project }).await?;
    Ok(())
}

pub(crate) async fn scale(
    registry: &Registry,
    lookup: &Lookup<'_>,
    formation: &[Formation],
    out: &mut impl Write,
) -> Result<(), Error> {
    // Together, so that a type that is given twice is noticed.
    let given = formation.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let (_, app) = lookup.app().await?;
    let formation: Formation = given.parse()?;
    let scaled = app.formation.scaled(&formation)?;
    registry.apply(Change::Scale { app: app.id, formation }).await?;
    Ok(writeln!(out, "{scaled}")?)
}

pub(crate) async fn containers(lookup: &Lookup<'_>, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let (state, app) = lookup.app().await?;
    let columns = [("Name", "name"), ("Status", "status"), ("Address", "address"), ("Node", "node"), ("ID", "id")];
    let network = state.network_of(app.project).map(|network| network.id);
    let mut containers: Vec<_> = network
        .into_iter()
        .flat_map(|network| state.containers(network))
        .filter(|container| container.slot.app() == app.id)
        .collect();
    containers.sort_by_key(|container| (container.slot, container.address));
    let rows = containers.iter().map(|container| {
        let status = match container.phase {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining { .. } => "draining",
        };
        let node = state.node(container.node).map_or_else(String::new, |node| node.label.to_string());
        let name = format!("{}-{}", container.slot.container_type(), container.slot.index());
        [&name, status, &container.address.to_string(), &node, &container.id.to_string()].map(|text| json!(text))
    });
    Ok(List::new(columns, rows).print(format, out)?)
}

pub(crate) async fn domain_names(
    lookup: &Lookup<'_>,
    page: u32,
    per_page: u32,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let request = PageRequest::new(page, per_page)?;
    let (state, app) = lookup.app().await?;
    if state.network_of(app.project).is_none() {
        return Err(format!(
            "app {} is not in a private network: its project {} has none",
            app.label,
            lookup::project_label(&state, app.project)
        )
        .into());
    }
    let names = state.domain_names(app.id).into_iter();
    let container_type = |scope| match scope {
        NameScope::App => ContainerType::web(),
        NameScope::Type(container_type) | NameScope::Container(container_type, _) => container_type,
    };
    let names = names.map(|name| (container_type(name.scope()).to_string(), name.to_string())).collect();
    Ok(output::names(&request.of(names), format, out)?)
}
