//! What the programs here share.

#![forbid(unsafe_code)]

use std::error::Error;

pub mod interface;

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
