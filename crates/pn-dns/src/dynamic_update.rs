//! A zone on another name server, kept equal to the plan by dynamic updates.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use pn_core::{Action, BackendError, DnsBackend, Generation, NetworkId, Report, Stage, ZonePlan, ZoneSet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::Zone;
use crate::messages::{Contents, Edit, PeerError, Prerequisite, RECORDS_LIMIT, Request, Transfer, TsigKey, ZoneSoa};
use crate::records::Side;
use crate::zone::ReverseZone;

use self::difference::{Marker, contents, difference, is_the_servers, marker, marker_key, read_marker, touched};

mod difference;

/// Keeps one network's zone, `pn-UUID.private-network.internal.`, on a primary such as BIND or Knot equal to what is published,
/// by updates (RFC 2136) that are signed (RFC 8945). Each of its reverse zones is kept by [another](Self::reverse).
///
/// The zone has to be there, with an SOA and an NS record, and its server has to allow the key to update and transfer it.
/// Everything in it but those two and DNSSEC's records belongs to this backend: what somebody else adds, changes or removes is
/// put right. The SOA record's MINIMUM is set so that no denial outlives a change.
///
/// - Each publication is one message, as long as what changed: a server that makes updates at once, as BIND and Knot do, shows
///   a change whole or not at all. More than some 1 300 changed records take several messages, withdrawals first.
/// - A TXT record at `_generation` says which set last changed the zone, and each update has as a prerequisite that it still does:
///   of two publishers the one with the older plan is refused.
/// - The zone is read whole (AXFR) by the first publication and whenever its serial number is not the one that the last update
///   left, which is how changes made by hand are noticed; [`repair`](Self::repair) does that at any time.
///
/// BIND (from 9.18.28) takes no more than 100 records of one name and type where its `max-records-per-type` does not say otherwise:
/// set it to 0, or to more than a type has containers.
///
/// Where several networks share a server, give each a view of its own: an answer depends on who asks.
#[derive(Debug)]
pub struct DynamicUpdate {
    network: NetworkId,
    side: Side,
    zone: String,
    server: SocketAddr,
    key: TsigKey,
    patience: Duration,
    published: Mutex<Published>,
}

/// What was last published.
#[derive(Debug)]
struct Published {
    newest: (Generation, Stage),
    plan: Option<Arc<ZonePlan>>,
    /// What the server had when it was last looked at; `None` where that is not known.
    there: Option<There>,
}

/// What is on the server, which is what the published plan says.
#[derive(Debug, Clone)]
struct There {
    serial: u32,
    marker: (Generation, Stage),
}

impl DynamicUpdate {
    /// Makes the publisher of a network's zone on a server, over TCP. Nothing is sent before the first `publish`.
    #[must_use]
    pub fn new(network: NetworkId, server: SocketAddr, key: TsigKey) -> Self {
        Self::of(network, Side::Forward, server, key)
    }

    /// Makes the publisher of one of a network's reverse zones instead.
    ///
    /// ```
    /// # use pn_dns::{DynamicUpdate, ReverseZone, TsigKey};
    /// # use pn_core::{NetworkId, Subnet};
    /// # let key: TsigKey = "hmac-sha256:key.:c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldCE=".parse()?;
    /// let (network, server) = (NetworkId::from_u128(1), "192.0.2.53:53".parse()?);
    /// let reverse: Vec<DynamicUpdate> = ReverseZone::of(Subnet::DEFAULT, None)
    ///     .map(|zone| DynamicUpdate::reverse(network, zone, server, key.clone()))
    ///     .collect();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn reverse(network: NetworkId, zone: ReverseZone, server: SocketAddr, key: TsigKey) -> Self {
        Self::of(network, Side::Reverse(zone), server, key)
    }

    fn of(network: NetworkId, side: Side, server: SocketAddr, key: TsigKey) -> Self {
        let newest = (Generation::ZERO, Stage::Meanwhile);
        let published = Mutex::new(Published { newest, plan: None, there: None });
        Self { network, side, zone: side.name(network), server, key, patience: PATIENCE, published }
    }

    /// Sets how long the server may take for each message: 5 s where nothing is said.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.patience = timeout;
        self
    }

    /// Compares the whole zone with what was last published, and repairs it.
    ///
    /// # Cancel safety
    /// As [`publish`](DnsBackend::publish).
    pub async fn repair(&self) -> Report {
        let mut published = self.published.lock().await;
        published.there = None;
        let (newest, plan) = (published.newest, published.plan.clone());
        self.make(&mut published, newest, plan).await
    }

    /// Makes the zone what a plan says, and reports it.
    async fn make(
        &self,
        published: &mut Published,
        newest: (Generation, Stage),
        plan: Option<Arc<ZonePlan>>,
    ) -> Report {
        let mut report = Report::new(newest.0);
        let object = match self.side {
            Side::Forward => format!("zone {}", self.network),
            Side::Reverse(zone) => format!("zone {zone} of {}", self.network),
        };
        // Whoever gives up in between leaves a zone that is looked at whole the next time.
        let there = published.there.take();
        let mut result = self.attempt(published, there, newest, plan.as_ref()).await;
        for _ in 1..ATTEMPTS {
            if !matches!(result, Err(Failure::Peer(PeerError::Overtaken { .. }))) {
                break;
            }
            result = self.attempt(published, None, newest, plan.as_ref()).await;
        }
        match result {
            Ok((there, action)) => {
                *published = Published { newest, plan, there: Some(there) };
                if let Some(action) = action {
                    report.record(object, Ok(action));
                }
            }
            Err(Failure::Superseded(found)) => {
                report.record(object, Err(BackendError::superseded(newest.0, found)));
            }
            Err(Failure::Peer(error)) => {
                let failure = BackendError::new(error.kind(), "update", format_args!("{object} on {}", self.server));
                report.record(object, Err(failure.with_source(error)));
            }
        }
        report
    }

    async fn attempt(
        &self,
        published: &Published,
        there: Option<There>,
        newest: (Generation, Stage),
        plan: Option<&Arc<ZonePlan>>,
    ) -> Result<(There, Option<Action>), Failure> {
        let mut connection = Connection::open(self.server, self.patience).await?;
        let soa = connection.soa(self).await?;
        // What was published last is still there: only what differs from it needs a look.
        let known = there.filter(|there| there.serial == soa.serial);
        let (soa, have, want, before) = if let Some(there) = known {
            let apps = touched(published.plan.as_deref(), plan.map(Arc::as_ref));
            let of = |plan: Option<&ZonePlan>| {
                plan.map_or_else(Contents::new, |plan| contents(self.side, plan, Some(&apps)))
            };
            (soa, of(published.plan.as_deref()), of(plan.map(Arc::as_ref)), Marker::Ours(there.marker))
        } else {
            let plans = [published.plan.as_deref(), plan.map(Arc::as_ref)];
            let (soa, mut have) = connection.transfer(self, records_limit(self.side, plans)).await?;
            let before = have.remove(&marker_key()).map_or(Marker::Missing, |found| read_marker(&found));
            (soa, have, plan.map_or_else(Contents::new, |plan| contents(self.side, plan, None)), before)
        };
        if let Marker::Ours(before) = before
            && before > newest
        {
            return Err(Failure::Superseded(before.0));
        }
        let negative = plan.map_or(NEGATIVE_TTL, |plan| Zone::new(Arc::clone(plan), 0).negative_ttl());
        let mut edits = difference(&have, &want);
        let was_empty = published.plan.is_none() && have.keys().all(is_the_servers);
        if (soa.minimum, soa.ttl) != (negative, negative) {
            let serial = soa.serial.wrapping_add(1);
            edits.push(Edit::Soa(ZoneSoa { serial, minimum: negative, ttl: negative, ..soa.clone() }));
        }
        let action = match plan {
            _ if edits.is_empty() => None,
            Some(_) if was_empty => Some(Action::Created),
            Some(_) => Some(Action::Updated),
            None => Some(Action::Removed),
        };
        if let (Marker::Ours(marker), None) = (before, action) {
            return Ok((There { serial: soa.serial, marker }, None));
        }
        connection.update(self, &edits, before, newest).await?;
        let serial = connection.soa(self).await?.serial;
        tracing::debug!(zone = self.zone, server = %self.server, edits = edits.len(), generation = %newest.0, "updated a zone");
        Ok((There { serial, marker: newest }, action))
    }
}

#[async_trait]
impl DnsBackend for DynamicUpdate {
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    async fn publish(&self, zones: &ZoneSet) -> Report {
        let mut published = self.published.lock().await;
        let newest = (zones.generation, zones.stage);
        if newest < published.newest {
            return Report::refused(newest.0, BackendError::superseded(newest.0, published.newest.0));
        }
        self.make(&mut published, newest, zones.zones.get(&self.network).cloned()).await
    }
}

/// Why the zone is not what it should be.
#[derive(Debug)]
enum Failure {
    /// Somebody made it what a later plan says.
    Superseded(Generation),
    /// The server could not, or would not.
    Peer(PeerError),
}

impl From<PeerError> for Failure {
    fn from(error: PeerError) -> Self {
        Self::Peer(error)
    }
}

/// A connection to a name server, on which one request follows the reply to another.
struct Connection {
    stream: TcpStream,
    server: SocketAddr,
    patience: Duration,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.server)
    }
}

impl Connection {
    async fn open(server: SocketAddr, patience: Duration) -> Result<Self, PeerError> {
        let unreachable = |source| PeerError::Unreachable { server, source };
        let connected = timeout(patience, TcpStream::connect(server)).await;
        let stream = connected.map_err(|error| unreachable(error.into()))?.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(Self { stream, server, patience })
    }

    async fn soa(&mut self, zone: &DynamicUpdate) -> Result<ZoneSoa, PeerError> {
        let request = Request::soa(&zone.zone, Some(&zone.key), fastrand::u16(..), now());
        let soa = self.exchange(&request).await?;
        soa.ok_or_else(|| PeerError::Refused {
            zone: zone.zone.clone(),
            rcode: "no SOA record".to_owned(),
            hint: "configure the zone on the server, as primary",
        })
    }

    async fn transfer(&mut self, zone: &DynamicUpdate, limit: usize) -> Result<(ZoneSoa, Contents), PeerError> {
        let (message, mut transfer) = Transfer::request(&zone.zone, Some(&zone.key), fastrand::u16(..), now());
        transfer.limit = limit;
        self.send(&message).await?;
        while !transfer.read(self.receive().await?, now())? {}
        transfer.finish()
    }

    /// Makes edits, in as few messages as they fit into. The last one says of which set they are.
    async fn update(
        &mut self,
        zone: &DynamicUpdate,
        mut edits: &[Edit],
        before: Marker,
        newest: (Generation, Stage),
    ) -> Result<(), PeerError> {
        let prerequisites: Vec<Prerequisite> = match before {
            Marker::Ours(before) => vec![Prerequisite::Exactly(marker_key(), BTreeSet::from([marker(before)]))],
            Marker::Missing => vec![Prerequisite::None(marker_key())],
            Marker::Foreign => vec![],
        };
        let sign = [Edit::DeleteSet(marker_key()), Edit::Add(marker_key(), 0, marker(newest))];
        loop {
            let make = |last: &[Edit]| {
                Request::update(&zone.zone, &prerequisites, edits, last, Some(&zone.key), (fastrand::u16(..), now()))
            };
            let (mut request, mut fitted) = make(&sign);
            let is_last = fitted == edits.len();
            if !is_last {
                (request, fitted) = make(&[]);
            }
            assert!(is_last || fitted > 0, "no edit is as long as an update: records of others go as a set");
            self.exchange(&request).await?;
            if is_last {
                return Ok(());
            }
            edits = edits.get(fitted..).unwrap_or_default();
        }
    }

    async fn exchange(&mut self, request: &Request) -> Result<Option<ZoneSoa>, PeerError> {
        self.send(&request.octets).await?;
        request.read(self.receive().await?, now())
    }

    async fn send(&mut self, message: &[u8]) -> Result<(), PeerError> {
        let len = u16::try_from(message.len()).map_err(|_| PeerError::Malformed)?;
        let octets = [&len.to_be_bytes(), message].concat();
        let sent = timeout(self.patience, self.stream.write_all(&octets)).await;
        self.reached(sent.unwrap_or_else(|error| Err(error.into())))
    }

    async fn receive(&mut self) -> Result<Vec<u8>, PeerError> {
        let stream = &mut self.stream;
        let message = async {
            let mut message = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut message).await?;
            Ok(message)
        };
        let received = timeout(self.patience, message).await;
        self.reached(received.unwrap_or_else(|error| Err(error.into())))
    }

    fn reached<T>(&self, result: io::Result<T>) -> Result<T, PeerError> {
        result.map_err(|source| PeerError::Unreachable { server: self.server, source })
    }
}

/// Returns how many records are read of a zone at most: twice as many as plans put there, where that is more than enough for anybody.
fn records_limit(side: Side, plans: [Option<&ZonePlan>; 2]) -> usize {
    let records = |plan: &ZonePlan| plan.apps.iter().map(|names| side.records_of(plan, names.app).count()).sum();
    plans.into_iter().flatten().map(records).fold(RECORDS_LIMIT, |limit, records: usize| limit.max(2 * records))
}

/// Returns the seconds since 1970, which signatures are bound to.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long a server may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a zone is looked at again because somebody else changed it meanwhile.
const ATTEMPTS: usize = 4;

/// Time to live of denials in a zone without names, in seconds.
const NEGATIVE_TTL: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Model, network};

    /// What a plan of ours puts there is read again, however much it is.
    #[test]
    fn no_zone_of_ours_is_too_large() {
        let mut model = Model::new();
        model.app(1, 1, "web:800");
        let small = Arc::clone(&model.zones().zones[&network(1)]);
        for index in 1..=800 {
            model.run(1, "web", index);
        }
        let ports: String = (1..=700).map(|port| format!("{port}/tcp ")).collect();
        model.listen(1, "web", &ports);
        let large = Arc::clone(&model.zones().zones[&network(1)]);
        // Each container has a name, its type's, its app's, and one for each port.
        let records = 800 * (3 + 700);
        assert_eq!(records_limit(Side::Forward, [None, Some(&small)]), RECORDS_LIMIT);
        for plans in [[Some(&*small), Some(&*large)], [Some(&*large), None]] {
            assert_eq!(records_limit(Side::Forward, plans), 2 * records);
        }
    }
}
