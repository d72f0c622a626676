//! What a zone consists of, record by record, for whoever keeps zones in another form.
//!
//! | owner | records |
//! |---|---|
//! | every name with containers | A, and AAAA where the network has IPv6 |
//! | `_PORT._PROTOCOL` beneath a type that declares a port | SRV, one for each container |
//! | a declared type without containers, and its ports | [`Data::Empty`], so that they exist (RFC 8020) |
//! | in a reverse zone, every address of a container | PTR |
//!
//! Owners are relative to the zone and in lower case: names that differ only by case are one name. SOA and NS of the apex are
//! not among them; each form has its own.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::BTreeMap;

use pn_core::{AppId, Name, NameScope, NetworkDomain, NetworkId, Protocol, Slot, ZonePlan};

use crate::zone::ReverseZone;

/// Which of a network's zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// That of its names.
    Forward,
    /// One of those of its addresses.
    Reverse(ReverseZone),
}

impl Side {
    /// Returns every zone of a network.
    pub(crate) fn all(plan: &ZonePlan) -> impl Iterator<Item = Self> + use<> {
        core::iter::once(Self::Forward).chain(ReverseZone::of(plan.subnet, plan.ipv6).map(Self::Reverse))
    }

    /// Returns the zone's name, without the final dot.
    pub(crate) fn name(self, network: NetworkId) -> String {
        match self {
            Self::Forward => NetworkDomain(network).to_string(),
            Self::Reverse(zone) => zone.to_string(),
        }
    }

    /// Returns what one app has in the zone.
    pub(crate) fn records_of(self, plan: &ZonePlan, app: AppId) -> Box<dyn Iterator<Item = (String, Data)> + Send> {
        match self {
            Self::Forward => Box::new(records_of(plan, app)),
            Self::Reverse(zone) => Box::new(pointers_of(plan, app, zone).into_iter()),
        }
    }
}

/// The data of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A port, and a container that listens on it.
    Srv(u16, Name),
    /// The container that has an address.
    Ptr(Name),
    /// Nothing, in a type for private use (RFC 6895 §3.1): a name without addresses would otherwise not exist.
    Empty,
}

/// TYPE of [`Data::Empty`].
pub(crate) const TYPE_EMPTY: u16 = 65_280;

impl Data {
    /// Returns its TYPE.
    pub(crate) const fn rtype(self) -> u16 {
        match self {
            Self::A(_) => 1,
            Self::Ptr(_) => 12,
            Self::Aaaa(_) => 28,
            Self::Srv(..) => 33,
            Self::Empty => TYPE_EMPTY,
        }
    }

    /// Returns its RDATA.
    pub(crate) fn rdata(self) -> Vec<u8> {
        match self {
            Self::A(address) => address.octets().to_vec(),
            Self::Aaaa(address) => address.octets().to_vec(),
            Self::Srv(port, target) => {
                // Priority and weight are 0.
                let mut rdata = vec![0; 4];
                rdata.extend_from_slice(&port.to_be_bytes());
                push_name(&mut rdata, target);
                rdata
            }
            Self::Ptr(target) => {
                let mut rdata = Vec::new();
                push_name(&mut rdata, target);
                rdata
            }
            Self::Empty => Vec::new(),
        }
    }
}

/// Adds a name in wire form and lower case.
fn push_name(rdata: &mut Vec<u8>, name: Name) {
    for label in name.to_string().to_ascii_lowercase().split('.') {
        rdata.push(label.len() as u8);
        rdata.extend_from_slice(label.as_bytes());
    }
    rdata.push(0);
}

impl fmt::Display for Data {
    /// Prints type and data as in a master file (RFC 1035 §5, RFC 3597 §5).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => write!(f, "A {address}"),
            Self::Aaaa(address) => write!(f, "AAAA {address}"),
            Self::Srv(port, target) => write!(f, "SRV 0 0 {port} {}", format!("{target:#}").to_ascii_lowercase()),
            Self::Ptr(target) => write!(f, "PTR {}", format!("{target:#}").to_ascii_lowercase()),
            Self::Empty => write!(f, "TYPE{TYPE_EMPTY} \\# 0"),
        }
    }
}

/// Returns every record of a zone but those of its apex, app by app.
pub(crate) fn records(plan: &ZonePlan) -> impl Iterator<Item = (String, Data)> {
    plan.apps.iter().flat_map(|names| records_of(plan, names.app))
}

/// Returns the records of one app's names, ordered by owner and data.
pub(crate) fn records_of(plan: &ZonePlan, app: AppId) -> impl Iterator<Item = (String, Data)> + use<> {
    let mut records: BTreeMap<String, Vec<Data>> = BTreeMap::new();
    for (name, addresses) in plan.names_of(app) {
        let data = records.entry(relative(&name)).or_default();
        data.extend(addresses.iter().copied().map(Data::A));
        data.extend(plan.ipv6.iter().flat_map(|prefix| addresses.iter().map(|a| Data::Aaaa(prefix.address(*a)))));
        data.sort_unstable();
    }
    for of_type in plan.app(app).into_iter().flat_map(|names| &names.types) {
        let name = relative(&Name::of_type(plan.network, app, of_type.container_type));
        let slots = of_type.containers.iter().filter_map(|(n, _)| Slot::new(app, of_type.container_type, *n).ok());
        let containers: Vec<Name> = slots.map(|slot| Name::container(plan.network, &slot)).collect();
        let or_empty = |data: Vec<Data>| if data.is_empty() { vec![Data::Empty] } else { data };
        for port in of_type.ports.iter() {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let data = containers.iter().map(|container| Data::Srv(port.number.get(), *container)).collect();
            records.insert(format!("_{}._{protocol}.{name}", port.number), or_empty(data));
        }
        records.entry(name).or_insert_with(|| vec![Data::Empty]);
    }
    records.into_iter().flat_map(|(owner, data)| data.into_iter().map(move |data| (owner.clone(), data)))
}

/// Returns the records of one app's addresses in a reverse zone.
fn pointers_of(plan: &ZonePlan, app: AppId, zone: ReverseZone) -> Vec<(String, Data)> {
    let mut pointers = Vec::new();
    for of_type in plan.app(app).into_iter().flat_map(|names| &names.types) {
        for (index, address) in &of_type.containers {
            let slot = Slot::new(app, of_type.container_type, *index);
            if let (Some(owner), Ok(slot)) = (zone.owner(*address, plan.ipv6), slot) {
                pointers.push((owner, Data::Ptr(Name::container(plan.network, &slot))));
            }
        }
    }
    pointers
}

/// Returns the labels of a name below its network's domain, in lower case.
pub(crate) fn relative(name: &Name) -> String {
    let app = name.app_id();
    let mut labels = match name.scope() {
        NameScope::App => app.to_string(),
        NameScope::Type(container_type) => format!("{container_type}.{app}"),
        NameScope::Container(container_type, index) => format!("{index}.{container_type}.{app}"),
    };
    labels.make_ascii_lowercase();
    labels
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Lookup;
    use crate::fixture::{app, dual_stack, shop};

    #[test]
    fn a_zone_has_its_names_and_its_empty_types() {
        let zone = shop().zone(1);
        let [app1, app3, app4] = [1, 3, 4].map(|n| app(n).to_string());
        let backend = |n| Slot::new(app(1), "My-App-Backend".parse().unwrap(), n).unwrap();
        let srv = |port, n| Data::Srv(port, Name::container(zone.plan().network, &backend(n)));
        let a = |last| Data::A(Ipv4Addr::new(10, 240, 0, last));
        let expected = [
            (format!("007.{app1}"), a(5)),
            (format!("1.007.{app1}"), a(5)),
            (format!("1.my-app-backend.{app1}"), a(3)),
            (format!("1.web.{app1}"), a(1)),
            (format!("2.web.{app1}"), a(2)),
            (format!("3.my-app-backend.{app1}"), a(4)),
            (format!("_3000._tcp.my-app-backend.{app1}"), srv(3000, 1)),
            (format!("_3000._tcp.my-app-backend.{app1}"), srv(3000, 3)),
            (format!("_53._udp.my-app-backend.{app1}"), srv(53, 1)),
            (format!("_53._udp.my-app-backend.{app1}"), srv(53, 3)),
            (format!("_80._tcp.idle.{app1}"), Data::Empty),
            (app1.clone(), a(1)),
            (app1.clone(), a(2)),
            (format!("idle.{app1}"), Data::Empty),
            (format!("my-app-backend.{app1}"), a(3)),
            (format!("my-app-backend.{app1}"), a(4)),
            (format!("web.{app1}"), a(1)),
            (format!("web.{app1}"), a(2)),
            (format!("1.worker.{app3}"), a(6)),
            (format!("web.{app3}"), Data::Empty),
            (format!("worker.{app3}"), a(6)),
            (format!("cron.{app4}"), Data::Empty),
        ];
        assert_eq!(records(zone.plan()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn d15_reverse_zones_have_every_address_once() {
        let (model, network) = (dual_stack("10.1.254.0/23"), crate::fixture::network(3));
        let plan = Arc::clone(&model.zones().zones[&network]);
        let sides: Vec<Side> = Side::all(&plan).collect();
        let prefix = plan.ipv6.unwrap().network();
        let nibbles =
            prefix.octets()[..8].iter().rev().map(|o| format!("{:x}.{:x}.", o & 15, o >> 4)).collect::<String>();
        let names: Vec<String> = sides.iter().map(|side| side.name(network)).collect();
        let v6 = format!("{nibbles}ip6.arpa");
        assert_eq!(names[1..], ["254.1.10.in-addr.arpa", "255.1.10.in-addr.arpa", &v6]);
        let all =
            |side: &Side| plan.apps.iter().flat_map(|names| side.records_of(&plan, names.app)).collect::<Vec<_>>();
        let web = |n| Data::Ptr(Name::container(network, &Slot::new(app(5), "web".parse().unwrap(), n).unwrap()));
        assert_eq!(all(&sides[1]), [("1".to_owned(), web(1)), ("2".to_owned(), web(2))]);
        assert_eq!(all(&sides[2]), []);
        let zeros = "0.0.0.0.0.0.0.0";
        let low = |n| (format!("{n}.0.e.f.1.0.a.0.{zeros}"), web(n));
        assert_eq!(all(&sides[3]), [low(1), low(2)]);
        // What is said there is what is answered here.
        let zone = model.zone(3);
        for side in &sides[1..] {
            for (owner, data) in all(side) {
                let name = format!("{owner}.{}", side.name(network));
                let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
                let Lookup::Pointer(found) = zone.lookup(labels) else { panic!("{name}") };
                assert_eq!(data, Data::Ptr(found), "{name}");
            }
        }
    }

    #[test]
    fn data_is_written_as_in_master_files() {
        let (a, aaaa) = (Data::A(Ipv4Addr::new(10, 240, 0, 1)), Data::Aaaa(Ipv6Addr::LOCALHOST));
        assert_eq!((a.to_string(), a.rtype(), a.rdata()), ("A 10.240.0.1".into(), 1, vec![10, 240, 0, 1]));
        assert_eq!((aaaa.to_string(), aaaa.rtype(), aaaa.rdata().len()), ("AAAA ::1".into(), 28, 16));
        let name: Name = "1.A.ap-00000000-0000-0000-0000-000000000001.pn-00000000-0000-0000-0000-000000000002.private-network.internal".parse().unwrap();
        let (text, rdata) = (Data::Srv(3000, name).to_string(), Data::Srv(3000, name).rdata());
        assert_eq!(text, format!("SRV 0 0 3000 {name:#}").replace(".A.", ".a."));
        assert_eq!((&rdata[..10], rdata.len()), (&b"\0\0\0\0\x0b\xb8\x011\x01a"[..], 6 + name.to_string().len() + 2));
        assert_eq!((Data::Empty.to_string(), Data::Empty.rdata()), ("TYPE65280 \\# 0".into(), vec![]));
    }
}
