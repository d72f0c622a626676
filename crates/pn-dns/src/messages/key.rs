//! Keys that two name servers share.

use core::fmt;
use core::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use domain::tsig::{Algorithm, Key, KeyName};

/// How a [`TsigKey`] signs (RFC 8945 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TsigAlgorithm {
    /// `hmac-sha256`.
    #[default]
    HmacSha256,
    /// `hmac-sha384`.
    HmacSha384,
    /// `hmac-sha512`.
    HmacSha512,
}

impl TsigAlgorithm {
    const ALL: [(Self, &'static str); 3] =
        [(Self::HmacSha256, "hmac-sha256"), (Self::HmacSha384, "hmac-sha384"), (Self::HmacSha512, "hmac-sha512")];
}

impl fmt::Display for TsigAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        })
    }
}

/// A secret that two name servers share to sign what they say to each other (TSIG, RFC 8945).
///
/// It is parsed from what `dig -y` and `kdig -y` take, `ALGORITHM:NAME:SECRET` with the secret in Base64; a program such as
/// `tsig-keygen` makes one. Neither `Debug` nor an error shows the secret.
///
/// ```
/// use pn_dns::TsigKey;
///
/// let key: TsigKey = "hmac-sha256:pn.example.:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".parse()?;
/// assert_eq!(key.name(), "pn.example");
/// # Ok::<(), pn_dns::TsigKeyError>(())
/// ```
#[derive(Clone)]
pub struct TsigKey(Arc<Key>);

/// Why there is no [`TsigKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TsigKeyError {
    /// It does not have three parts.
    #[error("a TSIG key is ALGORITHM:NAME:SECRET, as dig -y takes it")]
    Syntax,
    /// The algorithm is not known here.
    #[error("{algorithm:?} is not a TSIG algorithm: use hmac-sha256, hmac-sha384 or hmac-sha512")]
    Algorithm {
        /// What was given.
        algorithm: String,
    },
    /// The name is not a domain name.
    #[error("{name:?} is not the name of a key: use a domain name")]
    Name {
        /// What was given.
        name: String,
    },
    /// The secret is not Base64, or too short.
    #[error("the secret of the key {name:?} is not Base64 of at least 16 octets: make one with tsig-keygen")]
    Secret {
        /// The key's name.
        name: String,
    },
}

impl TsigKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`TsigKeyError::Name`], and [`TsigKeyError::Secret`] for a secret of fewer than 16 octets.
    pub fn new(name: &str, algorithm: TsigAlgorithm, secret: &[u8]) -> Result<Self, TsigKeyError> {
        let wrong_name = || TsigKeyError::Name { name: name.to_owned() };
        let key_name: KeyName = name.parse().map_err(|_| wrong_name())?;
        if secret.len() < MIN_SECRET {
            return Err(TsigKeyError::Secret { name: name.to_owned() });
        }
        let algorithm = match algorithm {
            TsigAlgorithm::HmacSha256 => Algorithm::Sha256,
            TsigAlgorithm::HmacSha384 => Algorithm::Sha384,
            TsigAlgorithm::HmacSha512 => Algorithm::Sha512,
        };
        let key = Key::new(algorithm, secret, key_name, None, None).map_err(|_| wrong_name())?;
        Ok(Self(Arc::new(key)))
    }

    /// Returns its name, without the final dot.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.name().to_string()
    }
}

impl AsRef<Key> for TsigKey {
    fn as_ref(&self) -> &Key {
        &self.0
    }
}

impl FromStr for TsigKey {
    type Err = TsigKeyError;

    fn from_str(text: &str) -> Result<Self, TsigKeyError> {
        let (algorithm, rest) = text.split_once(':').ok_or(TsigKeyError::Syntax)?;
        let (name, secret) = rest.split_once(':').ok_or(TsigKeyError::Syntax)?;
        let known = TsigAlgorithm::ALL.iter().find(|(_, text)| text.eq_ignore_ascii_case(algorithm));
        let (algorithm, _) = known.ok_or_else(|| TsigKeyError::Algorithm { algorithm: algorithm.to_owned() })?;
        let secret = STANDARD.decode(secret).map_err(|_| TsigKeyError::Secret { name: name.to_owned() })?;
        Self::new(name, *algorithm, &secret)
    }
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TsigKey({})", self.name())
    }
}

/// The shortest secret, in octets: what no search finds.
const MIN_SECRET: usize = 16;
