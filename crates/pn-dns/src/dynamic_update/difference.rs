//! What differs between a zone that is there and the one that should be.

use std::collections::BTreeSet;
use std::sync::Arc;

use pn_core::{AppId, Generation, Stage, ZonePlan};

use crate::Zone;
use crate::messages::{Contents, Edit, Rrset, RrsetKey};
use crate::records::{records, records_of};

/// Returns the apps whose names may differ between two plans: those that the plans do not share.
pub(super) fn touched(a: Option<&ZonePlan>, b: Option<&ZonePlan>) -> BTreeSet<AppId> {
    let apps = |plan: Option<&ZonePlan>| plan.map(|plan| plan.apps.to_vec()).unwrap_or_default();
    let (before, after) = (apps(a), apps(b));
    let all = before.iter().chain(&after).map(|names| names.app);
    let (Some(a), Some(b)) = (a, b) else {
        return all.collect();
    };
    if (a.ttl, a.ipv6) != (b.ttl, b.ipv6) {
        return all.collect();
    }
    let shared = |app: &AppId| a.app(*app).zip(b.app(*app)).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
    all.filter(|app| !shared(app)).collect()
}

/// Returns what a plan says, of some apps or of all.
pub(super) fn contents(plan: &ZonePlan, apps: Option<&BTreeSet<AppId>>) -> Contents {
    let ttl = Zone::new(Arc::new(plan.clone()), 0).ttl();
    let mut contents = Contents::new();
    let mut add = |(owner, data): (String, crate::records::Data)| {
        let set = contents.entry((owner, data.rtype())).or_insert_with(|| Rrset { ttl, ..Rrset::default() });
        set.rdata.insert(data.rdata());
    };
    match apps {
        None => records(plan).for_each(&mut add),
        Some(apps) => apps.iter().flat_map(|app| records_of(plan, *app)).for_each(&mut add),
    }
    contents
}

/// Returns what leads from one to the other, withdrawals first. What a server keeps by itself is left alone.
pub(super) fn difference(have: &Contents, want: &Contents) -> Vec<Edit> {
    let (mut withdrawals, mut additions) = (Vec::new(), Vec::new());
    for (key, set) in have.iter().filter(|(key, _)| !is_the_servers(key)) {
        match want.get(key) {
            Some(wanted) if wanted.ttl == set.ttl => {
                let gone = set.rdata.difference(&wanted.rdata);
                withdrawals.extend(gone.map(|rdata| Edit::Delete(key.clone(), rdata.clone())));
            }
            _ => withdrawals.push(Edit::DeleteSet(key.clone())),
        }
    }
    for (key, wanted) in want {
        let kept = have.get(key).filter(|set| set.ttl == wanted.ttl);
        let new = wanted.rdata.iter().filter(|rdata| !kept.is_some_and(|set| set.rdata.contains(*rdata)));
        additions.extend(new.map(|rdata| Edit::Add(key.clone(), wanted.ttl, rdata.clone())));
    }
    withdrawals.append(&mut additions);
    withdrawals
}

/// Returns whether records are not ours: NS of the apex, and what a server that signs its zone keeps in it.
pub(super) fn is_the_servers((owner, rtype): &RrsetKey) -> bool {
    (owner.is_empty() && *rtype == TYPE_NS) || DNSSEC_TYPES.contains(rtype)
}

/// What stands where the marker should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// The marker of a set.
    Ours((Generation, Stage)),
    /// Something that no publisher wrote.
    Foreign,
    /// Nothing.
    Missing,
}

/// Returns where the marker stands.
pub(super) fn marker_key() -> RrsetKey {
    ("_generation".to_owned(), TYPE_TXT)
}

/// Returns the marker of a set: the one character-string of a TXT record.
pub(super) fn marker((generation, stage): (Generation, Stage)) -> Vec<u8> {
    let stage = match stage {
        Stage::Meanwhile => "meanwhile",
        Stage::Settled => "settled",
    };
    let text = format!("{generation} {stage}");
    let mut rdata = vec![text.len() as u8];
    rdata.extend_from_slice(text.as_bytes());
    rdata
}

/// Reads a marker.
pub(super) fn read_marker(set: &Rrset) -> Marker {
    let read = || {
        let rdata = set.rdata.first().filter(|_| set.rdata.len() == 1)?;
        let text = core::str::from_utf8(rdata.get(1..)?).ok()?;
        let (generation, stage) = text.split_once(' ')?;
        let stage = if stage == "settled" { Stage::Settled } else { Stage::Meanwhile };
        let read = (Generation::new(generation.parse().ok()?), stage);
        (marker(read) == *rdata).then_some(read)
    };
    read().map_or(Marker::Foreign, Marker::Ours)
}

const TYPE_NS: u16 = 2;
const TYPE_TXT: u16 = 16;

/// RRSIG, NSEC, DNSKEY, NSEC3, NSEC3PARAM, CDS, CDNSKEY, ZONEMD, and BIND's own for signing.
const DNSSEC_TYPES: [u16; 9] = [46, 47, 48, 50, 51, 59, 60, 63, 65_534];
