//! What a zone consists of, record by record, for whoever keeps zones in another form.
//!
//! | owner | records |
//! |---|---|
//! | every name with containers | A, and AAAA where the network has IPv6 |
//! | `_PORT._PROTOCOL` beneath a type that declares a port | SRV, one for each container |
//! | a declared type without containers, and its ports | [`Data::Empty`], so that they exist (RFC 8020) |
//!
//! Owners are relative to the network's domain and in lower case: names that differ only by case are one name. SOA and NS of
//! the apex are not among them; each form has its own.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::BTreeMap;

use pn_core::{AppId, Name, NameScope, Protocol, Slot, ZonePlan};

/// The data of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A port, and a container that listens on it.
    Srv(u16, Name),
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
                for label in target.to_string().to_ascii_lowercase().split('.') {
                    rdata.push(label.len() as u8);
                    rdata.extend_from_slice(label.as_bytes());
                }
                rdata.push(0);
                rdata
            }
            Self::Empty => Vec::new(),
        }
    }
}

impl fmt::Display for Data {
    /// Prints type and data as in a master file (RFC 1035 §5, RFC 3597 §5).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => write!(f, "A {address}"),
            Self::Aaaa(address) => write!(f, "AAAA {address}"),
            Self::Srv(port, target) => write!(f, "SRV 0 0 {port} {}", format!("{target:#}").to_ascii_lowercase()),
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
    use super::*;
    use crate::fixture::{app, shop};

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
