//! What was measured, as a table with ratios or as JSON.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// The figures of one system in one round, by name.
pub(crate) type Figures = BTreeMap<String, f64>;

/// The system that others are compared with.
const REFERENCE: &str = "boringtun-t1";

/// Names of figures, how they are headed, and how many digits they have.
const COLUMNS: [(&str, &str, usize); 9] = [
    ("tcp1_gbps", "TCP ×1 Gbit/s", 2),
    ("tcp4_gbps", "TCP ×4", 2),
    ("udp64_pps", "64 B UDP /s", 0),
    ("udp64_lossless_pps", "< 1 % loss", 0),
    ("rtt_p50_us", "TCP RTT p50 µs", 1),
    ("rtt_p99_us", "p99 µs", 1),
    ("cpu_s_per_gbit", "CPU s/Gbit", 3),
    ("rss_mb", "RSS MB", 1),
    ("tcp1_retransmits", "retransmits", 0),
];

pub(crate) fn median(rounds: &[Figures], name: &str) -> Option<f64> {
    let mut values: Vec<f64> = rounds.iter().filter_map(|figures| figures.get(name).copied()).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

pub(crate) fn json(measured: &BTreeMap<&str, Vec<Figures>>) -> Value {
    let systems = measured.iter().map(|(name, rounds)| {
        let names = rounds.iter().flat_map(BTreeMap::keys);
        let medians = names.filter_map(|name| Some((name.clone(), median(rounds, name)?.into())));
        ((*name).to_owned(), Value::Object(medians.collect()))
    });
    json!({ "systems": systems.collect::<serde_json::Map<_, _>>() })
}

pub(crate) fn table(order: &[&str], measured: &BTreeMap<&str, Vec<Figures>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["system"].into_iter().chain(COLUMNS.map(|(_, head, _)| head)));
    for system in order {
        let Some(rounds) = measured.get(system) else {
            continue;
        };
        let cells = COLUMNS.iter().map(|(name, _, digits)| cell(rounds, measured.get(REFERENCE), name, *digits));
        table.add_row([(*system).to_owned()].into_iter().chain(cells));
    }
    format!("{table}\nmedian (least–most of the rounds) and × that of {REFERENCE}")
}

fn cell(rounds: &[Figures], reference: Option<&Vec<Figures>>, name: &str, digits: usize) -> String {
    let Some(value) = median(rounds, name) else {
        return "–".to_owned();
    };
    let values = || rounds.iter().filter_map(|figures| figures.get(name).copied());
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let ratio = reference.and_then(|reference| median(reference, name)).filter(|reference| *reference > 0.0);
    let ratio = ratio.map_or(String::new(), |reference| format!(" ×{:.2}", value / reference));
    format!("{value:.digits$} ({least:.digits$}–{most:.digits$}){ratio}")
}
