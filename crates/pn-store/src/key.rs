use core::fmt;
use core::str::FromStr;
use std::sync::Arc;

/// Why a text is not a [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} cannot be a key or a prefix of keys: at most {max} printable ASCII characters are expected", max = Key::MAX_LEN)]
pub struct KeyError {
    /// The text that was given.
    pub value: String,
}

/// What a value is stored under, or what several keys start with. Keys are ordered by their octets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The longest a key can be, in octets.
    pub const MAX_LEN: usize = 512;

    /// The prefix of every key.
    #[must_use]
    pub fn all() -> Self {
        Self("".into())
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this key starts with a prefix.
    #[must_use]
    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&*prefix.0)
    }

    /// Returns what follows a prefix; `None` where the key does not start with it.
    #[must_use]
    pub fn strip_prefix(&self, prefix: &Self) -> Option<&str> {
        self.0.strip_prefix(&*prefix.0)
    }

    /// Returns the first text after everything that starts with this prefix. Keys are ASCII, so DEL is beyond all.
    #[must_use]
    pub fn end(&self) -> String {
        format!("{}\u{7f}", self.0)
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() > Self::MAX_LEN || !text.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err(KeyError { value: text.to_owned() });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_after_all_that_start_with_it() {
        let key = |text: &str| text.parse::<Key>().unwrap();
        let prefix = key("a/");
        for text in ["a/", "a/0", "a/~~~", "a/zz"] {
            assert!(key(text).starts_with(&prefix) && text < prefix.end().as_str());
        }
        assert!("a0" > prefix.end().as_str() && !key("a0").starts_with(&prefix));
        for text in ["a b", "é", "\n", &"x".repeat(513)] {
            assert_eq!(text.parse::<Key>(), Err(KeyError { value: text.to_owned() }));
        }
    }
}
