//! Stores by their address.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{MemoryStore, Store, StoreError};

/// Why there is no store at an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No kind of store is called this.
    #[error("{url:?} is no store: memory:, sqlite:PATH or etcd://HOST:PORT/PREFIX is expected")]
    Scheme {
        /// The address that was given.
        url: String,
    },
    /// Stores of this kind were left out of this program.
    #[error("{url:?} cannot be opened: this program was built without {feature}")]
    NotBuilt {
        /// The address that was given.
        url: String,
        /// The feature it needs.
        feature: &'static str,
    },
    /// What follows the scheme is wrong.
    #[error("{url:?} is no store: {reason}")]
    Syntax {
        /// The address that was given, without its password.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A file that the address names cannot be read.
    #[error("cannot read {path}, which the store's address names", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
}

/// Opens the store at an address.
///
/// - `memory:` is a new one in this process.
/// - `sqlite:PATH` is a file that the processes of this machine share (feature `sqlite`).
/// - `etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/PREFIX[?ca=FILE[&cert=FILE&key=FILE]]` is what has the prefix in a cluster
///   (feature `etcd`); with `ca` by TLS. Characters that mean something in an address are written `%XX` in name and password.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    if url == "memory:" {
        return Ok(Arc::new(MemoryStore::new()));
    }
    if let Some(path) = url.strip_prefix("sqlite:") {
        return sqlite(url, path).await;
    }
    match url.strip_prefix("etcd://") {
        Some(rest) => etcd(url, rest).await,
        None => Err(ConnectError::Scheme { url: url.to_owned() }),
    }
}

#[cfg(feature = "sqlite")]
async fn sqlite(url: &str, path: &str) -> Result<Arc<dyn Store>, ConnectError> {
    if path.is_empty() {
        return Err(ConnectError::Syntax { url: url.to_owned(), reason: "a path is expected after sqlite:" });
    }
    Ok(Arc::new(crate::SqliteStore::open(path).await?))
}

#[cfg(not(feature = "sqlite"))]
#[expect(clippy::unused_async, reason = "it is async where the feature is on")]
async fn sqlite(url: &str, _path: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::NotBuilt { url: url.to_owned(), feature: "sqlite" })
}

#[cfg(not(feature = "etcd"))]
#[expect(clippy::unused_async, reason = "it is async where the feature is on")]
async fn etcd(url: &str, _rest: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::NotBuilt { url: url.to_owned(), feature: "etcd" })
}

#[cfg(feature = "etcd")]
async fn etcd(url: &str, rest: &str) -> Result<Arc<dyn Store>, ConnectError> {
    // A password is nobody's business, even where its @, / or ? was not written as it has to be.
    let shown = rest.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, place)| format!("etcd://…@{place}"));
    let wrong = |reason| ConnectError::Syntax { url: shown.clone(), reason };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (place, prefix) = place.split_once('/').unwrap_or((place, ""));
    let (user, endpoints) = match place.rsplit_once('@') {
        Some((user, endpoints)) => (Some(user), endpoints),
        None => (None, place),
    };
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    if endpoints.iter().any(|endpoint| endpoint.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err())) {
        return Err(wrong("HOST:PORT is expected after etcd://, or several with commas between"));
    }
    let mut options = crate::EtcdOptions::default();
    if let Some(user) = user {
        let (name, password) = user.split_once(':').ok_or_else(|| wrong("USER:PASSWORD is expected before @"))?;
        let plain = |text| percent_decode(text).ok_or_else(|| wrong("% has to be followed by two hexadecimal digits"));
        options.user = Some(crate::Credentials { name: plain(name)?, password: plain(password)? });
    }
    options.tls = tls(query, wrong)?;
    let prefix = prefix.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let prefix = prefix.parse().map_err(|_| wrong("the prefix has to be printable ASCII"))?;
    let store = crate::EtcdStore::connect(&endpoints, options).await?;
    Ok(Arc::new(crate::Prefixed::new(store, prefix)))
}

#[cfg(feature = "etcd")]
fn tls(query: &str, wrong: impl Fn(&'static str) -> ConnectError) -> Result<Option<crate::Tls>, ConnectError> {
    let (mut ca, mut cert, mut key) = (None, None, None);
    for item in query.split('&').filter(|item| !item.is_empty()) {
        let file = match item.split_once('=') {
            Some(("ca", path)) => (&mut ca, path),
            Some(("cert", path)) => (&mut cert, path),
            Some(("key", path)) => (&mut key, path),
            _ => return Err(wrong("only ca=FILE, cert=FILE and key=FILE are expected after ?")),
        };
        let path = PathBuf::from(file.1);
        *file.0 = Some(std::fs::read(&path).map_err(|source| ConnectError::File { path, source })?);
    }
    match (ca, cert, key) {
        (None, None, None) => Ok(None),
        (Some(ca), None, None) => Ok(Some(crate::Tls { ca, identity: None })),
        (Some(ca), Some(cert), Some(key)) => Ok(Some(crate::Tls { ca, identity: Some((cert, key)) })),
        _ => Err(wrong("cert and key go together, and need ca")),
    }
}

#[cfg(feature = "etcd")]
fn percent_decode(text: &str) -> Option<String> {
    let mut octets = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, beyond)) = rest.split_first() {
        rest = beyond;
        if *first != b'%' {
            octets.push(*first);
            continue;
        }
        let digits = core::str::from_utf8(rest.get(..2)?).ok()?;
        octets.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    async fn refusal(url: &str) -> String {
        let error = connect(url).await.err().map(|error| (error.to_string(), error.source().map(ToString::to_string)));
        let (message, source) = error.expect(url);
        source.map_or(message.clone(), |source| format!("{message}: {source}"))
    }

    #[tokio::test]
    async fn what_is_no_store_is_refused_with_its_reason() {
        for url in ["", "redis://x", "memory:x", "/var/lib/state.db", "etcd:x"] {
            let expected = "is no store: memory:, sqlite:PATH or etcd://HOST:PORT/PREFIX is expected";
            assert_eq!(refusal(url).await, format!("{url:?} {expected}"));
        }
        connect("memory:").await.unwrap();
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn a_file_is_opened_or_the_reason_said() {
        let dir = tempfile::tempdir().unwrap();
        connect(&format!("sqlite:{}", dir.path().join("state.db").display())).await.unwrap();
        assert!(refusal("sqlite:").await.ends_with("a path is expected after sqlite:"));
        let reason = refusal("sqlite:/nowhere/at/all.db").await;
        assert!(reason.ends_with("cannot open /nowhere/at/all.db: the store cannot be reached"), "{reason}");
    }

    #[cfg(feature = "etcd")]
    #[tokio::test]
    async fn an_address_of_a_cluster_is_checked_before_anybody_is_asked() {
        for (url, reason) in [
            ("etcd://", "HOST:PORT is expected after etcd://, or several with commas between"),
            ("etcd://host/prefix", "HOST:PORT is expected after etcd://, or several with commas between"),
            ("etcd://a:1,b/prefix", "HOST:PORT is expected after etcd://, or several with commas between"),
            ("etcd://a:1/é", "the prefix has to be printable ASCII"),
            ("etcd://a:1/p?cert=x", "cannot read x, which the store's address names"),
            ("etcd://a:1/p?ca=/etc/a@b/x", "cannot read /etc/a@b/x, which the store's address names"),
            ("etcd://a:1/p?tls=x", "only ca=FILE, cert=FILE and key=FILE are expected after ?"),
        ] {
            assert!(refusal(url).await.contains(reason), "{url}: {}", refusal(url).await);
        }
        for secret in ["secret", "user:secret%4", "user:secret/", "user:1?secret"] {
            let secret = &format!("etcd://{secret}@a:1/p");
            let reason = refusal(secret).await;
            assert!(reason.contains("etcd://…@a:1/p") && !reason.contains("secret"), "{reason}");
        }
        assert_eq!(percent_decode("a%40b%3a").as_deref(), Some("a@b:"));
        let unreachable = refusal("etcd://127.0.0.1:1/p").await;
        assert!(unreachable.contains("cannot connect to 127.0.0.1:1: the store cannot be reached"), "{unreachable}");
    }
}
