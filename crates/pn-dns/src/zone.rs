//! The names of one network, ready to be looked up.

mod app;
mod reverse;
mod reverse_zone;
mod shape;

use core::net::Ipv4Addr;
use core::time::Duration;
use std::sync::Arc;

use pn_core::name::SUFFIX;
use pn_core::{AppId, AppNames, Name, NetworkId, Port, Protocol, TypeNames, ZonePlan};

pub(crate) use self::app::AppBlock;
use self::app::Apps;
use self::reverse::Reverse;
pub use self::reverse_zone::ReverseZone;
pub(crate) use self::shape::Key;

/// The longest that an answer without addresses is kept, in seconds: scaling from zero is to be seen at once.
const NEGATIVE_TTL: u32 = 1;

/// The longest time to live there is, in seconds (RFC 2181 §8).
const MAX_TTL: u32 = i32::MAX as u32;

/// Length of a network's domain in wire form: `pn-UUID`, `private-network`, `internal` and the root, with their lengths.
pub(crate) const DOMAIN: usize = 1 + NetworkId::LEN + 1 + 15 + 1 + 8 + 1;

/// What a [`Zone`] knows of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lookup<'a> {
    /// The containers it stands for, at least one: the index of each slot, and its address.
    Addresses(&'a [(u32, Ipv4Addr)]),
    /// It is a port that a type declares: `_3000._tcp.TYPE.ap-…`.
    Service {
        /// The type, with the containers that listen.
        of_type: &'a TypeNames,
        /// The port.
        port: Port,
    },
    /// It is the reverse name of a container's address: the container's name.
    Pointer(Name),
    /// It is where a zone begins: the network's domain, the suffix above it, or one of the network's reverse zones. It has
    /// SOA and NS records and no address.
    Apex,
    /// It exists and has no record.
    NoData,
    /// Neither it nor any name beneath it exists.
    NxDomain,
    /// It stands in none of these zones: somebody else knows it.
    Elsewhere,
}

/// The names of one network, forward and reverse.
///
/// A zone is made from a plan once, and from the zone before at a cost that grows with the apps that changed: the others'
/// parts are shared. A lookup copies nothing.
#[derive(Debug, Clone)]
pub struct Zone {
    plan: Arc<ZonePlan>,
    serial: u32,
    /// The domain of the network in wire form and lower case.
    domain: [u8; DOMAIN],
    apps: Apps,
    reverse: Reverse,
}

impl Zone {
    /// Makes the zone of a network, with the serial number of the set it came in.
    #[must_use]
    pub fn new(plan: Arc<ZonePlan>, serial: u32) -> Self {
        let nothing = Arc::new(ZonePlan::new(plan.network, plan.subnet, plan.ttl));
        let domain = domain(plan.network);
        Self { plan: nothing, serial, domain, apps: Apps::default(), reverse: Reverse::default() }
            .succeeded_by(plan, serial)
    }

    /// Makes the zone that follows this one. It shares the parts of the apps whose names are the same.
    #[must_use]
    pub fn succeeded_by(&self, plan: Arc<ZonePlan>, serial: u32) -> Self {
        if plan.network != self.plan.network {
            return Self::new(plan, serial);
        }
        let (mut apps, mut changes) = (self.apps.clone(), reverse::Changes::default());
        for (before, after) in pairs(&self.plan.apps, &plan.apps) {
            match (before, after) {
                // Compared by address first.
                (Some(before), Some(after)) if before == after => continue,
                (_, Some(after)) => apps.insert(Arc::clone(after)),
                (before, None) => before.into_iter().for_each(|before| apps.remove(before.app)),
            }
            changes.note(before.map(Arc::as_ref), after.map(Arc::as_ref));
        }
        let mut reverse = self.reverse.clone();
        reverse.apply(changes);
        Self { serial, domain: self.domain, apps, reverse, plan }
    }

    /// Returns the network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.plan.network
    }

    /// Returns the plan it was made from.
    #[must_use]
    pub const fn plan(&self) -> &Arc<ZonePlan> {
        &self.plan
    }

    /// Returns the serial number of its SOA record: that of the set in which its names last changed.
    #[must_use]
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// Returns the time to live of addresses, in seconds.
    #[must_use]
    pub fn ttl(&self) -> u32 {
        seconds(self.plan.ttl)
    }

    /// Returns the time to live of the SOA record and of what it denies, in seconds: 1, or less where addresses have less.
    #[must_use]
    pub fn negative_ttl(&self) -> u32 {
        self.ttl().min(NEGATIVE_TTL)
    }

    /// Looks a name up by its labels, leftmost first, in any case.
    #[must_use]
    pub fn lookup<'l>(&self, labels: impl IntoIterator<Item = &'l [u8]>) -> Lookup<'_> {
        let labels: Vec<&[u8]> = labels.into_iter().collect();
        self.find(&labels).0
    }

    /// Looks a name up, and counts the labels of the zone it stands in, the root not counted.
    pub(crate) fn find(&self, labels: &[&[u8]]) -> (Lookup<'_>, usize) {
        if let Some(rest) = beneath_suffix(labels) {
            return match rest {
                [] => (Lookup::Apex, 2),
                [rest @ .., label] if label.eq_ignore_ascii_case(&self.domain[1..][..NetworkId::LEN]) => {
                    (self.find_name(rest), 3)
                }
                _ => (Lookup::NxDomain, 2),
            };
        }
        match reverse::find(&self.reverse, &self.plan, labels) {
            Some((found, apex)) => (found, apex),
            None => (Lookup::Elsewhere, 0),
        }
    }

    /// Returns the domain of the network in wire form and lower case.
    pub(crate) const fn domain(&self) -> &[u8; DOMAIN] {
        &self.domain
    }

    /// Returns the names of an app that declares a type.
    pub(crate) fn app(&self, app: AppId) -> Option<&AppBlock> {
        self.apps.get(app)
    }

    /// Looks up the labels before the network's domain.
    fn find_name(&self, labels: &[&[u8]]) -> Lookup<'_> {
        let [rest @ .., app] = labels else {
            return Lookup::Apex;
        };
        let Some(app) = AppId::from_label(app).and_then(|app| self.app(app)) else {
            return Lookup::NxDomain;
        };
        let [rest @ .., of_type] = rest else {
            // Names may stand beneath an app without web containers, so it exists (RFC 8020).
            return addresses(app.of_type(b"web").map_or(Some(&[]), |(web, _)| Some(&web.containers)));
        };
        let Some((of_type, block)) = app.of_type(of_type) else {
            return Lookup::NxDomain;
        };
        match rest {
            [] => addresses(Some(&of_type.containers)),
            [label] if label.first() == Some(&b'_') => {
                let declares = |protocol| of_type.ports.iter().any(|port| port.protocol == protocol);
                if parse_protocol(label).is_some_and(declares) { Lookup::NoData } else { Lookup::NxDomain }
            }
            [index] => {
                let place = parse_index(index).and_then(|index| block.place(index));
                addresses(place.and_then(|place| of_type.containers.get(place..=place)))
            }
            [port, protocol] => {
                let port = parse_port(port, protocol);
                match port.filter(|port| of_type.ports.contains(*port)) {
                    Some(_) if of_type.containers.is_empty() => Lookup::NoData,
                    Some(port) => Lookup::Service { of_type, port },
                    None => Lookup::NxDomain,
                }
            }
            _ => Lookup::NxDomain,
        }
    }
}

const fn addresses(containers: Option<&[(u32, Ipv4Addr)]>) -> Lookup<'_> {
    match containers {
        None => Lookup::NxDomain,
        Some([]) => Lookup::NoData,
        Some(containers) => Lookup::Addresses(containers),
    }
}

/// Returns the labels before `private-network.internal`; `None` where a name neither is it nor stands beneath it.
pub(crate) fn beneath_suffix<'s, 'l>(labels: &'s [&'l [u8]]) -> Option<&'s [&'l [u8]]> {
    beneath(labels, SUFFIX)
}

/// Returns the labels before a domain; `None` where a name neither is it nor stands beneath it.
fn beneath<'s, 'l>(labels: &'s [&'l [u8]], domain: &str) -> Option<&'s [&'l [u8]]> {
    let mut rest = labels;
    for expected in domain.rsplit('.') {
        let (last, before) = rest.split_last()?;
        if !last.eq_ignore_ascii_case(expected.as_bytes()) {
            return None;
        }
        rest = before;
    }
    Some(rest)
}

/// Returns whether a name is or stands beneath a domain of ours or a domain of reverse names, whatever the network.
pub(crate) fn is_never_elsewhere(labels: &[&[u8]]) -> bool {
    beneath_suffix(labels).is_some() || reverse::ROOTS.iter().any(|root| beneath(labels, root).is_some())
}

/// Parses the canonical decimal of a slot's index: no sign, no leading zero, at least 1.
pub(crate) fn parse_index(label: &[u8]) -> Option<u32> {
    if !(1..=10).contains(&label.len()) || label[0] == b'0' {
        return None;
    }
    label.iter().try_fold(0u32, |value, octet| {
        let digit = octet.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u32::from(digit))
    })
}

fn parse_port(port: &[u8], protocol: &[u8]) -> Option<Port> {
    let number = parse_index(port.strip_prefix(b"_")?)?;
    let number = u16::try_from(number).ok()?.try_into().ok()?;
    Some(Port { number, protocol: parse_protocol(protocol)? })
}

fn parse_protocol(label: &[u8]) -> Option<Protocol> {
    match () {
        () if label.eq_ignore_ascii_case(b"_tcp") => Some(Protocol::Tcp),
        () if label.eq_ignore_ascii_case(b"_udp") => Some(Protocol::Udp),
        () => None,
    }
}

/// Returns the domain of a network in wire form.
fn domain(network: NetworkId) -> [u8; DOMAIN] {
    let mut octets = [0; DOMAIN];
    let mut at = 0;
    for label in [network.to_string().as_bytes()].into_iter().chain(SUFFIX.split('.').map(str::as_bytes)) {
        octets[at] = label.len() as u8;
        octets[at + 1..][..label.len()].copy_from_slice(label);
        at += 1 + label.len();
    }
    octets
}

/// Walks the apps of two plans side by side; both are in order.
fn pairs<'a>(
    mut old: &'a [Arc<AppNames>],
    mut new: &'a [Arc<AppNames>],
) -> impl Iterator<Item = (Option<&'a Arc<AppNames>>, Option<&'a Arc<AppNames>>)> {
    core::iter::from_fn(move || {
        let next = match (old.first(), new.first()) {
            (None, None) => return None,
            (Some(before), Some(after)) if before.app < after.app => (Some(before), None),
            (Some(before), Some(after)) if before.app > after.app => (None, Some(after)),
            both => both,
        };
        old = &old[usize::from(next.0.is_some())..];
        new = &new[usize::from(next.1.is_some())..];
        Some(next)
    })
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(MAX_TTL).min(MAX_TTL)
}

#[cfg(test)]
mod tests;
