//! The node's private key, in a file that nobody else may read.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pn_overlay::PrivateKey;
use zeroize::Zeroizing;

use crate::Error;

/// A node's key, which may be yet to be written.
#[derive(Debug)]
pub(crate) struct NodeKey {
    pub(crate) key: PrivateKey,
    is_new: bool,
}

/// Reads the key, or makes one where there is none yet, which is not written before it is [kept](NodeKey::keep).
///
/// The file holds it as WireGuard's tools do: Base64, and a line feed.
pub(crate) fn load_or_make(path: &Path) -> Result<NodeKey, Error> {
    let shown = path.display();
    match File::open(path) {
        Ok(file) => match read(file) {
            Ok(key) => Ok(NodeKey { key, is_new: false }),
            Err(why) => Err(format!("key file {shown} {why}").into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut octets = Zeroizing::new([0; 32]);
            getrandom::fill(&mut *octets).map_err(|error| format!("cannot make a key: {error}"))?;
            Ok(NodeKey { key: PrivateKey::from_bytes(*octets), is_new: true })
        }
        Err(error) => Err(format!("cannot open key file {shown}: {error}").into()),
    }
}

impl NodeKey {
    /// Writes the key where it is new.
    pub(crate) fn keep(&self, path: &Path) -> Result<(), Error> {
        if !self.is_new {
            return Ok(());
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        }
        write(path, &self.key).map_err(|error| format!("cannot make key file {}: {error}", path.display()).into())
    }
}

fn read(file: File) -> Result<PrivateKey, String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "may be read by others (mode {mode:04o}): `chmod 600` it, and make a new key if one may have"
        ));
    }
    let mut text = Zeroizing::new(String::new());
    // More than a key and a line feed is not one.
    file.take(64).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let mut octets = Zeroizing::new([0; 33]);
    let decoded = STANDARD.decode_slice(text.trim_end(), &mut *octets);
    match (decoded, octets.first_chunk()) {
        (Ok(32), Some(key)) => Ok(PrivateKey::from_bytes(*key)),
        _ => Err("does not hold a key: 32 octets in Base64 are expected".to_owned()),
    }
}

fn write(path: &Path, key: &PrivateKey) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let octets = Zeroizing::new(key.to_bytes());
    let text = Zeroizing::new(format!("{}\n", STANDARD.encode(*octets)));
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn k8_a_key_is_made_once_kept_private_and_refused_where_others_may_read_it() {
        let dir = std::env::temp_dir().join(format!("pn-key-{}", std::process::id()));
        let path = dir.join("below").join("node.key");
        let made = load_or_make(&path).unwrap();
        assert!(!path.exists(), "it is kept when it is needed");
        made.keep(&path).unwrap();
        let loaded = load_or_make(&path).unwrap();
        assert_eq!(loaded.key.public_key(), made.key.public_key());
        loaded.keep(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_make(&path).unwrap_err().to_string();
        assert!(error.contains("may be read by others (mode 0640)"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "AAAA\n", &"A".repeat(1000)] {
            fs::write(&path, text).unwrap();
            let error = load_or_make(&path).unwrap_err().to_string();
            assert!(error.ends_with("does not hold a key: 32 octets in Base64 are expected"), "{error}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
