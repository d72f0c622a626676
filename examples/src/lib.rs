//! What the examples print: their networks, what was checked and with which evidence.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;

use comfy_table::{Table, presets};
use pn_core::{NetworkId, State};
use serde::Serialize;
use serde_json::json;

/// Something that was promised, whether it holds, and how one can tell.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was promised.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What was seen.
    pub evidence: String,
}

/// Says which answers came how often: `11 x 200 "hello"`.
#[must_use]
pub fn answers(seen: &BTreeMap<(impl Display, String), u32>) -> String {
    let each = seen.iter().map(|((status, page), count)| format!("{count} x {status} \"{}\"", page.trim_end()));
    each.collect::<Vec<_>>().join(", ")
}

/// What an example has to say.
#[derive(Debug)]
pub struct Report<'a> {
    /// The state whose networks are described.
    pub state: &'a State,
    /// The networks, each with the label of its project.
    pub networks: &'a [(&'a str, NetworkId)],
    /// The checks, in their order.
    pub checks: &'a [Check],
    /// Where the public app is reached.
    pub public_url: &'a str,
    /// What the checks were made on: `3 nodes`.
    pub on: String,
}

impl Report<'_> {
    /// Prints the report, and returns whether every check holds.
    pub fn print(&self, as_json: bool) -> bool {
        if as_json {
            println!("{}", self.json());
        } else {
            self.print_text();
        }
        self.checks.iter().all(|check| check.ok)
    }

    fn print_text(&self) {
        let plan = self.state.plan();
        for (project, network) in self.networks.iter().map(|(project, id)| (project, &plan.networks[id])) {
            let mut table = Table::new();
            table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["App", "Domain Name", "Addresses"]);
            for (name, addresses) in network.zone.names() {
                let app = self.state.app(name.app_id()).map_or("", |app| app.label.as_str());
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                table.add_row([app, &name.to_string(), &addresses.join("\n")]);
            }
            println!(
                "{project}: {}, VNI {}, {}, MTU {}\n{table}\n",
                network.id, network.vni, network.subnet, network.mtu
            );
        }
        for check in self.checks {
            println!("{} {:<28} {}", if check.ok { "ok  " } else { "FAIL" }, check.name, check.evidence);
        }
        let held = self.checks.iter().filter(|check| check.ok).count();
        println!("\n{held} of {} checks hold on {}", self.checks.len(), self.on);
    }

    fn json(&self) -> serde_json::Value {
        let plan = self.state.plan();
        let networks: Vec<_> = self
            .networks
            .iter()
            .map(|(_, id)| &plan.networks[id])
            .map(|network| {
                let names: Vec<_> = network.zone.names().iter().map(|(name, _)| name.to_string()).collect();
                json!({
                    "id": network.id.to_string(),
                    "vni": network.vni.get(),
                    "subnet": network.subnet.to_string(),
                    "mtu": network.mtu,
                    "domain_names": names,
                })
            })
            .collect();
        json!({"checks": self.checks, "networks": networks, "public_url": self.public_url})
    }
}

/// Returns what went wrong, and why, and why that.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
