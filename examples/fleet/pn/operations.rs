//! Commands for those who run the platform.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use pn_core::NodePlan;
use pn_store::{Clock as _, Registry, SystemClock};
use serde_json::json;

use crate::Error;
use crate::cli::Format;
use crate::lookup::{self, Lookup};
use crate::output::List;

pub(crate) async fn nodes(
    registry: &Registry,
    lookup: &Lookup<'_>,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (state, statuses) = (lookup.state().await?, registry.statuses().await?);
    let columns = [
        ("Name", "name"),
        ("Alive", "alive"),
        ("Availability", "availability"),
        ("Underlay", "underlay"),
        ("MTU", "underlay_mtu"),
        ("Tunnel address", "tunnel_address"),
        ("Containers", "containers"),
        ("ID", "id"),
    ];
    let rows = state.nodes().map(|node| {
        let availability = match node.availability {
            pn_core::Availability::Open => "open",
            pn_core::Availability::Draining => "draining",
        };
        let plan = state.node_plan(node.id);
        let endpoints = plan.networks.values().flat_map(|network| &*network.endpoints);
        [
            json!(node.label.as_str()),
            json!(statuses.get(&node.id).is_some_and(|reported| reported.is_alive)),
            json!(availability),
            json!(node.underlay.to_string()),
            json!(node.underlay_mtu),
            json!(node.tunnel_address.to_string()),
            json!(endpoints.filter(|endpoint| endpoint.node == node.id).count()),
            json!(node.id.to_string()),
        ]
    });
    Ok(List::new(columns, rows).print(format, out)?)
}

pub(crate) async fn plan(lookup: &Lookup<'_>, node: &str, out: &mut impl Write) -> Result<(), Error> {
    let state = lookup.state().await?;
    let node = lookup::node(&state, node)?.id;
    let plan = state.node_plan(node);
    let before = NodePlan::empty(node, pn_core::Generation::ZERO);
    plan.changes_since(&before).iter().try_for_each(|change| writeln!(out, "{change}"))?;
    Ok(())
}

pub(crate) async fn status(
    registry: &Registry,
    lookup: &Lookup<'_>,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (state, statuses) = (lookup.state().await?, registry.statuses().await?);
    let columns = [
        ("Node", "node"),
        ("Alive", "alive"),
        ("Applied", "applied"),
        ("Held", "held"),
        ("Stale, s", "stale_s"),
        ("Failures", "failures"),
        ("Data plane", "backend"),
        ("Encryption", "encryption"),
        ("Counters", "counters"),
        ("Reported, s ago", "reported_s_ago"),
    ];
    let now = SystemClock.now();
    let ago = |moment: pn_core::Timestamp| json!(now.as_millis().saturating_sub(moment.as_millis()) / 1000);
    let rows = state.nodes().map(|node| {
        let reported = statuses.get(&node.id);
        let status = reported.and_then(|reported| reported.status.as_ref());
        [
            json!(node.label.as_str()),
            json!(reported.is_some_and(|reported| reported.is_alive)),
            json!(status.map(|status| status.applied.get())),
            json!(status.and_then(|status| status.held.as_ref()).map(|held| &held.reason)),
            json!(status.and_then(|status| status.stale_since).map(ago)),
            json!(status.map(|status| &status.failures)),
            json!(status.map(|status| &status.backend)),
            json!(status.map(|status| &status.encryption)),
            json!(status.map(|status| &status.counters)),
            json!(reported.filter(|reported| reported.status.is_some()).map(|reported| ago(reported.at))),
        ]
    });
    Ok(List::new(columns, rows).print(format, out)?)
}

pub(crate) async fn confirm(
    registry: &Registry,
    lookup: &Lookup<'_>,
    only: Option<String>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let only = match only {
        Some(name) => Some(lookup::node(&lookup.state().await?, &name)?.id),
        None => None,
    };
    let mut count = 0;
    for (node, reported) in registry.statuses().await? {
        let held = reported.status.and_then(|status| status.held);
        if let Some(held) = held.filter(|_| only.is_none_or(|only| only == node)) {
            registry.confirm(node, held.generation).await?;
            writeln!(out, "{node}: {}", held.reason)?;
            count += 1;
        }
    }
    if count == 0 {
        return Err("no node holds anything back".into());
    }
    Ok(())
}

pub(crate) async fn backup(registry: &Registry, path: &Path, out: &mut impl Write) -> Result<(), Error> {
    let refuse = |error| format!("cannot write {}: {error}", path.display());
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(refuse)?;
    let mut file = BufWriter::new(file);
    let summary = registry.backup(&mut file).await?;
    file.into_inner().map_err(|error| refuse(error.into_error()))?.sync_all().map_err(refuse)?;
    Ok(writeln!(out, "{} records of generation {}", summary.records, summary.generation)?)
}

pub(crate) async fn restore(registry: &Registry, path: &Path, out: &mut impl Write) -> Result<(), Error> {
    let file = File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let summary = registry.restore(&mut BufReader::new(file)).await?;
    let (written, records) = (summary.written, summary.records);
    Ok(writeln!(out, "{written} of {records} records written, of generation {}", summary.generation)?)
}

pub(crate) async fn rebuild(registry: &Registry, confirm: bool, out: &mut impl Write) -> Result<(), Error> {
    let rebuild = registry.recall(PATIENCE).await?;
    rebuild.missing.iter().try_for_each(|record| writeln!(out, "+ {}", record.to_json()))?;
    let (answered, silent) = (rebuild.answered.len(), rebuild.silent.len());
    writeln!(
        out,
        "{} records are missing, as {answered} nodes say; {silent} are alive and silent",
        rebuild.missing.len()
    )?;
    if confirm {
        writeln!(out, "{} records written", registry.rebuild(rebuild).await?)?;
    }
    Ok(())
}

/// How long nodes may take to say what they have.
const PATIENCE: Duration = Duration::from_secs(10);
