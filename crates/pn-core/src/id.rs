//! Identifiers: a prefix that says what is meant, and a UUID.

use core::fmt;
use core::str::FromStr;

use uuid::Uuid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text does not start with the prefix of this kind of identifier.
    #[error("{value:?} is not {expected}: it does not start with {prefix:?}")]
    Prefix {
        /// The text that was given.
        value: String,
        /// What was expected, for people.
        expected: &'static str,
        /// The prefix that was expected.
        prefix: &'static str,
    },
    /// What follows the prefix is not a UUID in its hyphenated form (RFC 9562 §4).
    #[error("{value:?} is not {expected}: what follows {prefix:?} is not a hyphenated UUID")]
    Uuid {
        /// The text that was given.
        value: String,
        /// What was expected, for people.
        expected: &'static str,
        /// The prefix that was expected.
        prefix: &'static str,
    },
}

/// Length of a hyphenated UUID, in octets.
pub(crate) const UUID_LEN: usize = 36;

/// Parses the hyphenated form only: `uuid` itself also takes braces, URNs and 32 bare digits, which DNS labels never hold, and
/// takes twice as long to tell them apart.
#[inline]
pub(crate) fn parse_hyphenated(text: &[u8]) -> Option<Uuid> {
    let text: &[u8; UUID_LEN] = text.try_into().ok()?;
    let four = |at: usize| u64::from(u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]));
    let eight = |first, second| parse_digits(four(first) | (four(second) << 32));
    let (a, b, c, d) = (eight(0, 4)?, eight(9, 14)?, eight(19, 24)?, eight(28, 32)?);
    let hyphenated = [8, 13, 18, 23].iter().all(|at| text[*at] == b'-');
    let join = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
    hyphenated.then(|| Uuid::from_u64_pair(join(a, b), join(c, d)))
}

/// Parses eight hexadecimal digits, the first of which is the lowest octet: all at once, octet beside octet, without a branch
/// for each.
#[inline]
const fn parse_digits(digits: u64) -> Option<u32> {
    const HIGH: u64 = each(0x80);
    // Without their highest bits, no octet's sum reaches into the next. A sum's highest bit tells that an octet is too large.
    let low = digits & !HIGH;
    let (digit, letter) = (low ^ each(b'0'), (low | each(0x20)) ^ each(0x60));
    let is_digit = !(digit + each(0x7f - 9)) & HIGH;
    let is_letter = (letter + each(0x7f)) & !(letter + each(0x7f - 6)) & HIGH;
    if (is_digit | is_letter) & !digits & HIGH != HIGH {
        return None;
    }
    let values = (digits & each(0xf)) + 9 * (is_letter >> 7);
    // Two octets with a digit each, then four with two, then the eight.
    let pairs = ((values << 4) | (values >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | (pairs >> 8)) & 0x0000_ffff_0000_ffff;
    Some(((fours | (fours >> 16)) as u32).swap_bytes())
}

/// Returns eight times the same octet.
const fn each(octet: u8) -> u64 {
    u64::from_ne_bytes([octet; 8])
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        ///
        /// Text is parsed without regard to case, as DNS compares it, and printed in lower case.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// What its text starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Length of its text, in octets.
            pub const LEN: usize = Self::PREFIX.len() + UUID_LEN;

            /// Makes an identifier from the 128 bits of a UUID.
            #[must_use]
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }

            /// Returns the 128 bits of the UUID.
            #[must_use]
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }

            /// Parses a label as DNS hands it over; `None` where it is not one of these.
            #[must_use]
            #[inline]
            pub fn from_label(label: &[u8]) -> Option<Self> {
                let (prefix, uuid) = label.split_at_checked(Self::PREFIX.len())?;
                if !prefix.eq_ignore_ascii_case(Self::PREFIX.as_bytes()) {
                    return None;
                }
                parse_hyphenated(uuid).map(Self)
            }

            /// Writes its text to the start of `out` and returns the rest.
            pub(crate) fn encode<'a>(&self, out: &'a mut [u8]) -> &'a mut [u8] {
                let (head, rest) = out.split_at_mut(Self::LEN);
                let (prefix, uuid) = head.split_at_mut(Self::PREFIX.len());
                prefix.copy_from_slice(Self::PREFIX.as_bytes());
                self.0.hyphenated().encode_lower(uuid);
                rest
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0; Self::LEN];
                self.encode(&mut text);
                f.pad(core::str::from_utf8(&text).expect("prefix and UUID are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if let Some(id) = Self::from_label(text.as_bytes()) {
                    return Ok(id);
                }
                let prefixed = text
                    .as_bytes()
                    .get(..Self::PREFIX.len())
                    .is_some_and(|head| head.eq_ignore_ascii_case(Self::PREFIX.as_bytes()));
                let (value, expected, prefix) = (text.to_owned(), $expected, Self::PREFIX);
                Err(if prefixed {
                    IdError::Uuid { value, expected, prefix }
                } else {
                    IdError::Prefix { value, expected, prefix }
                })
            }
        }
    };
}

id!(
    /// Identifies a project: `prj-UUID`.
    ProjectId, "prj-", "a project id"
);
id!(
    /// Identifies an app: `ap-UUID`.
    AppId, "ap-", "an app id"
);
id!(
    /// Identifies a private network: `pn-UUID`.
    NetworkId, "pn-", "a private network id"
);
id!(
    /// Identifies a container, that is, one incarnation of a slot: `ct-UUID`.
    ContainerId, "ct-", "a container id"
);
id!(
    /// Identifies a node, a machine that runs containers: `nd-UUID`.
    NodeId, "nd-", "a node id"
);

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";

    #[test]
    fn text_round_trips_in_lower_case() {
        let text = format!("ap-{UUID}");
        let id: AppId = text.to_uppercase().parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(AppId::from_u128(id.as_u128()), id);
        assert_eq!(format!("{id:?}"), text);
        assert_eq!(format!("{id:>45}"), format!("{text:>45}"));
    }

    #[test]
    fn every_octet_anywhere_parses_as_it_does_elsewhere() {
        for at in 0..UUID_LEN {
            for octet in 0..=255 {
                let mut text = *b"ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
                text[at] = octet;
                assert_eq!(parse_hyphenated(&text), Uuid::try_parse_ascii(&text).ok(), "{octet:#x} at {at}");
            }
        }
    }

    #[test]
    fn refusals_name_the_value() {
        let refused = |text: &str| text.parse::<NetworkId>().unwrap_err();
        for (text, is_prefix) in [
            (format!("ap-{UUID}"), true),
            (UUID.to_owned(), true),
            (String::new(), true),
            ("é".to_owned(), true),
            ("pn-".to_owned(), false),
            (format!("pn-{}", UUID.replace('-', "")), false),
            (format!("pn-{{{UUID}}}"), false),
            (format!("pn-{UUID}0"), false),
            (format!("pn-{}", UUID.replace('a', "g")), false),
        ] {
            let error = refused(&text);
            assert_eq!(matches!(error, IdError::Prefix { .. }), is_prefix, "{text}");
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
