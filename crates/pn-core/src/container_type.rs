//! Container types: what a formation scales and a name's label says.

use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::str::FromStr;

/// Why a text is not a container type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerTypeError {
    /// The text is empty.
    #[error("a container type cannot be empty")]
    Empty,
    /// The text does not fit in a DNS label (RFC 1035 §2.3.4).
    #[error("container type {value:?} has {len} octets, a DNS label holds {max}", len = value.len(), max = ContainerType::MAX_LEN)]
    TooLong {
        /// The text that was given.
        value: String,
    },
    /// An octet is no letter, digit or hyphen.
    #[error("container type {value:?} contains {found:?}: only letters, digits and hyphens are allowed")]
    Character {
        /// The text that was given.
        value: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// The text starts or ends with a hyphen.
    #[error("container type {value:?} starts or ends with a hyphen")]
    Hyphen {
        /// The text that was given.
        value: String,
    },
}

/// The type of a container: `web`, `tcp`, `my-app-backend`.
///
/// A DNS label of letters, digits and hyphens (RFC 1123 §2.1), at most 63 octets, kept in place so that parsing allocates
/// nothing. As DNS compares labels, two types that differ only by case are **equal**; the spelling that was given is
/// what is printed.
///
/// ```
/// use pn_core::ContainerType;
///
/// let backend: ContainerType = "my-app-backend".parse()?;
/// assert_eq!(backend, "My-App-Backend".parse()?);
/// assert_eq!(backend.to_string(), "my-app-backend");
/// assert!("my_app".parse::<ContainerType>().is_err());
/// # Ok::<(), pn_core::ContainerTypeError>(())
/// ```
#[derive(Clone, Copy)]
pub struct ContainerType {
    len: u8,
    octets: [u8; Self::MAX_LEN],
}

impl ContainerType {
    /// The longest a type can be, in octets.
    pub const MAX_LEN: usize = 63;

    /// The type that names without a type mean, and that a new app runs one container of.
    #[must_use]
    pub const fn web() -> Self {
        let mut octets = [0; Self::MAX_LEN];
        (octets[0], octets[1], octets[2]) = (b'w', b'e', b'b');
        Self { len: 3, octets }
    }

    /// Returns the type in the spelling that was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).expect("only ASCII gets in")
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    /// Parses a label; `None` where it is not a container type.
    pub(crate) fn from_label(label: &[u8]) -> Option<Self> {
        let (first, last) = (label.first()?, label.last()?);
        let allowed = |octet: &u8| octet.is_ascii_alphanumeric() || *octet == b'-';
        if label.len() > Self::MAX_LEN || *first == b'-' || *last == b'-' || !label.iter().all(allowed) {
            return None;
        }
        let mut octets = [0; Self::MAX_LEN];
        octets[..label.len()].copy_from_slice(label);
        Some(Self { len: label.len() as u8, octets })
    }

    fn folded(&self) -> impl Iterator<Item = u8> + '_ {
        self.as_bytes().iter().map(u8::to_ascii_lowercase)
    }
}

/// What leads to the containers of a type from outside their network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exposure {
    /// The platform's HTTP routers: the type `web`.
    HttpRouter,
    /// The platform's TCP gateway: the type `tcp`.
    TcpGateway,
    /// Nothing: only their network.
    Private,
    /// The platform keeps the type for itself: `postdeploy`.
    Reserved,
}

impl ContainerType {
    /// Returns what leads to containers of this type from outside.
    #[must_use]
    pub fn exposure(&self) -> Exposure {
        let is = |name: &str| self.as_bytes().eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("web") => Exposure::HttpRouter,
            () if is("tcp") => Exposure::TcpGateway,
            () if is("postdeploy") => Exposure::Reserved,
            () => Exposure::Private,
        }
    }
}

/// Which container types a region takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TypeProfile {
    /// Every DNS label of letters, digits and hyphens.
    #[default]
    Label,
    /// 1 to 24 letters and digits, as the product documents today.
    Strict,
}

impl TypeProfile {
    /// Returns whether the profile takes a type.
    #[must_use]
    pub fn takes(self, container_type: &ContainerType) -> bool {
        let octets = container_type.as_bytes();
        self == Self::Label || octets.len() <= 24 && octets.iter().all(u8::is_ascii_alphanumeric)
    }
}

impl FromStr for ContainerType {
    type Err = ContainerTypeError;

    fn from_str(text: &str) -> Result<Self, ContainerTypeError> {
        if let Some(parsed) = Self::from_label(text.as_bytes()) {
            return Ok(parsed);
        }
        let value = text.to_owned();
        let foreign = text.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-');
        Err(match foreign {
            _ if text.is_empty() => ContainerTypeError::Empty,
            Some(found) => ContainerTypeError::Character { value, found },
            None if text.len() > Self::MAX_LEN => ContainerTypeError::TooLong { value },
            None => ContainerTypeError::Hyphen { value },
        })
    }
}

impl fmt::Display for ContainerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for ContainerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for ContainerType {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes().eq_ignore_ascii_case(other.as_bytes())
    }
}

impl Eq for ContainerType {}

impl PartialOrd for ContainerType {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ContainerType {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl Hash for ContainerType {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().for_each(|octet| state.write_u8(octet));
        state.write_u8(0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: Result<&str, ContainerTypeError>) {
        let parsed = input.parse::<ContainerType>();
        assert_eq!(parsed.as_ref().map(ContainerType::as_str), expected.as_ref().map(|text| *text), "{input:?}");
    }

    #[test]
    fn labels_are_types() {
        let longest = "a".repeat(63);
        for text in ["web", "tcp", "my-app-backend", "1", "007", "Web", "a--b", &longest] {
            check(text, Ok(text));
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let value = |text: &str| text.to_owned();
        check("", Err(ContainerTypeError::Empty));
        check(&"a".repeat(64), Err(ContainerTypeError::TooLong { value: "a".repeat(64) }));
        for (text, found) in [("a.b", '.'), ("a_b", '_'), ("a b", ' '), ("wéb", 'é'), ("a\0", '\0')] {
            check(text, Err(ContainerTypeError::Character { value: value(text), found }));
        }
        for text in ["-", "-a", "a-"] {
            check(text, Err(ContainerTypeError::Hyphen { value: value(text) }));
        }
    }

    #[test]
    fn exposure_and_profiles() {
        let parsed = |text: &str| text.parse::<ContainerType>().unwrap();
        for (text, exposure) in [
            ("web", Exposure::HttpRouter),
            ("WEB", Exposure::HttpRouter),
            ("tcp", Exposure::TcpGateway),
            ("postdeploy", Exposure::Reserved),
            ("my-app-backend", Exposure::Private),
            ("web2", Exposure::Private),
        ] {
            assert_eq!(parsed(text).exposure(), exposure, "{text}");
        }
        for (text, strict) in
            [("web", true), ("a1", true), ("my-app", false), (&"a".repeat(24), true), (&"a".repeat(25), false)]
        {
            assert!(TypeProfile::Label.takes(&parsed(text)));
            assert_eq!(TypeProfile::Strict.takes(&parsed(text)), strict, "{text}");
        }
    }

    #[test]
    fn d8_case_does_not_distinguish_types() {
        let (lower, upper): (ContainerType, ContainerType) = ("web".parse().unwrap(), "WEB".parse().unwrap());
        assert_eq!(lower, upper);
        assert_eq!(lower.cmp(&upper), Ordering::Equal);
        assert_eq!(upper.to_string(), "WEB");
        assert_eq!(lower, ContainerType::web());
    }
}
