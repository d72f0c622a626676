//! What differs between a zone that is there and the one that should be.

use std::collections::BTreeSet;
use std::sync::Arc;

use pn_core::{AppId, Generation, Stage, ZonePlan};

use crate::Zone;
use crate::messages::{Contents, Edit, Rrset, RrsetKey};
use crate::records::Side;

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

/// Returns what a plan says of a zone, of some apps or of all.
pub(super) fn contents(side: Side, plan: &ZonePlan, apps: Option<&BTreeSet<AppId>>) -> Contents {
    let ttl = Zone::new(Arc::new(plan.clone()), 0).ttl();
    let mut contents = Contents::new();
    for names in plan.apps.iter().filter(|names| apps.is_none_or(|apps| apps.contains(&names.app))) {
        for (owner, data) in side.records_of(plan, names.app) {
            let set = contents.entry((owner, data.rtype())).or_insert_with(|| Rrset { ttl, ..Rrset::default() });
            set.rdata.insert(data.rdata());
        }
    }
    contents
}

/// Returns what leads from one to the other, withdrawals first. What a server keeps by itself is left alone.
pub(super) fn difference(have: &Contents, want: &Contents) -> Vec<Edit> {
    let (mut withdrawals, mut additions) = (Vec::new(), Vec::new());
    for (key, set) in have.iter().filter(|(key, _)| !is_the_servers(key)) {
        match want.get(key) {
            Some(wanted) if can_stay(set, wanted) => {
                let gone = set.rdata.difference(&wanted.rdata);
                withdrawals.extend(gone.map(|rdata| Edit::Delete(key.clone(), rdata.clone())));
            }
            _ => withdrawals.push(Edit::DeleteSet(key.clone())),
        }
    }
    for (key, wanted) in want {
        let kept = have.get(key).filter(|set| can_stay(set, wanted));
        let new = wanted.rdata.iter().filter(|rdata| !kept.is_some_and(|set| set.rdata.contains(*rdata)));
        additions.extend(new.map(|rdata| Edit::Add(key.clone(), wanted.ttl, rdata.clone())));
    }
    withdrawals.append(&mut additions);
    withdrawals
}

/// Returns whether records that are wanted may stay where they are, and the others go one by one. A record that is long was put there
/// by somebody else, and may not fit into an update that names it: then all of them go, and ours come again.
fn can_stay(there: &Rrset, wanted: &Rrset) -> bool {
    there.ttl == wanted.ttl && there.rdata.iter().all(|rdata| rdata.len() <= LONGEST)
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

/// More octets than any record of ours has.
const LONGEST: usize = 512;

const TYPE_NS: u16 = 2;
const TYPE_TXT: u16 = 16;

/// RRSIG, NSEC, DNSKEY, NSEC3, NSEC3PARAM, CDS, CDNSKEY, ZONEMD, and BIND's own for signing.
const DNSSEC_TYPES: [u16; 9] = [46, 47, 48, 50, 51, 59, 60, 63, 65_534];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Model, app, network};
    use crate::messages::Request;

    fn plan(model: &Model) -> Arc<ZonePlan> {
        model.zones().zones[&network(1)].clone()
    }

    /// Two apps, of which the second has many containers.
    fn model() -> Model {
        let mut model = Model::new();
        model.app(1, 1, "web:3 idle:0");
        model.app(2, 1, "web:500");
        model.run(1, "web", 1);
        for index in 1..=500 {
            model.run(2, "web", index);
        }
        model
    }

    #[test]
    fn an_update_is_as_long_as_the_change() {
        let mut model = model();
        let before = plan(&model);
        let container = model.run(1, "web", 2);
        let after = plan(&model);
        assert_eq!(touched(Some(&before), Some(&after)), BTreeSet::from([app(1)]));
        let of = |plan: &ZonePlan| contents(Side::Forward, plan, Some(&BTreeSet::from([app(1)])));
        // The container's name, its type's and its app's.
        assert_eq!(difference(&of(&before), &of(&after)).len(), 3);
        assert_eq!(
            difference(&contents(Side::Forward, &before, None), &contents(Side::Forward, &after, None)),
            difference(&of(&before), &of(&after))
        );
        model.apply(pn_core::Change::Fail(container));
        assert_eq!(difference(&of(&after), &of(&plan(&model))).len(), 3);
        assert_eq!(touched(None, Some(&after)), BTreeSet::from([app(1), app(2)]));
    }

    #[test]
    fn what_is_made_leads_to_what_is_wanted() {
        let zone = model();
        let want = contents(Side::Forward, &plan(&zone), None);
        let set = |ttl, rdata: &[&[u8]]| Rrset { ttl, rdata: rdata.iter().map(|rdata| rdata.to_vec()).collect() };
        let mut have = want.clone();
        let web = (format!("web.{}", app(1)), 1);
        have.insert(web.clone(), set(60, &[&[10, 240, 0, 1], &[10, 240, 0, 9]]));
        have.insert((format!("web.{}", app(2)), 1), set(5, &[&[10, 240, 0, 2], &[10, 0, 0, 1]]));
        have.insert(("foreign".to_owned(), 16), set(5, &[b"\x01x"]));
        have.insert((String::new(), 1), set(5, &[&[10, 240, 0, 1]]));
        have.insert((String::new(), TYPE_NS), set(5, &[b"\x02ns\0"]));
        have.insert((format!("1.web.{}", app(1)), 46), set(5, &[b"signature"]));
        have.remove(&(format!("idle.{}", app(1)), crate::records::TYPE_EMPTY));
        // Beside records of ours, and longer than any update.
        let long = have.get_mut(&(format!("1.web.{}", app(1)), 1)).unwrap();
        assert!(long.rdata.insert(vec![7; 60_500]));
        let edits = difference(&have, &want);
        let mut rest = &edits[..];
        while !rest.is_empty() {
            let (_, fitted) = Request::update("zone.example", &[], rest, &[], None, (1, 0));
            assert!(fitted > 0, "{} edits do not fit", rest.len());
            rest = &rest[fitted..];
        }
        for edit in edits {
            match edit {
                Edit::Add(key, ttl, rdata) => {
                    let set = have.entry(key).or_default();
                    set.ttl = ttl;
                    set.rdata.insert(rdata);
                }
                Edit::Delete(key, rdata) => assert!(have.get_mut(&key).unwrap().rdata.remove(&rdata)),
                Edit::DeleteSet(key) => assert!(have.remove(&key).is_some()),
                Edit::Soa(_) => unreachable!("no SOA record is among them"),
            }
        }
        have.retain(|key, _| !is_the_servers(key));
        assert_eq!(have, want);
        assert_eq!(difference(&have, &want), []);
    }

    #[test]
    fn markers_read_back() {
        for of in [(Generation::new(0), Stage::Meanwhile), (Generation::new(u64::MAX), Stage::Settled)] {
            let set = Rrset { ttl: 0, rdata: BTreeSet::from([marker(of)]) };
            assert_eq!(read_marker(&set), Marker::Ours(of));
        }
        let foreign: [&[u8]; 5] = [b"", b"\x03x y", b"\x099 settled\0", b"\x0a07 settled", b"\x099 Settled"];
        for rdata in foreign {
            let set = Rrset { ttl: 0, rdata: BTreeSet::from([rdata.to_vec()]) };
            assert_eq!(read_marker(&set), Marker::Foreign, "{rdata:?}");
        }
    }
}
