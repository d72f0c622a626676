//! The one thread that works in namespaces: it observes, compares and carries out, one thing at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use nix::sys::socket::SockProtocol;
use pn_core::backend::Observed;
use pn_core::{
    BackendError, ContainerId, ErrorKind, Generation, Limits, NetworkId, NodeId, NodePlan, PublicKey, Report,
};
use pn_dns::{DnsServer, Names, OtherNames};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::backend::Status;
use crate::diff::{self, Change, Step};
use crate::encryptor::Encryptor;
use crate::execute::Executor;
use crate::firewall::{self, Nft};
use crate::kernel::{Firewall, Kernel, Link, LinkKind, LinkName, Namespace, Place};
use crate::lower;
use crate::memory::Memory;
use crate::netlink::Netlink;
use crate::netns::Namespaces;
use crate::observe::Indexes;
use crate::{compare, observe, report, screen};

/// What the thread is asked for.
pub(crate) enum Command {
    /// Applies a plan, as far as this many steps, which only tests limit.
    Apply(NodePlan, Option<usize>, oneshot::Sender<Report>),
    Observe(oneshot::Sender<Result<Observed, BackendError>>),
    Attach(ContainerId, PathBuf, oneshot::Sender<Result<(), BackendError>>),
    Detach(ContainerId, oneshot::Sender<Result<(), BackendError>>),
    Attached(oneshot::Sender<Result<BTreeSet<ContainerId>, BackendError>>),
    Status(oneshot::Sender<Result<Status, BackendError>>),
}

/// Where an observation looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Everywhere,
    /// Not into containers' namespaces of which is remembered what they hold.
    WhereNothingIsKnown,
}

/// What an observation found.
struct Found {
    kernel: Kernel,
    /// What tells each namespace from others.
    numbers: BTreeMap<Place, u64>,
    /// The links of those that were read.
    indexes: BTreeMap<Place, Indexes>,
    /// Containers whose namespaces could not be read, which holds up nobody else.
    unreadable: BTreeMap<ContainerId, io::Error>,
}

impl Found {
    /// Returns the containers that were handed over.
    fn attached(&self) -> BTreeSet<ContainerId> {
        let mut attached = containers(self.kernel.places.keys());
        attached.extend(self.unreadable.keys());
        attached
    }
}

pub(crate) struct Worker {
    pub(crate) node: NodeId,
    pub(crate) public_key: PublicKey,
    pub(crate) namespaces: Namespaces,
    pub(crate) encryptor: Encryptor,
    pub(crate) nft: Nft,
    pub(crate) resolver: Option<Arc<Names>>,
    pub(crate) other_names: Option<Arc<dyn OtherNames>>,
    pub(crate) runtime: Handle,
    pub(crate) limits: Limits,
    pub(crate) applied: Generation,
    /// What of the plan that was applied last was to be made.
    pub(crate) wanted: Option<NodePlan>,
    /// What containers' namespaces hold.
    pub(crate) memory: Memory,
    /// What each namespace's filter was when the kernel had this number for it.
    pub(crate) filters: BTreeMap<Place, (u32, Firewall)>,
    /// Who answers names in which namespace, by the namespace's number.
    pub(crate) servers: BTreeMap<NetworkId, (u64, DnsServer)>,
}

impl Worker {
    /// Does what it is asked for until nobody can ask any more.
    pub(crate) fn run(mut self, commands: &mpsc::Receiver<Command>) {
        // Who asked may be gone by now; what was asked for is done all the same.
        while let Ok(command) = commands.recv() {
            match command {
                Command::Apply(plan, limit, reply) => drop(reply.send(self.apply(&plan, limit))),
                Command::Observe(reply) => {
                    let observed = self.compare();
                    drop(reply.send(observed.map_err(|error| self.failed("observe", &error))));
                }
                Command::Attach(container, path, reply) => {
                    let attached = self.namespaces.attach(container, &path);
                    let object = format!("container {container} to namespace {}", path.display());
                    drop(reply.send(attached.map_err(|source| error("attach", object, source))));
                }
                Command::Detach(container, reply) => {
                    let detached = self.namespaces.remove(Place::Container(container));
                    let object = format!("container {container}");
                    drop(reply.send(detached.map_err(|source| error("detach", object, source))));
                }
                Command::Attached(reply) => {
                    let attached = self.namespaces.list().map(|places| containers(places.keys()));
                    drop(reply.send(attached.map_err(|error| self.failed("list the containers of", &error))));
                }
                Command::Status(reply) => drop(reply.send(self.status())),
            }
        }
    }

    fn failed(&self, operation: &'static str, source: &io::Error) -> BackendError {
        let source = io::Error::new(source.kind(), source.to_string());
        error(operation, format!("node {}", self.node), source)
    }

    /// Reads everything, and says what of the plan is there.
    fn compare(&mut self) -> io::Result<Observed> {
        let found = self.observe(Look::Everywhere)?;
        let Some(plan) = &self.wanted else {
            return Ok(found.kernel.observed());
        };
        let should = lower::lower(plan, &found.attached(), &self.encryptor.kind());
        Ok(compare::observed(&found.kernel, &should))
    }

    /// Reads the kernel.
    fn observe(&mut self, look: Look) -> io::Result<Found> {
        let (identity, peers) = self.encryptor.observe(&self.namespaces)?;
        let (mut numbers, now) = (self.namespaces.list()?, Instant::now());
        let kernel = Kernel { peers, ..Kernel::default() };
        let mut found =
            Found { kernel, numbers: BTreeMap::new(), indexes: BTreeMap::new(), unreadable: BTreeMap::new() };
        self.filters.retain(|place, _| numbers.contains_key(place));
        for (place, number) in &numbers {
            let (place, number) = (*place, *number);
            if look == Look::WhereNothingIsKnown
                && let Some(known) = self.memory.recall(place, number)
            {
                found.kernel.places.insert(place, known.clone());
                continue;
            }
            let (mut namespace, indexes) = match (self.read(place), place) {
                (Ok(read), _) => read,
                // What a container does in its own namespace is its own affair.
                (Err(error), Place::Container(container)) => {
                    found.unreadable.insert(container, error);
                    continue;
                }
                (Err(error), Place::Transport | Place::Network(_)) => return Err(error),
            };
            if let Some(Link { kind: LinkKind::WireGuard(found), .. }) = namespace.links.get_mut(&LinkName::Tunnel) {
                *found = identity;
            }
            self.encryptor.complete(place, &mut namespace, &indexes);
            found.indexes.insert(place, indexes);
            found.kernel.places.insert(place, namespace);
        }
        numbers.retain(|place, _| found.kernel.places.contains_key(place));
        if look == Look::Everywhere {
            self.memory.read(&numbers, &found.kernel, now);
        }
        found.numbers = numbers;
        Ok(found)
    }

    /// Reads one namespace.
    fn read(&mut self, place: Place) -> io::Result<(Namespace, Indexes)> {
        let (mut netlink, generation) = self.namespaces.within(place, || {
            let netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
            let generation = if matches!(place, Place::Container(_)) { 0 } else { firewall::generation()? };
            Ok((netlink, generation))
        })?;
        let (mut namespace, indexes) = observe::namespace(place, &mut netlink)?;
        if !matches!(place, Place::Container(_)) {
            namespace.firewall = Some(self.filter(place, generation));
        }
        Ok((namespace, indexes))
    }

    /// Reads the filter of a namespace, if anybody may have changed it since it was read. One that cannot be read is as good as
    /// none.
    fn filter(&mut self, place: Place, generation: u32) -> Firewall {
        if let Some((known, filter)) = self.filters.get(&place)
            && *known == generation
        {
            return filter.clone();
        }
        self.filters.remove(&place);
        match self.namespaces.within(place, || self.nft.observe(place)) {
            Ok(filter) => {
                self.filters.insert(place, (generation, filter.clone()));
                filter
            }
            Err(error) => {
                tracing::warn!(%place, %error, "a filter cannot be read, so it is put in place anew");
                Firewall::default()
            }
        }
    }

    fn apply(&mut self, plan: &NodePlan, limit: Option<usize>) -> Report {
        if let Some(refusal) = self.refusal(plan) {
            return Report::refused(plan.generation, refusal);
        }
        // The same plan again is a comparison; a newer one costs what it changes.
        let is_newer = plan.generation > self.applied && self.memory.is_fresh(Instant::now());
        let look = if is_newer { Look::WhereNothingIsKnown } else { Look::Everywhere };
        let found = match self.observe(look) {
            Ok(found) => found,
            Err(source) => return Report::refused(plan.generation, self.failed("observe", &source)),
        };
        let attached = found.attached();
        let Found { kernel: mut is, numbers, indexes, unreadable } = found;
        let mut report = Report::new(plan.generation);
        let plan = screen::screen(plan, self.wanted.as_ref(), &is.connected(), &self.limits, &mut report);
        screen::report_unattached(&plan, &attached, &mut report);
        let should = lower::lower(&plan, &attached, &self.encryptor.kind());
        for (container, source) in unreadable {
            let object = format!("the namespace of container {container}: what it has stays as it is");
            report.record(&object, Err(error("read", &object, source)));
            let place = Place::Container(container);
            is.places.extend(should.places.get(&place).map(|wanted| (place, wanted.clone())));
        }
        let mut steps = diff::steps(&is, &should);
        steps.truncate(limit.unwrap_or(usize::MAX));
        self.stop_servers(&plan);
        if let Err(error) = self.encryptor.take(&plan) {
            report.record("the end of VXLAN in this process", Err(error));
        }
        let nodes = plan.peers.values().map(|node| (node.public_key, node.id)).collect();
        let results = Executor::new(&self.namespaces, &mut self.encryptor, &self.nft, &nodes, indexes).run(&steps);
        self.remember_filters(&steps, &results, &is, &should);
        if limit.is_none() && results.iter().all(Result::is_ok) {
            self.memory.made(&numbers, &should);
        } else {
            self.memory.forget();
        }
        report::record(&steps, results, &mut report);
        if limit.is_none() {
            self.start_servers(&plan, &mut report);
        }
        self.applied = plan.generation;
        self.wanted = Some(plan);
        report
    }

    fn refusal(&self, plan: &NodePlan) -> Option<BackendError> {
        if plan.node != self.node {
            let object = format!("a plan for {}: this is {}", plan.node, self.node);
            return Some(BackendError::new(ErrorKind::WrongNode, "apply", object));
        }
        if plan.generation < self.applied {
            return Some(BackendError::superseded(plan.generation, self.applied));
        }
        plan.host.as_deref().filter(|host| host.public_key != self.public_key).map(|host| {
            let object =
                format!("a plan with public key {} for this node: it has {}", host.public_key, self.public_key);
            BackendError::new(ErrorKind::WrongNode, "apply", object)
        })
    }

    /// Remembers what filters are now, where the kernel's numbers say that nobody else changed them meanwhile.
    fn remember_filters(&mut self, steps: &[Step], results: &[io::Result<()>], is: &Kernel, should: &Kernel) {
        for (step, result) in steps.iter().zip(results) {
            let (Change::ReplaceFirewall(place, _) | Change::UpdateFirewall { place, .. }) = &step.change else {
                continue;
            };
            let before = self.filters.remove(place).map(|(number, _)| number);
            let now = self.namespaces.within(*place, firewall::generation).ok();
            let wanted = should.places.get(place).and_then(|namespace: &Namespace| namespace.firewall.clone());
            let is_new = !is.places.contains_key(place);
            // The first transaction of a new namespace finds the number that every namespace begins with.
            let is_alone = is_new || before.is_some_and(|before| now == Some(before.wrapping_add(1)));
            if let (Ok(()), true, Some(now), Some(wanted)) = (result, is_alone, now, wanted) {
                self.filters.insert(*place, (now, wanted));
            }
        }
    }

    /// Ends the name servers of networks that go, before their packets do, and those in namespaces that are not kept any more,
    /// which would keep them alive.
    fn stop_servers(&mut self, plan: &NodePlan) {
        let stays = |id: &NetworkId, number| plan.networks.contains_key(id) && self.number(*id) == Some(number);
        let gone = self.servers.iter().filter(|(id, (number, _))| !stays(id, *number));
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some((_, server)) = self.servers.remove(&id) {
                self.runtime.block_on(server.shutdown());
            }
        }
    }

    /// Returns what tells the namespace of a network from others, if there is one.
    fn number(&self, network: NetworkId) -> Option<u64> {
        let namespace = self.namespaces.open(Place::Network(network)).ok().flatten()?;
        namespace.metadata().ok().map(|metadata| metadata.ino())
    }

    /// Starts name servers where there is none yet.
    fn start_servers(&mut self, plan: &NodePlan, report: &mut Report) {
        let Some(resolver) = self.resolver.clone() else {
            return;
        };
        for network in plan.networks.values() {
            let place = Place::Network(network.id);
            let Some(number) = self.number(network.id) else {
                continue;
            };
            if self.servers.get(&network.id).is_some_and(|(known, _)| *known == number) {
                continue;
            }
            let address = SocketAddr::from((network.resolver, DNS_PORT));
            let bound = self.namespaces.within(place, || Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)));
            let object = format!("the resolver {address} of network {}", network.id);
            let server = bound.map_err(|source| error("bind", &object, source)).and_then(|(udp, tcp)| {
                let _runtime = self.runtime.enter();
                let server = DnsServer::builder(network.id, Arc::clone(&resolver));
                match &self.other_names {
                    Some(other_names) => server.other_names(Arc::clone(other_names)),
                    None => server,
                }
                .serve(udp, tcp)
            });
            match server {
                Ok(server) => drop(self.servers.insert(network.id, (number, server))),
                Err(error) => report.record(&object, Err(error)),
            }
        }
    }

    fn status(&self) -> Result<Status, BackendError> {
        let read = || {
            let mut drops: BTreeMap<String, u64> = BTreeMap::new();
            for place in self.namespaces.list()?.into_keys() {
                if matches!(place, Place::Transport | Place::Network(_)) {
                    for (reason, count) in self.namespaces.within(place, || self.nft.counters())? {
                        *drops.entry(reason).or_default() += count;
                    }
                }
            }
            Ok(Status { generation: self.applied, drops })
        };
        read().map_err(|source: io::Error| self.failed("read the counters of", &source))
    }
}

const DNS_PORT: u16 = 53;

fn containers<'a>(places: impl Iterator<Item = &'a Place>) -> BTreeSet<ContainerId> {
    let container = |place: &Place| match place {
        Place::Container(id) => Some(*id),
        Place::Transport | Place::Network(_) => None,
    };
    places.filter_map(container).collect()
}

/// Makes an error of the operating system's.
pub(crate) fn error(operation: &'static str, object: impl std::fmt::Display, source: io::Error) -> BackendError {
    let kind = if source.kind() == io::ErrorKind::PermissionDenied {
        ErrorKind::PermissionDenied
    } else if matches!(source.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse) {
        ErrorKind::Conflict
    } else if source.kind() == io::ErrorKind::NotFound {
        ErrorKind::NotFound
    } else if source.kind() == io::ErrorKind::InvalidInput {
        ErrorKind::Unsupported
    } else {
        ErrorKind::Io
    };
    BackendError::new(kind, operation, object).with_source(source)
}
