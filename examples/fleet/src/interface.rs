//! Interfaces that agents give to containers: `pn start --netns` asks for one, `pn-agent` makes it and says so.
//!
//! A platform would have its own way from its scheduler to its nodes; this is the shortest one that works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pn_core::{ContainerId, NodeId};
use pn_store::{Entry, Key, Precondition, Revision, Store, StoreError, StoreExt as _, Transaction, Watch};
use serde::{Deserialize, Serialize};

/// An interface that a container is to have or has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    version: u32,
    /// The network namespace it is to be in.
    pub netns: PathBuf,
    /// How far it is.
    pub progress: Progress,
}

/// How far an interface is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// It was asked for.
    Wanted,
    /// It is there, and its container was made ready.
    Ready {
        /// The store's revision since when the container is.
        revision: u64,
    },
    /// It cannot be made, and why.
    Failed(String),
}

/// Asks for an interface of a container.
///
/// # Errors
/// [`StoreError`].
pub async fn want(store: &dyn Store, node: NodeId, container: ContainerId, netns: &Path) -> Result<(), StoreError> {
    let interface = Interface { version: 1, netns: netns.to_owned(), progress: Progress::Wanted };
    store.commit(Transaction::new().put(key(node, container), json(&interface))).await.map(drop)
}

/// Says how far an interface is; one that is not wanted any more stays so.
///
/// # Errors
/// [`StoreError`].
pub async fn report(
    store: &dyn Store,
    node: NodeId,
    container: ContainerId,
    interface: &Interface,
    progress: Progress,
) -> Result<(), StoreError> {
    let (key, interface) = (key(node, container), Interface { progress, ..interface.clone() });
    let transaction = Transaction::new().when(Precondition::Present(key.clone())).put(key, json(&interface));
    store.commit(transaction).await.map(drop)
}

/// Forgets an interface.
///
/// # Errors
/// [`StoreError`].
pub async fn forget(store: &dyn Store, node: NodeId, container: ContainerId) -> Result<(), StoreError> {
    store.commit(Transaction::new().delete(key(node, container))).await.map(drop)
}

/// Reads the interfaces of a node, and the revision as of which they are.
///
/// # Errors
/// [`StoreError`].
pub async fn list(store: &dyn Store, node: NodeId) -> Result<(Revision, BTreeMap<ContainerId, Interface>), StoreError> {
    let prefix = prefix(node);
    let (revision, entries) = store.list_all(&prefix, None).await?;
    let interfaces = entries.iter().filter_map(|entry| {
        let container = entry.key.strip_prefix(&prefix)?.parse().ok()?;
        Some((container, read(entry)?))
    });
    Ok((revision, interfaces.collect()))
}

/// Follows the interfaces of a node.
///
/// # Errors
/// [`StoreError`].
pub async fn watch(store: &dyn Store, node: NodeId, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
    store.watch(&prefix(node), from).await
}

/// Waits until an interface is there or cannot be made; `None` where neither happens in time.
///
/// # Errors
/// [`StoreError`].
pub async fn settled(
    store: &dyn Store,
    node: NodeId,
    container: ContainerId,
    patience: Duration,
) -> Result<Option<Progress>, StoreError> {
    let key = key(node, container);
    let look = async || {
        let (revision, entry) = store.get_one(&key).await?;
        match entry.as_ref().and_then(read).map(|interface| interface.progress) {
            Some(Progress::Wanted) => (),
            Some(settled) => return Ok(Some(settled)),
            None => return Ok(Some(Progress::Failed("it is not wanted any more".to_owned()))),
        }
        store.watch(&key, revision.next()).await?.next().await?;
        Ok(None)
    };
    let wait = async {
        loop {
            match look().await {
                Ok(Some(settled)) => return Ok(settled),
                Ok(None) => (),
                // A store that is away for a moment is asked again.
                Err(error) if StoreError::is_retryable(&error) => tokio::time::sleep(AGAIN).await,
                Err(error) => return Err(error),
            }
        }
    };
    tokio::time::timeout(patience, wait).await.ok().transpose()
}

/// How long after a failure the store is asked again.
const AGAIN: Duration = Duration::from_millis(200);

fn prefix(node: NodeId) -> Key {
    format!("interface/{node}/").parse().expect("ids are short ASCII")
}

fn key(node: NodeId, container: ContainerId) -> Key {
    format!("{}{container}", prefix(node)).parse().expect("ids are short ASCII")
}

fn json(interface: &Interface) -> Vec<u8> {
    serde_json::to_vec(interface).expect("texts are JSON")
}

/// Reads an interface; one that another release wrote is left to it.
fn read(entry: &Entry) -> Option<Interface> {
    serde_json::from_slice(&entry.value).ok().filter(|interface: &Interface| interface.version == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interface_is_wanted_and_then_there() {
        let store = pn_store::MemoryStore::new();
        let (node, container) = (NodeId::from_u128(1), ContainerId::from_u128(2));
        want(&store, node, container, Path::new("/run/netns/x")).await.unwrap();
        let (_, listed) = list(&store, node).await.unwrap();
        assert_eq!(listed[&container].progress, Progress::Wanted);
        assert_eq!(list(&store, NodeId::from_u128(9)).await.unwrap().1, BTreeMap::new());
        assert_eq!(settled(&store, node, container, Duration::from_millis(20)).await.unwrap(), None);
        let wait = settled(&store, node, container, Duration::from_secs(9));
        let say = report(&store, node, container, &listed[&container], Progress::Ready { revision: 7 });
        let (settled, said) = tokio::join!(wait, say);
        assert_eq!((settled.unwrap(), said.unwrap()), (Some(Progress::Ready { revision: 7 }), ()));
        forget(&store, node, container).await.unwrap();
        report(&store, node, container, &listed[&container], Progress::Ready { revision: 7 }).await.unwrap();
        assert_eq!(list(&store, node).await.unwrap().1, BTreeMap::new(), "what is not wanted is not reported");
    }
}
