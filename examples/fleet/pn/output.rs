//! Lists as tables for people and JSON for programs.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use crate::cli::Format;

/// Rows of values under columns, each with a title for people and a key for programs.
#[derive(Debug)]
pub(crate) struct List<const N: usize> {
    columns: [(&'static str, &'static str); N],
    rows: Vec<[Value; N]>,
}

impl<const N: usize> List<N> {
    pub(crate) fn new(columns: [(&'static str, &'static str); N], rows: impl IntoIterator<Item = [Value; N]>) -> Self {
        Self { columns, rows: rows.into_iter().collect() }
    }

    pub(crate) fn print(self, format: Format, out: &mut impl Write) -> io::Result<()> {
        match format {
            Format::Table => {
                let rows = self.rows.iter().map(|row| row.each_ref().map(text));
                writeln!(out, "{}", table(self.columns.map(|(title, _)| title), rows))
            }
            Format::Json => {
                let keys = self.columns.map(|(_, key)| key.to_owned());
                let object = |row| Value::Object(Map::from_iter(keys.clone().into_iter().zip::<[Value; N]>(row)));
                writeln!(out, "{}", Value::Array(self.rows.into_iter().map(object).collect()))
            }
        }
    }
}

/// Prints one object: a line for each of its fields, or JSON.
pub(crate) fn object<const N: usize>(
    fields: [(&'static str, &'static str, Value); N],
    format: Format,
    out: &mut impl Write,
) -> io::Result<()> {
    match format {
        Format::Table => {
            let width = fields.iter().map(|(title, ..)| title.len()).max().unwrap_or(0);
            fields.iter().try_for_each(|(title, _, value)| {
                let value = text(value).replace('\n', &format!("\n{:width$}  ", ""));
                writeln!(out, "{title:width$}  {value}")
            })
        }
        Format::Json => {
            let object = fields.into_iter().map(|(_, key, value)| (key.to_owned(), value));
            writeln!(out, "{}", Value::Object(object.collect()))
        }
    }
}

/// Prints a page of names as the product does.
pub(crate) fn names(page: &pn_core::Page<(String, String)>, format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Table => {
            let rows = page.items.iter().map(|(container_type, name)| [container_type.clone(), name.clone()]);
            writeln!(out, "{}", table(["Container Type", "Domain Name"], rows))?;
            writeln!(out, "Page {}/{}", page.current_page, page.total_pages)?;
            writeln!(out, "Total number of domains {}", page.total_count)
        }
        Format::Json => {
            let names: Vec<&String> = page.items.iter().map(|(_, name)| name).collect();
            let meta = json!({
                "current_page": page.current_page,
                "prev_page": page.prev_page,
                "next_page": page.next_page,
                "total_pages": page.total_pages,
                "total_count": page.total_count,
            });
            writeln!(out, "{}", json!({ "data": names, "meta": meta }))
        }
    }
}

fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    table
}

/// Returns a value as people read it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("\n"),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}: {}", text(value))).collect::<Vec<_>>().join("\n")
        }
        Value::Number(number) => number.to_string(),
    }
}
