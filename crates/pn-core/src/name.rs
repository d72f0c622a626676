//! The domain names of a private network.
//!
//! Five forms stand under one suffix:
//!
//! | form | what it is | type |
//! |---|---|---|
//! | `N.type.ap-UUID.pn-UUID.private-network.internal` | one container | [`Name`] |
//! | `type.ap-UUID.pn-UUID.private-network.internal` | every container of a type | [`Name`] |
//! | `ap-UUID.pn-UUID.private-network.internal` | every `web` container of an app | [`Name`] |
//! | `pn-UUID.private-network.internal` | the network, an empty non-terminal | [`NetworkDomain`] |
//! | `private-network.internal` | the apex | [`SUFFIX`] |
//!
//! Only the first three have addresses, so only they are a [`Name`]. Five labels always mean a type, never an ordinal:
//! a type may be all digits, so `1.ap-…` is the type `1`.

use core::fmt;
use core::str::FromStr;

use crate::container::Slot;
use crate::container_type::{ContainerType, ContainerTypeError};
use crate::id::{AppId, IdError, NetworkId};

/// The suffix of every name, without the final dot.
pub const SUFFIX: &str = "private-network.internal";

const SUFFIX_LABELS: [&str; 2] = ["private-network", "internal"];

/// What of an app a [`Name`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NameScope {
    /// The app: its `web` containers.
    App,
    /// Every container of a type.
    Type(ContainerType),
    /// The container in slot N of a type.
    Container(ContainerType, u32),
}

/// A name that can have addresses: an app's, a type's or a container's.
///
/// `Display` prints it without the final dot, `{:#}` with it; both parse, and so does any case.
///
/// ```
/// use pn_core::Name;
///
/// let text = "1.web.ap-6f7d6a1e-3f0e-4b4e-9d4c-0d9a3c1b2e4f.pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c.private-network.internal";
/// let name: Name = text.parse()?;
/// assert_eq!(name.to_string(), text);
/// assert_eq!(format!("{name:#}"), format!("{text}."));
/// # Ok::<(), pn_core::NameError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    network: NetworkId,
    app: AppId,
    scope: NameScope,
}

impl Name {
    /// The longest text of a name, in octets, without the final dot.
    pub const MAX_LEN: usize = 10 + 1 + ContainerType::MAX_LEN + 1 + AppId::LEN + 1 + NetworkDomain::LEN;

    /// Names the `web` containers of an app.
    #[must_use]
    pub const fn app(network: NetworkId, app: AppId) -> Self {
        Self { network, app, scope: NameScope::App }
    }

    /// Names every container of a type.
    #[must_use]
    pub const fn of_type(network: NetworkId, app: AppId, container_type: ContainerType) -> Self {
        Self { network, app, scope: NameScope::Type(container_type) }
    }

    /// Names the container in a slot.
    #[must_use]
    pub const fn container(network: NetworkId, slot: &Slot) -> Self {
        Self { network, app: slot.app(), scope: NameScope::Container(slot.container_type(), slot.index()) }
    }

    /// Returns the network it is a name of.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Returns the app it is a name of.
    #[must_use]
    pub const fn app_id(&self) -> AppId {
        self.app
    }

    /// Returns what of the app it means.
    #[must_use]
    pub const fn scope(&self) -> NameScope {
        self.scope
    }

    /// Writes the name, without the final dot, into a buffer and returns it as text.
    ///
    /// This is what `Display` does, without a formatter between.
    pub fn encode<'a>(&self, buffer: &'a mut [u8; Self::MAX_LEN]) -> &'a str {
        let mut rest = &mut buffer[..];
        if let NameScope::Container(_, index) = self.scope {
            let mut digits = [0; 10];
            let digits = decimal(index, &mut digits);
            rest = put(put(rest, digits), b".");
        }
        if let NameScope::Type(container_type) | NameScope::Container(container_type, _) = &self.scope {
            rest = put(put(rest, container_type.as_bytes()), b".");
        }
        rest = put(self.app.encode(rest), b".");
        let unused = NetworkDomain(self.network).encode(rest).len();
        let len = Self::MAX_LEN - unused;
        core::str::from_utf8(&buffer[..len]).expect("every label is ASCII")
    }

    /// Parses text, without saying what is wrong where it is no name.
    ///
    /// Everything but type and ordinal has a fixed length, so the labels are found from the right without a search.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = text.strip_suffix(b".").unwrap_or(text);
        let (text, suffix) = text.split_at_checked(text.len().checked_sub(SUFFIX.len())?)?;
        if !suffix.eq_ignore_ascii_case(SUFFIX.as_bytes()) {
            return None;
        }
        let text = text.strip_suffix(b".")?;
        let (text, network) = text.split_at_checked(text.len().checked_sub(NetworkId::LEN)?)?;
        let text = text.strip_suffix(b".")?;
        let (text, app) = text.split_at_checked(text.len().checked_sub(AppId::LEN)?)?;
        let (network, app) = (NetworkId::from_label(network)?, AppId::from_label(app)?);
        if text.is_empty() {
            return Some(Self::app(network, app));
        }
        let text = text.strip_suffix(b".")?;
        let scope = match text.iter().position(|octet| *octet == b'.') {
            None => NameScope::Type(ContainerType::from_label(text)?),
            Some(dot) => NameScope::Container(ContainerType::from_label(&text[dot + 1..])?, parse_index(&text[..dot])?),
        };
        Some(Self { network, app, scope })
    }

    /// Parses labels, leftmost first, as DNS hands them over.
    ///
    /// # Errors
    /// As [`FromStr`], without allocating: the caller has the text.
    pub fn from_labels<'a>(labels: impl DoubleEndedIterator<Item = &'a [u8]>) -> Result<Self, NameFault> {
        let mut labels = labels.rev();
        for expected in SUFFIX_LABELS.iter().rev() {
            let found = labels.next().ok_or(NameFault::Labels)?;
            if !found.eq_ignore_ascii_case(expected.as_bytes()) {
                return Err(NameFault::Suffix);
            }
        }
        let network = labels.next().ok_or(NameFault::Labels)?;
        let network = NetworkId::from_label(network).ok_or(NameFault::Network)?;
        let app = labels.next().ok_or(NameFault::Labels)?;
        let app = AppId::from_label(app).ok_or(NameFault::App)?;
        let scope = match (labels.next(), labels.next(), labels.next()) {
            (_, _, Some(_)) => return Err(NameFault::Labels),
            (None, ..) => NameScope::App,
            (Some(container_type), index, None) => {
                let container_type = ContainerType::from_label(container_type).ok_or(NameFault::Type)?;
                match index {
                    None => NameScope::Type(container_type),
                    Some(index) => NameScope::Container(container_type, parse_index(index).ok_or(NameFault::Index)?),
                }
            }
        };
        Ok(Self { network, app, scope })
    }
}

/// What is wrong with the labels of a name; [`NameError`] says it with the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameFault {
    /// There are fewer than 4 or more than 6 labels.
    Labels,
    /// It does not end in `private-network.internal`.
    Suffix,
    /// The third label from the right is not `pn-UUID`.
    Network,
    /// The fourth label from the right is not `ap-UUID`.
    App,
    /// The fifth label from the right is not a container type.
    Type,
    /// The sixth label from the right is not a decimal from 1 to 4294967295 without sign and leading zeros.
    Index,
}

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It has too few or too many labels.
    #[error("{name:?} has {found} labels: a name has 4 (app), 5 (type) or 6 (container)")]
    Labels {
        /// The text that was given.
        name: String,
        /// How many labels it has.
        found: usize,
    },
    /// It stands under another suffix.
    #[error("{name:?} does not end in \"private-network.internal\"")]
    Suffix {
        /// The text that was given.
        name: String,
    },
    /// The network's label is not one.
    #[error("the network of {name:?} is wrong")]
    Network {
        /// The text that was given.
        name: String,
        /// What is wrong with the label.
        source: IdError,
    },
    /// The app's label is not one.
    #[error("the app of {name:?} is wrong")]
    App {
        /// The text that was given.
        name: String,
        /// What is wrong with the label.
        source: IdError,
    },
    /// The type's label is not one.
    #[error("the container type of {name:?} is wrong")]
    Type {
        /// The text that was given.
        name: String,
        /// What is wrong with the label.
        source: ContainerTypeError,
    },
    /// The ordinal is not canonical.
    #[error(
        "{label:?} in {name:?} is not a container's number: a decimal from 1 to 4294967295 without sign or leading zeros"
    )]
    Index {
        /// The text that was given.
        name: String,
        /// The label that is wrong.
        label: String,
    },
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some(name) = Self::parse(text.as_bytes()) {
            return Ok(name);
        }
        let relative = text.strip_suffix('.').unwrap_or(text);
        let labels = || relative.split('.');
        Self::from_labels(labels().map(str::as_bytes)).map_err(|fault| {
            let name = text.to_owned();
            let from_right = |n: usize| labels().rev().nth(n).unwrap_or_default();
            match fault {
                NameFault::Labels => NameError::Labels { name, found: labels().count() },
                NameFault::Suffix => NameError::Suffix { name },
                NameFault::Network => match from_right(2).parse::<NetworkId>() {
                    Err(source) => NameError::Network { name, source },
                    Ok(_) => unreachable!("a label that parses is no fault"),
                },
                NameFault::App => match from_right(3).parse::<AppId>() {
                    Err(source) => NameError::App { name, source },
                    Ok(_) => unreachable!("a label that parses is no fault"),
                },
                NameFault::Type => match from_right(4).parse::<ContainerType>() {
                    Err(source) => NameError::Type { name, source },
                    Ok(_) => unreachable!("a label that parses is no fault"),
                },
                NameFault::Index => NameError::Index { name, label: from_right(5).to_owned() },
            }
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; Self::MAX_LEN]))?;
        if f.alternate() { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The domain of a network, `pn-UUID.private-network.internal`, under which all its names stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkDomain(pub NetworkId);

impl NetworkDomain {
    /// Length of its text, in octets, without the final dot.
    pub const LEN: usize = NetworkId::LEN + 1 + SUFFIX.len();

    fn encode<'a>(&self, out: &'a mut [u8]) -> &'a mut [u8] {
        put(put(self.0.encode(out), b"."), SUFFIX.as_bytes())
    }
}

impl fmt::Display for NetworkDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{SUFFIX}", self.0)?;
        if f.alternate() { f.write_str(".") } else { Ok(()) }
    }
}

impl FromStr for NetworkDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = || text.to_owned();
        let relative = text.strip_suffix('.').unwrap_or(text);
        let (network, suffix) = relative.split_once('.').unwrap_or((relative, ""));
        if !suffix.eq_ignore_ascii_case(SUFFIX) {
            return Err(NameError::Suffix { name: name() });
        }
        let network = network.parse().map_err(|source| NameError::Network { name: name(), source })?;
        Ok(Self(network))
    }
}

/// Parses the canonical decimal of a slot's index: no sign, no leading zero, at least 1.
pub(crate) fn parse_index(label: &[u8]) -> Option<u32> {
    if !(1..=10).contains(&label.len()) || label[0] == b'0' {
        return None;
    }
    label.iter().try_fold(0u32, |value, octet| {
        let digit = octet.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u32::from(digit))
    })
}

fn decimal(mut value: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &digits[start..];
        }
    }
}

fn put<'a>(out: &'a mut [u8], octets: &[u8]) -> &'a mut [u8] {
    let (head, rest) = out.split_at_mut(octets.len());
    head.copy_from_slice(octets);
    rest
}

#[cfg(test)]
mod tests;
