use std::sync::Arc;

use pn_core::{
    App, AppId, Change, ContainerId, ContainerType, NetworkId, NetworkRequest, Node, NodeId, Project, PublicKey,
    Region, Slot, Terms, Timestamp,
};

use super::*;
use crate::{MemoryStore, StoreExt as _};

fn registry() -> Registry {
    Registry::new(Arc::new(MemoryStore::new()), Region::default())
}

/// A region with everything in it that can be recorded.
async fn region() -> Registry {
    let registry = registry();
    let text = || "x".parse().unwrap();
    let terms = || Terms { accepted_by: text(), version: text(), accepted_at: Timestamp::ZERO };
    let node = NodeId::from_u128(1);
    let mut changes = vec![Change::AddNode(Node::new(
        node,
        text(),
        "192.0.2.1:51820".parse().unwrap(),
        "100.64.0.1".parse().unwrap(),
        PublicKey::new([1; 32]),
    ))];
    for n in 1..=3 {
        let (project, app) = (ProjectId::from_u128(n), AppId::from_u128(n));
        changes.push(Change::AddProject(Project::new(project, text())));
        changes.push(Change::EnablePrivateNetwork(NetworkRequest::new(project, NetworkId::from_u128(n), terms())));
        if n == 3 {
            changes.push(Change::DisablePrivateNetwork(project));
            continue;
        }
        changes.push(Change::AddApp(App::new(app, project, text())));
        changes.push(Change::Scale { app, formation: "web:200".parse().unwrap() });
        for index in 1..=130 {
            let container = ContainerId::from_u128(n * 1000 + u128::from(index));
            let slot = Slot::new(app, ContainerType::web(), index).unwrap();
            changes.push(Change::Start { container, slot, node });
            if index > 120 {
                changes.push(Change::Fail(container));
            }
        }
    }
    for change in changes {
        registry.apply(change).await.unwrap();
    }
    registry
}

async fn saved(registry: &Registry) -> Vec<u8> {
    let mut file = Vec::new();
    registry.backup(&mut file).await.unwrap();
    file
}

async fn entries(registry: &Registry) -> Vec<(Key, Vec<u8>)> {
    let (_, entries) = registry.store().list_all(&Key::all(), None).await.unwrap();
    let not = [layout::heads(), layout::offset()];
    let others = entries.into_iter().filter(|entry| !not.iter().any(|not| entry.key.starts_with(not)));
    others.map(|entry| (entry.key, entry.value)).collect()
}

#[tokio::test]
async fn an_empty_store_becomes_what_was_backed_up() {
    let from = region().await;
    let file = saved(&from).await;
    let to = registry();
    let summary = to.restore(&mut &file[..]).await.unwrap();
    let (before, after) = (from.state().await.unwrap(), to.state().await.unwrap());
    assert_eq!(summary.records, before.records().len() as u64);
    assert_eq!(summary.written, summary.records);
    assert_eq!(before.records(), after.records());
    assert_eq!(entries(&from).await, entries(&to).await);
    assert!(after.generation() > before.generation(), "agents do not take it for something older");
    // A second time there is nothing to do, and life goes on.
    assert_eq!(to.restore(&mut &file[..]).await.unwrap().written, 0);
    let slot = Slot::new(AppId::from_u128(1), ContainerType::web(), 131).unwrap();
    let change = Change::Start { container: ContainerId::from_u128(9), slot, node: NodeId::from_u128(1) };
    let given = to.apply(change.clone()).await.unwrap();
    let also = from.apply(change).await.unwrap();
    let id = ContainerId::from_u128(9);
    assert_eq!(given.container(id), also.container(id), "whose turn it is was restored, too");
}

#[tokio::test]
async fn a_damaged_store_gets_back_what_it_lost_and_keeps_what_is_new() {
    let registry = region().await;
    let file = saved(&registry).await;
    let before = entries(&registry).await;
    let project = Project::new(ProjectId::from_u128(7), "new".parse().unwrap());
    registry.apply(Change::AddProject(project)).await.unwrap();
    let mut lost = Transaction::new();
    for (key, _) in before.iter().step_by(9) {
        lost = lost.delete(key.clone());
        if lost.operations.len() == 100 {
            registry.store().commit(core::mem::take(&mut lost)).await.unwrap();
        }
    }
    registry.store().commit(lost).await.unwrap();
    registry.restore(&mut &file[..]).await.unwrap();
    let after = entries(&registry).await;
    assert!(before.iter().all(|entry| after.contains(entry)));
    assert_eq!(after.len(), before.len() + 1);
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_nothing_written() {
    let file = String::from_utf8(saved(&region().await).await).unwrap();
    let lines: Vec<&str> = file.lines().collect();
    let without = |n: usize| [&lines[..n], &lines[n + 1..]].concat().join("\n") + "\n";
    let middle = lines.len() / 2;
    for (file, expected) in [
        (String::new(), "not a backup: it does not begin as one".to_owned()),
        ("{}\n".to_owned(), "not a backup: it does not begin as one".to_owned()),
        ("\u{0}\u{1}".to_owned(), "not a backup: it does not begin as one".to_owned()),
        (
            file.replacen("\"version\":1", "\"version\":2", 1),
            "a backup of version 2: this release reads version 1".to_owned(),
        ),
        (file[..file.len() - 3].to_owned(), "the backup is cut off".to_owned()),
        (file[..file.len() / 2].to_owned(), "the backup is cut off".to_owned()),
        (lines[0].to_owned() + "\n", "the backup is cut off".to_owned()),
        (without(middle), "the backup is cut off".to_owned()),
        (file.clone() + "more\n", "the backup is cut off".to_owned()),
        (file.replacen("10.240.0.7", "10.240.0.8", 1), "the backup is damaged: its checksum is".to_owned()),
        (file.replacen("\"created_ms\":1", "\"created_ms\":2", 1), "the backup is damaged: its checksum is".to_owned()),
    ] {
        let to = registry();
        let error = to.restore(&mut file.as_bytes()).await.unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(to.store().get_one(&"x".parse().unwrap()).await.unwrap().0, Revision::ZERO, "nothing was written");
    }
}

#[tokio::test]
async fn a_backup_that_contradicts_the_store_is_refused() {
    let file = saved(&region().await).await;
    let to = registry();
    let node = Node::new(
        NodeId::from_u128(8),
        "other".parse().unwrap(),
        "192.0.2.8:1".parse().unwrap(),
        "100.64.0.8".parse().unwrap(),
        PublicKey::new([8; 32]),
    );
    to.apply(Change::AddNode(node)).await.unwrap();
    let project = ProjectId::from_u128(50);
    to.apply(Change::AddProject(Project::new(project, "p".parse().unwrap()))).await.unwrap();
    let text = || "x".parse().unwrap();
    let terms = Terms { accepted_by: text(), version: text(), accepted_at: Timestamp::ZERO };
    to.apply(Change::EnablePrivateNetwork(NetworkRequest::new(project, NetworkId::from_u128(50), terms)))
        .await
        .unwrap();
    let before = entries(&to).await;
    // Its VNI is one that the backup has given to another network.
    let error = to.restore(&mut &file[..]).await.unwrap_err();
    assert!(matches!(error, BackupError::Registry(RegistryError::Contradiction(_))), "{error:?}");
    assert_eq!(entries(&to).await, before);
}
