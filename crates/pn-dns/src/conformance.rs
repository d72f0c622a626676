//! The laws of name servers, to be run against each implementation of [`DnsBackend`] and each wrapper of one, with real
//! queries: every planned name has exactly its addresses inside its network and nothing elsewhere, what does not exist is
//! denied as it should be, what is older is refused, and no octets do harm.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use pn_core::{
    App, AppId, Change, ContainerId, DnsBackend, ErrorKind, Families, Name, NetworkDomain, NetworkId, NetworkRequest,
    Node, NodeId, Project, ProjectId, Protocol, PublicKey, Region, Slot, State, Terms, Timestamp, Transport, ZoneSet,
};

use crate::stub;
use crate::wire::reading::{self, Reading};

/// A backend under test, and the way that an asker reaches what it publishes.
#[async_trait]
pub trait Subject: Sync {
    /// Returns the backend.
    fn backend(&self) -> &dyn DnsBackend;

    /// Says how much of the plan its askers see.
    fn fidelity(&self) -> Fidelity;

    /// Returns when everybody who asks from now on sees the published set: a server has loaded its files again, for example.
    async fn settle(&self, published: &ZoneSet);

    /// Sends one query as a container of a network does, and returns the reply; `None` where there is nobody to ask, or silence.
    async fn ask(&self, network: NetworkId, transport: Transport, query: &[u8]) -> Option<Vec<u8>>;

    /// Sends a datagram as a container of a network does, and does not wait for a reply. The port that it is sent from stays
    /// taken until the laws have run: a late reply to it would otherwise reach the next asker, who may be given that port.
    async fn send(&self, network: NetworkId, datagram: &[u8]);
}

/// How much of a plan the form of a backend can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// All of it.
    Whole,
    /// Names and their addresses; neither how long an answer may be kept nor that a name exists without an address.
    Addresses,
}

/// Runs every law. Nothing was published through the backend yet; its networks are those of [`networks`].
///
/// # Panics
/// If a law is broken; the message names it.
pub async fn dns(subject: &dyn Subject) {
    let plans = plans();
    let mut names = BTreeSet::new();
    for (at, (step, set)) in plans.iter().enumerate() {
        let laws = Laws { subject, step, set };
        laws.publishes().await;
        names.extend(set.zones.values().flat_map(|zone| zone.names()).map(|(name, _)| name));
        laws.answers(&names).await;
        if let Some((_, older)) = at.checked_sub(1).and_then(|before| plans.get(before)) {
            laws.refuses(older).await;
            laws.answers(&names.iter().copied().take(4).collect()).await;
        }
        laws.withstands_anything().await;
    }
}

/// The networks that the laws publish, so that there is somebody to ask in each.
#[must_use]
pub fn networks() -> [NetworkId; 2] {
    [1, 2].map(NetworkId::from_u128)
}

/// One published set and what must hold of it.
struct Laws<'a> {
    subject: &'a dyn Subject,
    step: &'a str,
    set: &'a ZoneSet,
}

impl Laws<'_> {
    /// A set is published without a failure, and a second time without a change.
    async fn publishes(&self) {
        let Self { step, set, .. } = self;
        let report = self.subject.backend().publish(set).await;
        let failed: Vec<String> = report.failures().map(|error| format!("{error}: {:?}", error)).collect();
        assert!(failed.is_empty(), "{step}: did not publish: {failed:?}");
        assert_eq!(report.generation, set.generation, "{step}: the report is of another generation");
        let again = self.subject.backend().publish(set).await;
        assert!(again.is_unchanged(), "{step}: a second time changed {:?}", again.outcomes);
        self.subject.settle(set).await;
    }

    /// Each name that ever was has its addresses now, or is denied, inside its network, and nothing elsewhere.
    async fn answers(&self, names: &BTreeSet<Name>) {
        let step = self.step;
        for name in names {
            let zone = self.set.zones.get(&name.network());
            let planned = zone.and_then(|zone| zone.names().into_iter().find(|(planned, _)| planned == name));
            let (text, network) = (name.to_string(), name.network());
            let Some((zone, (_, addresses))) = zone.zip(planned) else {
                self.has_none(network, &text).await;
                continue;
            };
            let v4: BTreeSet<IpAddr> = addresses.iter().map(|address| (*address).into()).collect();
            let v6 =
                zone.ipv6.iter().flat_map(|prefix| addresses.iter().map(|address| prefix.address(*address).into()));
            self.has(network, &text, TYPE_A, &v4, zone.ttl.as_secs()).await;
            self.has(network, &text, TYPE_AAAA, &v6.collect(), zone.ttl.as_secs()).await;
            // D2: any other type is no data, never a denial of the name.
            let other = self.read(network, Transport::Udp, &text, TYPE_TXT, None).await;
            let other = other.unwrap_or_else(|| panic!("{step}: {text} TXT: silence"));
            assert_eq!((other.rcode, other.answers), (NO_ERROR, 0), "{step}: {text} TXT is not without data");
            // D11: another network's names do not exist.
            for elsewhere in networks().into_iter().filter(|elsewhere| *elsewhere != network) {
                self.has_none(elsewhere, &text).await;
            }
        }
        for network in networks() {
            self.denials(network).await;
            self.ports(network).await;
        }
    }

    /// Each declared port has an SRV record for each container, and the port beside it has none (RFC 2782).
    async fn ports(&self, network: NetworkId) {
        let Some(zone) = self.set.zones.get(&network).filter(|_| self.subject.fidelity() == Fidelity::Whole) else {
            return;
        };
        let declared = zone.types().flat_map(|of_type| of_type.ports.iter().map(move |port| (of_type, port)));
        for (of_type, port) in declared {
            let protocol = if port.protocol == Protocol::Tcp { "_tcp" } else { "_udp" };
            let type_name = Name::of_type(network, of_type.app, of_type.container_type);
            let beside = port.number.get().wrapping_add(1);
            for (number, count, rcode) in
                [(port.number.get(), of_type.containers.len(), NO_ERROR), (beside, 0, NX_DOMAIN)]
            {
                let name = format!("_{number}.{protocol}.{type_name}");
                let step = self.step;
                let reading = self.read(network, Transport::Tcp, &name, TYPE_SRV, None).await;
                let reading = reading.unwrap_or_else(|| panic!("{step}: {name}: silence"));
                assert_eq!((reading.rcode, reading.answers), (rcode, count), "{step}: {name} SRV: {reading:?}");
            }
        }
    }

    /// A name has exactly these addresses, over UDP as many as fit (D4, D5, D6, D8).
    async fn has(&self, network: NetworkId, name: &str, record_type: u16, expected: &BTreeSet<IpAddr>, ttl: u64) {
        let step = self.step;
        for (transport, payload) in [(Transport::Tcp, None), (Transport::Udp, None), (Transport::Udp, Some(1232))] {
            let what = format!("{step}: {name} type {record_type} over {transport:?} {payload:?} in {network}");
            // In the other case, which is the same name.
            let asked = name.to_ascii_uppercase();
            let reading = self.read(network, transport, &asked, record_type, payload).await;
            let reading = reading.unwrap_or_else(|| panic!("{what}: silence"));
            let found: BTreeSet<IpAddr> = reading.addresses.iter().map(|(address, _)| *address).collect();
            assert_eq!(reading.rcode, NO_ERROR, "{what}: {reading:?}");
            assert_eq!(found.len(), reading.addresses.len(), "{what}: an address comes twice");
            if reading.truncated {
                assert_eq!(transport, Transport::Udp, "{what}: truncated");
                assert!(found.is_subset(expected), "{what}: {found:?} are not among {expected:?}");
            } else {
                assert_eq!(&found, expected, "{what}: not its addresses");
            }
            if self.subject.fidelity() == Fidelity::Whole {
                let ttls = reading.addresses.iter().all(|(_, found)| u64::from(*found) == ttl);
                assert!(ttls, "{what}: times to live differ from {ttl}: {reading:?}");
            }
        }
    }

    /// A name has no addresses, as it is asked for in a network.
    async fn has_none(&self, network: NetworkId, name: &str) {
        for record_type in [TYPE_A, TYPE_AAAA] {
            let Some(reading) = self.read(network, Transport::Udp, name, record_type, Some(1232)).await else {
                continue;
            };
            let step = self.step;
            assert_eq!(reading.answers, 0, "{step}: {name} type {record_type} in {network} is answered: {reading:?}");
        }
    }

    /// What has no address is without data where something exists, and does not exist otherwise (D1, D3).
    async fn denials(&self, network: NetworkId) {
        let Some(zone) = self.set.zones.get(&network) else {
            return self.has_none(network, &NetworkDomain(network).to_string()).await;
        };
        let domain = NetworkDomain(network);
        let mut expected: BTreeMap<String, u16> = BTreeMap::new();
        expected.insert(domain.to_string(), NO_ERROR);
        expected.insert(format!("{}.{domain}", AppId::from_u128(0xffff)), NX_DOMAIN);
        for of_type in zone.types() {
            let (app, container_type) = (of_type.app, of_type.container_type);
            let count = u32::try_from(of_type.containers.len()).unwrap_or(u32::MAX);
            let beyond = Slot::new(app, container_type, count.saturating_add(1000)).expect("a number above 0");
            expected.insert(Name::container(network, &beyond).to_string(), NX_DOMAIN);
            expected.insert(format!("0.{container_type}.{app}.{domain}"), NX_DOMAIN);
            expected.insert(format!("unknown.{app}.{domain}"), NX_DOMAIN);
            if of_type.containers.is_empty() {
                expected.insert(Name::of_type(network, app, container_type).to_string(), NO_ERROR);
            }
            let web = zone.of_type(app, &pn_core::ContainerType::web());
            if web.is_none_or(|web| web.containers.is_empty()) {
                expected.insert(Name::app(network, app).to_string(), NO_ERROR);
            }
        }
        for (name, rcode) in expected {
            self.has_none(network, &name).await;
            if self.subject.fidelity() == Fidelity::Addresses {
                continue;
            }
            let step = self.step;
            let reading = self.read(network, Transport::Udp, &name, TYPE_A, Some(1232)).await;
            let reading = reading.unwrap_or_else(|| panic!("{step}: {name}: silence"));
            assert_eq!(reading.rcode, rcode, "{step}: {name} in {network}: {reading:?}");
            let (ttl, minimum) = reading.soa.unwrap_or_else(|| panic!("{step}: {name}: denied without an SOA record"));
            assert!(ttl <= 1 && minimum <= 1, "{step}: {name}: the denial may be kept for {ttl} s, {minimum} s");
        }
    }

    /// An older set is refused as a whole.
    async fn refuses(&self, older: &ZoneSet) {
        let step = self.step;
        let refused = self.subject.backend().publish(older).await.into_result();
        let refused =
            refused.err().unwrap_or_else(|| panic!("{step}: generation {} was published after", older.generation));
        assert_eq!(refused.kind(), ErrorKind::Superseded, "{step}: an older set was refused as {refused}");
    }

    /// After octets of any kind, good queries are answered (D12).
    async fn withstands_anything(&self) {
        let Some(name) = self.set.zones.values().flat_map(|zone| zone.names()).map(|(name, _)| name).next() else {
            return;
        };
        let mut rng = fastrand::Rng::with_seed(0x5eed);
        let query = stub::query(&name.to_string(), 1).expect("a name is one");
        for round in 0..200 {
            let mut octets = query.clone();
            if round % 2 == 0 {
                octets = (0..rng.usize(0..600)).map(|_| rng.u8(..)).collect();
            } else {
                octets.truncate(rng.usize(0..=query.len()));
                for _ in 0..rng.usize(0..4) {
                    if let Some(octet) = rng.choice(octets.iter_mut()) {
                        *octet ^= 1 << rng.u8(0..8);
                    }
                }
            }
            self.subject.send(name.network(), &octets).await;
        }
        self.answers(&BTreeSet::from([name])).await;
    }

    /// Asks a question and reads the reply, whose id and question must be those asked; `None` is silence.
    async fn read(
        &self,
        network: NetworkId,
        transport: Transport,
        name: &str,
        record_type: u16,
        payload: Option<u16>,
    ) -> Option<Reading> {
        let step = self.step;
        let mut query = stub::query(name, ID).expect("a name is one");
        let opt = query.len() - OPT;
        let (question, _) = query.split_at_mut(opt);
        if let Some(asked) = question.last_chunk_mut::<4>() {
            asked[..2].copy_from_slice(&record_type.to_be_bytes());
        }
        let question = query[HEADER..opt].to_vec();
        match payload {
            Some(payload) => query[opt + 3..opt + 5].copy_from_slice(&payload.to_be_bytes()),
            None => {
                query.truncate(opt);
                query[HEADER - 1] = 0;
            }
        }
        let reply = self.subject.ask(network, transport, &query).await?;
        let reading = reading::read(&reply).unwrap_or_else(|| panic!("{step}: {name}: no DNS message: {reply:02x?}"));
        assert_eq!(reading.id, ID, "{step}: {name}: another id");
        let limit = match (transport, payload) {
            (Transport::Tcp, _) => usize::MAX,
            (Transport::Udp, payload) => usize::from(payload.unwrap_or(512)),
        };
        assert!(reply.len() <= limit, "{step}: {name}: {} octets over {transport:?} {payload:?}", reply.len());
        // D8: the question comes back in its own case.
        let echoed = reply.get(HEADER..HEADER + question.len());
        assert_eq!(echoed, Some(&*question), "{step}: {name}: another question");
        Some(reading)
    }
}

/// Sets that grow, shrink, move and end, each of a later generation than the one before.
fn plans() -> Vec<(&'static str, ZoneSet)> {
    let mut state = State::new(Region::default());
    let mut plans = Vec::new();
    let mut step = |what, changes: Vec<Change>| {
        for change in changes {
            state.apply(Timestamp::ZERO, change).expect("the laws' own changes hold");
        }
        plans.push((what, state.plan().zones()));
    };
    step("nothing", vec![]);
    let mut changes = vec![Change::AddNode(node())];
    changes.extend(network(1, Families::Ipv4).into_iter().chain(network(2, Families::DualStack)));
    step("networks without apps", changes);
    let mut changes = vec![
        app(1, 1, "web:2 My-App-Backend:3 idle:0 007:1"),
        app(2, 1, "web:0 worker:2"),
        app(3, 1, "cron:1"),
        app(4, 2, "web:2"),
    ];
    if let Some(Change::AddApp(app)) = changes.first_mut() {
        let ports = |text: &str| text.parse().expect("ports");
        let types = [("my-app-backend", "3000/tcp 53/udp"), ("idle", "80/tcp")];
        app.ports = types.map(|(of, text)| (of.parse().expect("a type"), ports(text))).into();
    }
    changes.extend(
        [run(1, 1, "web", 1), run(2, 1, "web", 2), run(3, 1, "my-app-backend", 1), run(4, 1, "007", 1)].concat(),
    );
    changes.extend([run(5, 2, "worker", 1), run(6, 4, "web", 1), run(7, 4, "web", 2)].concat());
    step("apps in two networks with the same addresses", changes);
    let replaces = Change::Replace { container: container(11), replaces: container(1), node: node().id };
    let mut changes =
        vec![replaces, Change::Ready(container(11)), Change::Fail(container(5)), Change::Fail(container(3))];
    changes.extend([run(8, 1, "my-app-backend", 3), run(9, 3, "cron", 1)].concat());
    step("a rolling restart, failures and starts", changes);
    let mut changes = vec![Change::Scale { app: AppId::from_u128(2), formation: formation("web:80") }];
    changes.extend((1..=80).flat_map(|index| run(100 + u128::from(index), 2, "web", index)));
    step("more containers than fit into a datagram", changes);
    let changes = (1..=75).map(|index| Change::Fail(container(100 + index))).collect();
    step("a scale-in", changes);
    step("a removed network", {
        let mut changes: Vec<Change> = [6, 7].map(|n| Change::Fail(container(n))).into();
        changes
            .extend([Change::RemoveApp(AppId::from_u128(4)), Change::DisablePrivateNetwork(ProjectId::from_u128(2))]);
        changes
    });
    plans
}

fn node() -> Node {
    let (underlay, tunnel) = ("192.0.2.1:51820".parse(), "100.64.0.1".parse());
    let label = "node-1".parse().expect("a label");
    let key = PublicKey::new([1; 32]);
    Node::new(NodeId::from_u128(1), label, underlay.expect("an address"), tunnel.expect("an address"), key)
}

fn network(n: u128, families: Families) -> Vec<Change> {
    let label = || "conformance".parse().expect("a label");
    let terms = Terms { accepted_by: label(), version: label(), accepted_at: Timestamp::ZERO };
    let project = ProjectId::from_u128(n);
    let mut request = NetworkRequest::new(project, NetworkId::from_u128(n), terms);
    request.families = families;
    vec![Change::AddProject(Project::new(project, label())), Change::EnablePrivateNetwork(request)]
}

fn app(n: u128, network: u128, text: &str) -> Change {
    let label = format!("app-{n}").parse().expect("a label");
    let mut app = App::new(AppId::from_u128(n), ProjectId::from_u128(network), label);
    app.formation = formation(text);
    Change::AddApp(app)
}

fn formation(text: &str) -> pn_core::Formation {
    text.parse().expect("a formation")
}

/// Starts a container and makes it ready.
fn run(n: u128, app: u128, container_type: &str, index: u32) -> Vec<Change> {
    let container_type = container_type.parse().expect("a type");
    let slot = Slot::new(AppId::from_u128(app), container_type, index).expect("slots are numbered from 1");
    vec![Change::Start { container: container(n), slot, node: node().id }, Change::Ready(container(n))]
}

fn container(n: u128) -> ContainerId {
    ContainerId::from_u128(n)
}

const TYPE_A: u16 = 1;
const TYPE_TXT: u16 = 16;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
const NO_ERROR: u16 = 0;
const NX_DOMAIN: u16 = 3;
const HEADER: usize = 12;

/// Length of the OPT record that ends a query.
const OPT: usize = 11;

/// The id of every query.
const ID: u16 = 0x1d;
