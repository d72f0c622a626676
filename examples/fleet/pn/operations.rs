//! Commands for those who run the platform.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use pn_core::{NodeId, NodePlan, Record};
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
        ("Registration", "registration"),
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
            json!(node.registration),
            json!(node.id.to_string()),
        ]
    });
    Ok(List::new(columns, rows).print(format, out)?)
}

pub(crate) async fn plan(
    registry: &Registry,
    lookup: &Lookup<'_>,
    name: &str,
    is_diff: bool,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let node = lookup::node(&lookup.state().await?, name)?.id;
    let before = if is_diff {
        let not_known = |why: String| format!("what node {name} has applied is not known: {why}");
        if !registry.statuses().await?.get(&node).is_some_and(|reported| reported.is_alive) {
            return Err(not_known("its agent does not run".to_owned()).into());
        }
        let applied = registry.applied_plan(node, PATIENCE).await?;
        applied.ok_or_else(|| not_known(format!("its agent did not say so within {} s", PATIENCE.as_secs())))?
    } else {
        NodePlan::empty(node, pn_core::Generation::ZERO)
    };
    let changes = registry.node_plan(node).await?.changes_since(&before);
    match format {
        Format::Json => {
            let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
            writeln!(out, "{}", json!(lines))?;
        }
        Format::Table => {
            changes.iter().try_for_each(|change| writeln!(out, "{change}"))?;
            if is_diff {
                let count = changes.len();
                writeln!(
                    out,
                    "{count} differences from generation {}, which node {name} has applied",
                    before.generation
                )?;
            }
        }
    }
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
        ("Limits", "limits"),
        ("Reported, s ago", "reported_s_ago"),
    ];
    let now = SystemClock.now();
    let ago = |moment: pn_core::Timestamp| json!(now.as_millis().saturating_sub(moment.as_millis()) / 1000);
    // Whose record was lost is still heard.
    let nodes: BTreeSet<NodeId> = state.nodes().map(|node| node.id).chain(statuses.keys().copied()).collect();
    let rows = nodes.into_iter().map(|id| {
        let name = state.node(id).map_or_else(|| id.to_string(), |node| node.label.to_string());
        let reported = statuses.get(&id);
        let status = reported.and_then(|reported| reported.status.as_ref());
        [
            json!(name),
            json!(reported.is_some_and(|reported| reported.is_alive)),
            json!(status.map(|status| status.applied.get())),
            json!(status.and_then(|status| status.held.as_ref()).map(|held| &held.reason)),
            json!(status.and_then(|status| status.stale_since).map(ago)),
            json!(status.map(|status| &status.failures)),
            json!(status.map(|status| &status.backend)),
            json!(status.map(|status| &status.encryption)),
            json!(status.map(|status| &status.counters)),
            json!(status.map(|status| &status.limits)),
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
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(refuse)?;
    let write = async {
        let mut buffered = BufWriter::new(&mut file);
        let summary = registry.backup(&mut buffered).await?;
        buffered.into_inner().map_err(|error| refuse(error.into_error()))?.sync_all().map_err(refuse)?;
        Ok::<_, Error>(summary)
    };
    let written = write.await;
    if written.is_err() {
        // Half a backup is none.
        std::fs::remove_file(path).map_err(refuse)?;
    }
    let summary = written?;
    Ok(writeln!(out, "{} records of generation {}", summary.records, summary.generation)?)
}

pub(crate) async fn restore(registry: &Registry, path: &Path, out: &mut impl Write) -> Result<(), Error> {
    let file = File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let summary = registry.restore(&mut BufReader::new(file)).await?;
    let (written, records) = (summary.written, summary.records);
    Ok(writeln!(out, "{written} of {records} records written, of generation {}", summary.generation)?)
}

pub(crate) async fn rebuild(
    registry: &Registry,
    confirm: bool,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let rebuild = registry.recall(PATIENCE).await?;
    let (missing, answered, silent) = (rebuild.missing.len(), rebuild.answered.len(), rebuild.silent.len());
    match format {
        Format::Json => {
            let records: Vec<String> = rebuild.missing.iter().map(Record::to_json).collect();
            let (missing, unknown) = (records.join(","), json!(UNKNOWN));
            writeln!(
                out,
                r#"{{"missing":[{missing}],"answered":{answered},"silent":{silent},"cannot_be_known":{unknown}}}"#
            )?;
        }
        Format::Table => {
            rebuild.missing.iter().try_for_each(|record| writeln!(out, "+ {}", record.to_json()))?;
            writeln!(out, "{missing} records are missing, as {answered} nodes say; {silent} are alive and silent")?;
            if missing > 0 {
                writeln!(out, "Agents cannot know, and so it is made up or left out:")?;
                UNKNOWN.iter().try_for_each(|what| writeln!(out, "- {what}"))?;
            }
        }
    }
    if confirm {
        let written = registry.rebuild(rebuild).await?;
        if format == Format::Table {
            writeln!(out, "{written} records written")?;
        }
    }
    Ok(())
}

/// What no plan tells.
const UNKNOWN: [&str; 4] = [
    "what projects and apps were called: they are called recovered-ID",
    "whether apps host health data, and who accepted which terms",
    "how many containers of a type were wanted: the greatest number there is counts",
    "projects without containers, and apps without a type",
];

/// How long nodes may take to say what they have.
const PATIENCE: Duration = Duration::from_secs(10);
