//! Zones handed to secondaries, and word to them when there is something new.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use pn_core::{DnsBackend, NetworkId, Report, Resolver, Transport, ZoneSet};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::messages::primary::{Asked, Keys, Wants, soa};
use crate::messages::{PeerError, Request, TsigKey};
use crate::records::Side;
use crate::{Names, Transfers, Zone};

/// A name server that has a copy of a network's zone, and maybe of its reverse zones.
#[derive(Debug, Clone)]
pub struct Secondary {
    /// The network.
    pub network: NetworkId,
    /// Where it is told of changes. It asks from this address too, from any port.
    pub address: SocketAddr,
    /// What both sides sign with.
    pub key: TsigKey,
}

/// Published names, of which secondaries have copies.
///
/// It publishes through [`Names`], so a server that answers from them is the primary, and given to that server as its
/// [`Transfers`] it hands zones out: whole (AXFR, RFC 5936), to whom is listed for the network, asks from the listed address and
/// signs with the listed key. IXFR is answered with the whole zone, or with "nothing new". The network's reverse zones
/// ([`ReverseZone`](crate::ReverseZone)) are handed out in the same way, under the same serial number.
///
/// After each change its secondaries get a NOTIFY (RFC 1996) of each zone, again until they confirm it or another change follows;
/// one that has not got a reverse zone may say so.
///
/// A secondary keeps the zone of a network that was removed until it is told otherwise, or for a week: take the zone from its
/// configuration.
///
/// Dropping it ends the notifications.
#[derive(Debug)]
pub struct Primary {
    names: Arc<Names>,
    secondaries: Vec<(Secondary, watch::Sender<u32>)>,
    keys: BTreeMap<NetworkId, Keys>,
    /// Ended when it is dropped.
    _notifiers: JoinSet<()>,
}

impl Primary {
    /// Makes the primary of names for these secondaries.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    #[must_use]
    pub fn new(names: Arc<Names>, secondaries: impl IntoIterator<Item = Secondary>) -> Self {
        let mut notifiers = JoinSet::new();
        let secondaries: Vec<_> = secondaries.into_iter().collect();
        let mut keys: BTreeMap<NetworkId, Keys> = BTreeMap::new();
        for Secondary { network, key, .. } in &secondaries {
            keys.entry(*network).or_default().insert(key.clone());
        }
        let secondaries = secondaries.into_iter().map(|secondary| {
            let (sender, changes) = watch::channel(0);
            notifiers.spawn(notify(Arc::clone(&names), secondary.clone(), changes));
            (secondary, sender)
        });
        Self { secondaries: secondaries.collect(), names, keys, _notifiers: notifiers }
    }

    fn reply(&self, network: NetworkId, peer: IpAddr, transport: Transport, asked: Asked) -> Messages {
        let one = |message: Vec<u8>| -> Messages { Box::new(core::iter::once(message)) };
        let key = asked.key();
        let is_listed = |secondary: &Secondary| {
            secondary.network == network && secondary.address.ip() == peer && Some(secondary.key.name()) == key
        };
        if !self.secondaries.iter().any(|(secondary, _)| is_listed(secondary)) {
            tracing::warn!(%network, %peer, ?key, "refused a transfer to somebody who is not listed");
            return one(asked.refuse());
        }
        let Some(zone) = self.names.zone(network) else {
            return one(asked.unknown());
        };
        let side = Side::all(zone.plan()).find(|side| asked.is_about(&side.name(network)));
        match (asked.wants, side) {
            (Wants::Other, _) => {
                let reply = self.names.resolve(network, transport, &asked.unsigned());
                let limit = if transport == Transport::Udp { asked.payload() } else { usize::from(u16::MAX) };
                Box::new(reply.and_then(|reply| asked.reply(&reply, limit)).into_iter())
            }
            (_, None) => one(asked.elsewhere()),
            (Wants::Changes(since), _) if transport == Transport::Udp || is_current(since, &zone) => {
                one(asked.unchanged(&zone))
            }
            (Wants::Zone, _) if transport == Transport::Udp => one(asked.refuse()),
            (Wants::Zone | Wants::Changes(_), Some(side)) => {
                tracing::info!(%network, %peer, ?side, serial = zone.serial(), "handing out a zone");
                Box::new(asked.transfer(&zone, side, now))
            }
        }
    }
}

type Messages = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// Returns whether a serial number is not before a zone's (RFC 1982).
fn is_current(serial: u32, zone: &Zone) -> bool {
    serial.wrapping_sub(zone.serial()) < 1 << 31
}

impl Transfers for Primary {
    fn transfer(&self, network: NetworkId, peer: SocketAddr, transport: Transport, query: &[u8]) -> Messages {
        let none = Keys::default();
        match Asked::open(query, self.keys.get(&network).unwrap_or(&none), now()) {
            Ok(asked) => self.reply(network, peer.ip().to_canonical(), transport, asked),
            Err(reply) => Box::new(reply.into_iter()),
        }
    }
}

#[async_trait]
impl DnsBackend for Primary {
    async fn publish(&self, zones: &ZoneSet) -> Report {
        let report = self.names.publish(zones).await;
        for (secondary, changed) in &self.secondaries {
            if let Some(zone) = self.names.zone(secondary.network) {
                changed.send_if_modified(|serial| core::mem::replace(serial, zone.serial()) != zone.serial());
            }
        }
        report
    }
}

/// Tells a secondary of every change, until it is dropped.
async fn notify(names: Arc<Names>, secondary: Secondary, mut changes: watch::Receiver<u32>) {
    while changes.changed().await.is_ok() {
        let mut patience = FIRST_PATIENCE;
        while let Some(zone) = names.zone(secondary.network) {
            changes.mark_unchanged();
            let told = tokio::select! {
                told = timeout(patience, tell(&secondary, &zone)) => told.unwrap_or_else(|error| Err(error.into())),
                // Only the newest serial number is of interest.
                Ok(()) = changes.changed() => continue,
            };
            let Err(error) = told else {
                break;
            };
            let (network, address) = (secondary.network, secondary.address);
            if patience >= LAST_PATIENCE {
                tracing::warn!(%network, secondary = %address, %error, "a secondary does not confirm that it was notified");
                break;
            }
            tracing::debug!(%network, secondary = %address, %error, "notifying a secondary again");
            // An error may come at once, and then the wait is still to be had.
            tokio::select! {
                () = tokio::time::sleep(patience) => {}
                Ok(()) = changes.changed() => {}
            }
            patience *= 2;
        }
    }
}

/// Sends a NOTIFY of each zone of a network and waits for their confirmations.
async fn tell(secondary: &Secondary, zone: &Zone) -> io::Result<()> {
    let any =
        if secondary.address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(secondary.address).await?;
    let id = fastrand::Rng::new().u16(..);
    let notify = |(side, n): (Side, u16)| {
        let name = side.name(secondary.network);
        (side, Request::notify(&name, &soa(zone, &name), Some(&secondary.key), id.wrapping_add(n), now()))
    };
    let mut open: Vec<(Side, Request)> = Side::all(zone.plan()).zip(0..).map(notify).collect();
    for (_, request) in &open {
        socket.send(&request.octets).await?;
    }
    let mut reply = vec![0; MAX_REPLY];
    while !open.is_empty() {
        let len = socket.recv(&mut reply).await?;
        let reply = reply.get(..len).unwrap_or_default();
        // What is no reply to any of them is nobody's.
        open.retain(|(side, request)| !is_told(*side, request.read(reply.to_vec(), now())));
    }
    Ok(())
}

/// Returns whether a reply to a NOTIFY is the end of it. Not every secondary has the reverse zones.
fn is_told<T>(side: Side, reply: Result<T, PeerError>) -> bool {
    match (side, reply) {
        (_, Ok(_)) | (Side::Reverse(_), Err(PeerError::Refused { .. })) => true,
        (_, Err(_)) => false,
    }
}

/// Returns the seconds since 1970, which signatures are bound to.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long a secondary has to confirm, at first and at last.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const LAST_PATIENCE: Duration = Duration::from_secs(32);

/// The longest reply to a notification, in octets.
const MAX_REPLY: usize = 4096;

#[cfg(test)]
mod tests;
