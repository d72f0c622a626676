//! What people call a project, an app or a node.

use core::fmt;
use core::str::FromStr;

/// Why a text is not a [`Label`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} cannot be a name: 1 to 63 letters, digits and any of -_.@+ are expected, the first a letter or digit"
)]
pub struct LabelError {
    /// The text that was given.
    pub value: String,
}

/// What people call a project, an app, a node or each other: for people, logs and commands, never part of a domain name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Box<str>);

impl Label {
    /// The longest a label can be, in octets.
    pub const MAX_LEN: usize = 63;

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let allowed = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.@+".contains(&octet);
        let starts_well = text.bytes().next().is_some_and(|octet| octet.is_ascii_alphanumeric());
        if !starts_well || text.len() > Self::MAX_LEN || !text.bytes().all(allowed) {
            return Err(LabelError { value: text.to_owned() });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_round_trip_or_are_refused_with_the_value() {
        for text in ["my-app", "a", "node_1.rack-2", "ada+pn@example.com", &"x".repeat(63)] {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
        }
        for text in ["", "-a", ".a", "a b", "é", "a\n", &"x".repeat(64)] {
            let error = text.parse::<Label>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")));
        }
    }
}
