//! The transaction that brings the store to a new state, and changes that are too much for one.

use std::collections::BTreeMap;

use pn_core::{Change, ContainerType, Formation, NetworkId, NodeId, Numbers, ProjectId, Record, State};

use super::share::Share;
use crate::layout::{self, Head, Item};
use crate::{Key, Transaction};

/// Returns what is to be put and deleted so that the store has other records than it had.
fn difference(share: &Share, records: &[Record]) -> (Vec<(Key, Item)>, Vec<Key>) {
    let (before, after) = (layout::Owners::of(&share.records), layout::Owners::of(records));
    // Records are in order, so most that did not change stand at both ends.
    let (mut old, mut new) = (&share.records[..], records);
    while let ([one, olds @ ..], [other, news @ ..]) = (old, new)
        && one == other
        && !share.is_linked
    {
        (old, new) = (olds, news);
    }
    while let ([olds @ .., one], [news @ .., other]) = (old, new)
        && one == other
        && !share.is_linked
    {
        (old, new) = (olds, news);
    }
    let (mut old, mut new) = (layout::image_of(&before, old), layout::image_of(&after, new));
    for key in &share.foreign {
        old.remove(key);
        new.remove(key);
    }
    // Several containers share a membership.
    let prefix = layout::members();
    old.retain(|key, _| !key.starts_with(&prefix));
    new.retain(|key, _| !key.starts_with(&prefix));
    let (before, after) = (before.hosts(&share.records), after.hosts(records));
    let (mut puts, mut deleted) = layout::difference(&old, new);
    let member = |(project, node): &(ProjectId, NodeId)| layout::member(*node, *project);
    puts.extend(after.difference(&before).map(|host| (member(host), Item::Text(host.0.to_string()))));
    deleted.extend(before.difference(&after).map(member));
    (puts, deleted)
}

/// Makes the transaction that brings the store from what was read to the share's state, and the heads that it puts.
pub(super) fn write(share: &Share, mark: &str) -> (Transaction, BTreeMap<ProjectId, Head>) {
    let records = share.state.records();
    let mut nexts: BTreeMap<NetworkId, u32> = BTreeMap::new();
    for record in &records {
        if let Record::Next(Numbers::Addresses(network), next) = record {
            nexts.insert(*network, *next);
        }
    }
    let (puts, mut deleted) = difference(share, &records);
    let gone = share.heads.keys().filter(|project| share.state.network_of(**project).is_none());
    let gone: Vec<Key> = gone.map(|project| layout::addresses(*project)).collect();
    let mut transaction = Transaction::new();
    for prefix in gone {
        let count = deleted.len();
        deleted.retain(|key| !key.starts_with(&prefix));
        if deleted.len() < count {
            transaction = transaction.delete_prefix(prefix);
        }
    }
    let mut heads = BTreeMap::new();
    for (project, head) in &share.heads {
        let prefix = layout::project(*project);
        let network = share.state.network_of(*project).map(|network| network.id);
        let next = network.and_then(|network| nexts.get(&network).copied()).unwrap_or(1);
        let is_touched = puts.iter().map(|(key, _)| key).chain(&deleted).any(|key| key.starts_with(&prefix));
        if !is_touched && transaction.operations.is_empty() {
            continue;
        }
        if share.state.project(*project).is_none() {
            transaction = transaction.delete(layout::head(*project));
            continue;
        }
        let head = head.after(mark, next);
        transaction = transaction.put(layout::head(*project), head.to_value());
        heads.insert(*project, head);
    }
    for (key, item) in puts {
        transaction.preconditions.extend(share.precondition(&key).filter(|_| !share.asked.contains_key(&key)));
        let value = Item::into_value(item);
        transaction = transaction.put(key, value);
    }
    for key in deleted {
        transaction.preconditions.extend(share.precondition(&key).filter(|_| !share.asked.contains_key(&key)));
        transaction = transaction.delete(key);
    }
    if !transaction.operations.is_empty() {
        transaction.preconditions.extend(share.asked.keys().filter_map(|key| share.precondition(key)));
        transaction.preconditions.extend(share.also.iter().cloned());
    }
    (transaction, heads)
}

/// Returns a scaling down that drains few enough containers to come before one that drains too many.
pub(super) fn first(before: &State, change: &Change) -> Option<Change> {
    let Change::Scale { app, formation } = change else { return None };
    let network = before.network_of(before.app(*app)?.project)?.id;
    let mut live: BTreeMap<ContainerType, Vec<u32>> = BTreeMap::new();
    for container in before.containers(network).filter(|container| container.slot.app() == *app && container.is_live())
    {
        live.entry(container.slot.container_type()).or_default().push(container.slot.index());
    }
    let (mut left, mut scaled) = (MOST_DRAINED, String::new());
    for (container_type, count) in formation.types() {
        let mut beyond: Vec<u32> = live.remove(container_type).unwrap_or_default();
        beyond.retain(|index| *index > count);
        beyond.sort_unstable_by(|one, two| two.cmp(one));
        beyond.dedup();
        match beyond.get(left) {
            // Those above this one go first.
            Some(kept) => {
                let formation: Formation = format!("{scaled} {container_type}:{kept}").parse().ok()?;
                return Some(Change::Scale { app: *app, formation });
            }
            None => {
                left -= beyond.len();
                scaled = format!("{scaled} {container_type}:{count}");
            }
        }
    }
    None
}

/// How many containers one step of scaling drains.
const MOST_DRAINED: usize = 80;
