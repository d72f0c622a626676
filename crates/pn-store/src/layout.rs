//! Which key holds what; the crate's README describes it.

use core::fmt::Display;
use core::net::Ipv4Addr;
use core::str::FromStr;
use std::collections::{BTreeMap, BTreeSet};

use pn_core::{
    AppId, ContainerId, NetworkId, Node, NodeId, Numbers, ProjectId, PublicKey, Record, Rest, State, Timestamp, Vni,
};
use serde::{Deserialize, Serialize};

use crate::registry::RegistryError;
use crate::{Entry, Key, Revision};

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Record(Record),
    /// A project, network or node that the key leads to.
    Text(String),
}

impl Item {
    pub(crate) fn into_value(self) -> Vec<u8> {
        match self {
            Self::Record(record) => record.to_json().into(),
            Self::Text(text) => text.into(),
        }
    }
}

/// Items by their keys.
pub(crate) type Image = BTreeMap<Key, Item>;

/// Returns the prefixes of what a state is read from: its records and heads, which nodes are alive, and the offset of
/// generations.
///
/// What nodes say and are asked is no part of it: an answer alone can be larger than everything else.
pub(crate) fn state() -> [Key; 6] {
    [heads(), key("next/"), nodes(), offset(), projects(), key("rest/")]
}

/// Returns the prefixes of everything that an [`Image`] has a part of, and of the heads: what a state is read from, and the
/// ways to it.
pub(crate) fn state_and_ways() -> Vec<Key> {
    let ways = [key("app/"), all_claims(), key("container/"), members(), key("network/")];
    state().into_iter().chain(ways).collect()
}

fn key(text: &str) -> Key {
    text.parse().expect("ids, addresses and hexadecimal digits are short ASCII")
}

pub(crate) fn node(id: NodeId) -> Key {
    key(&format!("node/{id}/record"))
}

pub(crate) fn nodes() -> Key {
    key("node/")
}

pub(crate) fn alive(id: NodeId) -> Key {
    key(&format!("node/{id}/alive"))
}

pub(crate) fn member(node: NodeId, project: ProjectId) -> Key {
    key(&format!("member/{node}/{project}"))
}

pub(crate) fn members() -> Key {
    key("member/")
}

pub(crate) fn memberships(node: NodeId) -> Key {
    key(&format!("member/{node}/"))
}

pub(crate) fn head(project: ProjectId) -> Key {
    key(&format!("head/{project}"))
}

pub(crate) fn heads() -> Key {
    key("head/")
}

pub(crate) fn project(id: ProjectId) -> Key {
    key(&format!("project/{id}/"))
}

pub(crate) fn projects() -> Key {
    key("project/")
}

pub(crate) fn addresses(project: ProjectId) -> Key {
    key(&format!("project/{project}/address/"))
}

fn address(project: ProjectId, address: Ipv4Addr) -> Key {
    key(&format!("project/{project}/address/{:08x}", address.to_bits()))
}

pub(crate) fn app(id: AppId) -> Key {
    key(&format!("app/{id}"))
}

pub(crate) fn container(id: ContainerId) -> Key {
    key(&format!("container/{id}"))
}

pub(crate) fn network(id: NetworkId) -> Key {
    key(&format!("network/{id}"))
}

pub(crate) fn vni(vni: u32) -> Key {
    key(&format!("claim/vni/{vni:06x}"))
}

pub(crate) fn vnis() -> Key {
    key("claim/vni/")
}

pub(crate) fn all_claims() -> Key {
    key("claim/")
}

pub(crate) fn next_vni() -> Key {
    key("next/vni")
}

pub(crate) fn resting_vnis() -> Key {
    key("rest/vni/")
}

fn resting_vni(since: Timestamp, vni: Vni) -> Key {
    key(&format!("rest/vni/{:016x}/{:06x}", since.as_millis(), vni.get()))
}

/// Returns the keys by which a node claims what no other may have.
pub(crate) fn claims(node: &Node) -> Vec<Key> {
    let mut claims = vec![
        key(&format!("claim/underlay/{}", node.underlay)),
        key(&format!("claim/tunnel/{}", node.tunnel_address)),
        public_key(&node.public_key),
    ];
    claims.extend(node.next_public_key.as_ref().map(public_key));
    claims.sort();
    claims.dedup();
    claims
}

pub(crate) fn public_key(of: &PublicKey) -> Key {
    let hex: String = of.as_bytes().iter().map(|octet| format!("{octet:02x}")).collect();
    key(&format!("claim/key/{hex}"))
}

pub(crate) fn status(node: NodeId) -> Key {
    key(&format!("status/{node}"))
}

pub(crate) fn statuses() -> Key {
    key("status/")
}

pub(crate) fn applied(network: NetworkId, node: NodeId) -> Key {
    key(&format!("applied/{network}/{node}"))
}

pub(crate) fn applied_by(network: NetworkId) -> Key {
    key(&format!("applied/{network}/"))
}

pub(crate) fn confirm(node: NodeId) -> Key {
    key(&format!("confirm/{node}"))
}

/// Returns the keys under no lease of what a node says and is told, which go with the node.
pub(crate) fn said(node: NodeId) -> [Key; 3] {
    [status(node), confirm(node), recall_of(node)]
}

pub(crate) fn offset() -> Key {
    key("offset")
}

pub(crate) fn recall() -> Key {
    key("recall")
}

/// Returns where one node is asked what it has, as all are by [`recall`].
pub(crate) fn recall_of(node: NodeId) -> Key {
    key(&format!("recall/{node}"))
}

pub(crate) fn seen(node: NodeId) -> Key {
    key(&format!("seen/{node}/"))
}

/// What decides whether a project is as it was read: every change of it writes it anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    version: u32,
    /// The number whose turn it is in the network.
    pub(crate) next: u32,
    /// The last changes, so that whoever lost an answer can see whether they were made.
    pub(crate) recent: Vec<String>,
}

impl Default for Head {
    fn default() -> Self {
        Self { version: 1, next: 1, recent: Vec::new() }
    }
}

impl Head {
    const RECENT: usize = 16;

    pub(crate) fn read(entry: &Entry) -> Result<Self, RegistryError> {
        let head: Self = serde_json::from_slice(&entry.value)
            .map_err(|error| RegistryError::record(&entry.key, format!("not a head: {error}")))?;
        if head.version != 1 {
            let reason = format!("a head of version {}: this release reads version 1", head.version);
            return Err(RegistryError::record(&entry.key, reason));
        }
        Ok(head)
    }

    /// Returns the head after another change.
    pub(crate) fn after(&self, change: &str, next: u32) -> Self {
        let skipped = (self.recent.len() + 1).saturating_sub(Self::RECENT);
        let mut recent: Vec<String> = self.recent.iter().skip(skipped).cloned().collect();
        recent.push(change.to_owned());
        Self { version: 1, next, recent }
    }

    pub(crate) fn to_value(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}

/// Reads the record that a key holds; `None` for keys that hold something else.
pub(crate) fn record(entry: &Entry) -> Result<Option<Record>, RegistryError> {
    let key = entry.key.as_str();
    let holds = key.starts_with("project/")
        || key.starts_with("rest/")
        || key == "next/vni"
        || (key.starts_with("node/") && key.ends_with("/record"));
    if !holds {
        return Ok(None);
    }
    let json =
        core::str::from_utf8(&entry.value).map_err(|error| RegistryError::record(&entry.key, error.to_string()))?;
    match Record::from_json(json) {
        Ok(record) => Ok(Some(record)),
        Err(source) => Err(RegistryError::Record { key: entry.key.clone(), source }),
    }
}

/// Reads the id that a key holds.
pub(crate) fn id<T: FromStr<Err: Display>>(entry: &Entry) -> Result<T, RegistryError> {
    let text = String::from_utf8_lossy(&entry.value);
    text.parse().map_err(|error: T::Err| RegistryError::record(&entry.key, error.to_string()))
}

/// Reads the id that follows a prefix.
pub(crate) fn id_in<T: FromStr>(key: &Key, prefix: &Key) -> Option<T> {
    key.strip_prefix(prefix)?.split('/').next()?.parse().ok()
}

/// Returns the nodes that are alive, as entries beneath [`nodes`] say.
pub(crate) fn alive_among(entries: &[Entry]) -> BTreeSet<NodeId> {
    let node = |entry: &Entry| id_in(&entry.key, &nodes()).filter(|node| entry.key == alive(*node));
    entries.iter().filter_map(node).collect()
}

/// Which project apps and networks belong to.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    apps: BTreeMap<AppId, ProjectId>,
    networks: BTreeMap<NetworkId, ProjectId>,
}

impl Owners {
    pub(crate) fn of(records: &[Record]) -> Self {
        let mut owners = Self::default();
        for record in records {
            match record {
                Record::App(app) => drop(owners.apps.insert(app.id, app.project)),
                Record::Network(network) => drop(owners.networks.insert(network.id, network.project)),
                Record::Project(_)
                | Record::Node(_)
                | Record::Container(_)
                | Record::Rest(_)
                | Record::Next(..)
                | _ => (),
            }
        }
        owners
    }

    /// Returns the projects of records, each with the nodes that its containers are on.
    pub(crate) fn hosts(&self, records: &[Record]) -> BTreeSet<(ProjectId, NodeId)> {
        let host = |record: &Record| match record {
            Record::Container(container) => Some((*self.apps.get(&container.slot.app())?, container.node)),
            Record::Project(_) | Record::Node(_) | Record::App(_) | Record::Network(_) | Record::Rest(_) | _ => None,
        };
        records.iter().filter_map(host).collect()
    }
}

/// Returns what the keys of a state hold, heads aside.
pub(crate) fn image(records: &[Record]) -> Image {
    image_of(&Owners::of(records), records)
}

/// Returns what the keys hold that some records of a state are kept in.
pub(crate) fn image_of(owners: &Owners, records: &[Record]) -> Image {
    let mut image = Image::new();
    for record in records {
        insert(&mut image, owners, record);
    }
    image
}

/// Returns the records of a project by their keys.
pub(crate) fn project_records(state: &State, id: ProjectId) -> BTreeMap<Key, Record> {
    let prefix = project(id);
    let items = image(&state.records_of(id)).into_iter().filter(|(key, _)| key.starts_with(&prefix));
    items.filter_map(|(key, item)| if let Item::Record(record) = item { Some((key, record)) } else { None }).collect()
}

/// Returns the nodes that containers among some records are on.
pub(crate) fn hosts<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<NodeId> {
    let node = |record: &Record| if let Record::Container(container) = record { Some(container.node) } else { None };
    records.into_iter().filter_map(node).collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a kind that is newer than this has no key")]
fn insert(image: &mut Image, owners: &Owners, record: &Record) {
    let mut text = |key: Key, id: String| image.insert(key, Item::Text(id));
    let main = match record {
        Record::Project(of) => [project(of.id).as_str(), "record"].concat(),
        Record::App(of) => {
            text(app(of.id), of.project.to_string());
            format!("{}app/{}", project(of.project), of.id)
        }
        Record::Network(of) => {
            text(network(of.id), of.project.to_string());
            text(vni(of.vni.get()), of.id.to_string());
            [project(of.project).as_str(), "network"].concat()
        }
        Record::Node(of) => {
            claims(of).into_iter().for_each(|claim| drop(text(claim, of.id.to_string())));
            node(of.id).to_string()
        }
        Record::Container(of) => {
            let Some(project) = owners.apps.get(&of.slot.app()) else { return };
            text(container(of.id), project.to_string());
            text(member(of.node, *project), project.to_string());
            address(*project, of.address).to_string()
        }
        Record::Rest(Rest::Address { network, address: resting, .. }) => {
            let Some(project) = owners.networks.get(network) else { return };
            address(*project, *resting).to_string()
        }
        Record::Rest(Rest::Vni { vni: resting, network: of, since }) => {
            text(vni(resting.get()), String::new());
            let at = resting_vni(*since, *resting);
            // A network may have come back with another VNI.
            if !owners.networks.contains_key(of) {
                text(network(*of), at.to_string());
            }
            at.to_string()
        }
        Record::Next(Numbers::Vnis, _) => next_vni().to_string(),
        // It is in the head.
        Record::Next(Numbers::Addresses(_), _) => return,
        _ => return,
    };
    image.insert(key(&main), Item::Record(record.clone()));
}

/// What is to be put and deleted so that the keys hold `after` instead of `before`.
pub(crate) fn difference(before: &Image, mut after: Image) -> (Vec<(Key, Item)>, Vec<Key>) {
    let deleted = before.keys().filter(|key| !after.contains_key(*key)).cloned().collect();
    after.retain(|key, item| before.get(key) != Some(item));
    (after.into_iter().collect(), deleted)
}

/// A key as it was read: the revision it had, or that it was absent.
pub(crate) type Seen = BTreeMap<Key, Option<Revision>>;
