//! Answers as a pure function of what the asker may see.

use core::net::Ipv4Addr;

use fastrand::Rng;
use pn_core::Transport;

use crate::wire::{Header, PAYLOAD, Query, QueryType, Rcode, Soa, Writer};
use crate::zone::{Lookup, Zone, beneath_suffix};

/// What one asker may see.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct View<'a> {
    /// The zone of the asker's network; `None` where it is not known here.
    pub zone: Option<&'a Zone>,
}

impl<'a> View<'a> {
    /// Makes the view from inside a network.
    #[must_use]
    pub const fn of(zone: &'a Zone) -> Self {
        Self { zone: Some(zone) }
    }
}

/// Answers one query, a DNS message without TCP's length prefix. `None` means silence.
///
/// It is total: any octets will do, and the same arguments give the same reply. Randomness decides the order of addresses,
/// and which of them are left out where not all fit.
///
/// | query | reply |
/// |---|---|
/// | shorter than a header, or a reply itself | silence |
/// | opcode other than QUERY | NOTIMP |
/// | not exactly one question, records where a query has none, malformed | FORMERR |
/// | EDNS version above 0 | BADVERS |
/// | class other than IN, a zone transfer, a name outside `private-network.internal` | REFUSED |
/// | the asker's network is not known | SERVFAIL |
/// | a name with addresses, A or ANY | its addresses, shuffled; a random part of them with TC set where not all fit |
/// | the domain of the network or the suffix, SOA or ANY | the SOA record |
/// | a name that exists, anything else | no answer, and an SOA record as authority |
/// | any other name | NXDOMAIN, and an SOA record as authority |
///
/// ```
/// use pn_core::Transport;
/// use pn_dns::{View, answer};
///
/// let mut rng = fastrand::Rng::with_seed(1);
/// let query = pn_dns::stub::query("ap-x.pn-y.private-network.internal", 7)?;
/// let reply = answer(View::default(), Transport::Udp, &query, &mut rng).unwrap();
/// assert_eq!(reply[3] & 0xf, 2, "SERVFAIL: the network is not known");
/// # Ok::<(), pn_dns::stub::StubError>(())
/// ```
#[must_use]
pub fn answer(view: View<'_>, transport: Transport, query: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let header = Header::of_query(query)?;
    let query = match Query::parse(header, query) {
        Ok(query) => query,
        Err(rcode) => return Some(header.reply(rcode)),
    };
    let mut reply = Writer::new(&query, limit(transport, query.payload()));
    if query.is_of_the_future() {
        return Some(reply.finish(Rcode::BadVers));
    }
    if !query.is_internet() || query.query_type() == QueryType::Transfer {
        return Some(reply.finish(Rcode::Refused));
    }
    let Some(zone) = view.zone else {
        let ours = beneath_suffix(query.labels()).is_some();
        return Some(reply.finish(if ours { Rcode::ServFail } else { Rcode::Refused }));
    };
    let found = zone.lookup(query.labels());
    if found == Lookup::Elsewhere {
        return Some(reply.finish(Rcode::Refused));
    }
    reply.set_authoritative();
    match (found, query.query_type()) {
        (Lookup::Addresses(containers), QueryType::Address | QueryType::Any) => {
            add_addresses(&mut reply, zone.ttl(), containers, rng);
        }
        (Lookup::Apex, QueryType::Authority | QueryType::Any) => reply.answer_soa(soa(zone, &query)),
        _ => reply.deny(soa(zone, &query)),
    }
    Some(reply.finish(if found == Lookup::NxDomain { Rcode::NxDomain } else { Rcode::NoError }))
}

/// Returns how long a reply may be, in octets (RFC 6891 §6.2.3).
fn limit(transport: Transport, payload: Option<u16>) -> usize {
    usize::from(match (transport, payload) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(payload)) => payload.clamp(MIN_PAYLOAD, PAYLOAD),
        (Transport::Udp, None) => MIN_PAYLOAD,
    })
}

fn add_addresses(reply: &mut Writer<'_>, ttl: u32, containers: &[(u32, Ipv4Addr)], rng: &mut Rng) {
    if let [(_, address)] = containers {
        return reply.addresses(ttl, core::iter::once(*address));
    }
    let mut addresses: Vec<Ipv4Addr> = containers.iter().map(|(_, address)| *address).collect();
    rng.shuffle(&mut addresses);
    let room = reply.room();
    if room < addresses.len() {
        addresses.truncate(room);
        reply.set_truncated();
    }
    reply.addresses(ttl, addresses.into_iter());
}

/// Returns the SOA record of the closest enclosing zone: the network's, or the one around all networks.
fn soa(zone: &Zone, query: &Query<'_>) -> Soa {
    let labels = if zone.encloses(query.labels()) { 3 } else { 2 };
    Soa { labels, serial: zone.serial(), ttl: zone.negative_ttl() }
}

/// What every client takes over UDP, in octets (RFC 1035 §4.2.1).
const MIN_PAYLOAD: u16 = 512;

#[cfg(test)]
mod tests;
