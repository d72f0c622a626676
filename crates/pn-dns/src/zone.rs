//! The names of one network, ready to be looked up.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::sync::Arc;

use pn_core::name::SUFFIX;
use pn_core::{AppId, ContainerType, Name, NameScope, NetworkId, ZonePlan};

/// The longest that an answer without addresses is kept, in seconds: scaling from zero is to be seen at once.
const NEGATIVE_TTL: u32 = 1;

/// The longest time to live there is, in seconds (RFC 2181 §8).
const MAX_TTL: u32 = i32::MAX as u32;

/// What a [`Zone`] knows of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// The containers it stands for, at least one: the index of each slot, and its address.
    Addresses(&'a [(u32, Ipv4Addr)]),
    /// It is the network's domain or the suffix above it: it has an SOA record and no address.
    Apex,
    /// It exists and has no address.
    NoData,
    /// Neither it nor any name beneath it exists.
    NxDomain,
    /// It stands outside `private-network.internal`: somebody else knows it.
    Elsewhere,
}

/// The names of one network, read straight from its plan.
///
/// A lookup is a few binary searches and copies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    plan: Arc<ZonePlan>,
    serial: u32,
    /// The label of the network, as names show it.
    label: String,
}

impl Zone {
    /// Makes the zone of a network, with the serial number of the set it came in.
    #[must_use]
    pub fn new(plan: Arc<ZonePlan>, serial: u32) -> Self {
        let label = plan.network.to_string();
        Self { plan, serial, label }
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
    pub fn lookup<'l>(&self, labels: impl DoubleEndedIterator<Item = &'l [u8]> + Clone) -> Lookup<'_> {
        match Name::from_labels(labels.clone()) {
            Ok(name) if name.network() == self.plan.network => self.lookup_name(&name),
            Ok(_) => Lookup::NxDomain,
            Err(_) => self.lookup_rest(labels),
        }
    }

    /// Returns whether a name is the network's domain or stands beneath it.
    #[must_use]
    pub fn encloses<'l>(&self, labels: impl DoubleEndedIterator<Item = &'l [u8]>) -> bool {
        beneath_suffix(labels).and_then(|mut rest| rest.next_back()).is_some_and(|label| self.is_label(label))
    }

    fn lookup_name(&self, name: &Name) -> Lookup<'_> {
        let app = name.app_id();
        let containers = match name.scope() {
            NameScope::App => {
                let web = self.containers(app, &ContainerType::web());
                // Names may stand beneath an app without web containers, so it exists (RFC 8020).
                web.or_else(|| self.declares(app).then_some(&[][..]))
            }
            NameScope::Type(container_type) => self.containers(app, &container_type),
            NameScope::Container(container_type, index) => {
                self.containers(app, &container_type).and_then(|containers| {
                    let found = containers.binary_search_by_key(&index, |(index, _)| *index).ok()?;
                    Some(&containers[found..=found])
                })
            }
        };
        match containers {
            None => Lookup::NxDomain,
            Some([]) => Lookup::NoData,
            Some(containers) => Lookup::Addresses(containers),
        }
    }

    /// Returns the containers of a type that an app declares.
    fn containers(&self, app: AppId, container_type: &ContainerType) -> Option<&[(u32, Ipv4Addr)]> {
        self.plan.of_type(app, container_type).map(|of_type| &*of_type.containers)
    }

    /// Returns whether an app of the network declares any type.
    fn declares(&self, app: AppId) -> bool {
        self.plan.app(app).is_some()
    }

    /// Looks up what is no name of an app, a type or a container.
    fn lookup_rest<'l>(&self, labels: impl DoubleEndedIterator<Item = &'l [u8]>) -> Lookup<'_> {
        let Some(mut rest) = beneath_suffix(labels) else {
            return Lookup::Elsewhere;
        };
        match (rest.next_back(), rest.next_back()) {
            (None, _) => Lookup::Apex,
            (Some(label), None) if self.is_label(label) => Lookup::Apex,
            (Some(_), _) => Lookup::NxDomain,
        }
    }

    fn is_label(&self, label: &[u8]) -> bool {
        label.eq_ignore_ascii_case(self.label.as_bytes())
    }
}

/// Returns the labels before `private-network.internal`; `None` where a name neither is it nor stands beneath it.
pub(crate) fn beneath_suffix<'l, L: DoubleEndedIterator<Item = &'l [u8]>>(mut labels: L) -> Option<L> {
    let mut expected = SUFFIX.rsplit('.').map(str::as_bytes);
    expected
        .all(|expected| labels.next_back().is_some_and(|found| found.eq_ignore_ascii_case(expected)))
        .then_some(labels)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(MAX_TTL).min(MAX_TTL)
}
