//! Answers as a pure function of what the asker may see.

mod quick;

use fastrand::Rng;
use pn_core::{Name, Slot, Transport};

pub(crate) use self::quick::Plain;
use crate::cookie::Cookies;
use crate::rcode::Rcode;
use crate::wire::{Extra, Family, Header, PAYLOAD, Query, QueryType, Writer};
use crate::zone::{Lookup, Zone, is_never_elsewhere};

/// What one asker may see, and what the server tells it of itself.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct View<'a> {
    /// The zone of the asker's network; `None` where it is not known here.
    pub zone: Option<&'a Zone>,
    /// Whether the zone is too old to be told (D10): what it would answer is SERVFAIL.
    pub is_expired: bool,
    /// The server's identifier, for those who ask (RFC 5001).
    pub nsid: Option<&'a [u8]>,
    /// What the client's cookies are made of; without it, cookies are passed over.
    pub cookies: Option<Cookies<'a>>,
}

impl<'a> View<'a> {
    /// Makes the view from inside a network.
    #[must_use]
    pub const fn of(zone: &'a Zone) -> Self {
        Self { zone: Some(zone), is_expired: false, nsid: None, cookies: None }
    }
}

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It gets no reply.
    Silence,
    /// It has its reply.
    Answered,
    /// It is for somebody else's name: the reply says REFUSED, unless somebody else is asked.
    Elsewhere,
    /// It asks for a zone: the reply says REFUSED, unless the zone is handed over.
    Transfer,
    /// It is signed: the reply is what it would be without.
    Signed,
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
/// | not exactly one question, records where a query has none, malformed, a cookie of a wrong length | FORMERR |
/// | EDNS version above 0 | BADVERS |
/// | class other than IN, a zone transfer, a name outside of the network's zones | REFUSED |
/// | the asker's network is not known, or what is known of it is too old | SERVFAIL |
/// | a name with addresses, A or ANY | its addresses, shuffled; a random part of them with TC set where not all fit |
/// | the same in a network with IPv6, AAAA | the same |
/// | a port that a type declares, SRV or ANY | the names of its containers, shuffled; a random part where not all fit |
/// | the reverse name of a container's address, PTR or ANY | its name |
/// | the domain of the network, the suffix, a reverse zone, SOA or ANY | the SOA record |
/// | the same, NS | the NS record |
/// | a name that exists, anything else | no answer, and an SOA record as authority |
/// | any other name | NXDOMAIN, and an SOA record as authority |
///
/// ANY gets one kind of records (RFC 8482 §4.1).
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
    let mut reply = Vec::new();
    match respond(&view, transport, query, rng, &mut reply) {
        Verdict::Silence => None,
        Verdict::Answered | Verdict::Elsewhere | Verdict::Transfer | Verdict::Signed => Some(reply),
    }
}

/// Answers as [`answer`] does, without the quick way for plain questions: for those who compare the two.
#[cfg(fuzzing)]
pub fn answer_fully(view: View<'_>, transport: Transport, query: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let mut reply = Vec::new();
    let verdict = respond_fully(&view, transport, query, rng, &mut reply);
    (verdict != Verdict::Silence).then_some(reply)
}

/// Writes the reply to one query in place of what is in `reply`. Plain questions take the quick way.
pub(crate) fn respond(
    view: &View<'_>,
    transport: Transport,
    query: &[u8],
    rng: &mut Rng,
    reply: &mut Vec<u8>,
) -> Verdict {
    let [plain] = look_up(view, core::iter::once(query));
    let (Some(zone), Some(plain)) = (view.zone, plain) else {
        return respond_fully(view, transport, query, rng, reply);
    };
    let len = plain.reply_len(zone, transport);
    reply.clear();
    reply.extend_from_slice(&query[..query.len().min(len)]);
    reply.resize(len, 0);
    plain.answer(zone, transport, rng, reply);
    Verdict::Answered
}

/// Looks up what the plain questions among several queries ask for, all at once.
pub(crate) fn look_up<'q, 'z, const N: usize>(
    view: &View<'z>,
    queries: impl Iterator<Item = &'q [u8]> + Clone,
) -> [Option<Plain<'z>>; N] {
    let Some(zone) = view.zone.filter(|_| !view.is_expired) else {
        return [const { None }; N];
    };
    let mut plain = [const { None }; N];
    for (plain, query) in plain.iter_mut().zip(queries.clone()) {
        *plain = Plain::read(zone, query);
    }
    quick::look_up(zone, queries, &mut plain);
    plain
}

/// Answers whatever there is: the way that plain questions need not take.
pub(crate) fn respond_fully(
    view: &View<'_>,
    transport: Transport,
    query: &[u8],
    rng: &mut Rng,
    reply: &mut Vec<u8>,
) -> Verdict {
    let Some(header) = Header::of_query(query) else {
        return Verdict::Silence;
    };
    let query = match Query::parse(header, query) {
        Ok(query) => query,
        Err(rcode) => {
            header.reply(rcode, reply);
            return Verdict::Answered;
        }
    };
    let extra = Extra { nsid: view.nsid, cookies: view.cookies };
    let writer = Writer::new(&query, limit(transport, query.payload()), extra, reply);
    let verdict = respond_to(view, transport, &query, rng, writer);
    if query.is_signed() && !query.is_of_the_future() { Verdict::Signed } else { verdict }
}

fn respond_to(
    view: &View<'_>,
    transport: Transport,
    query: &Query<'_>,
    rng: &mut Rng,
    mut reply: Writer<'_, '_>,
) -> Verdict {
    if query.is_of_the_future() {
        reply.finish(Rcode::BadVers);
        return Verdict::Answered;
    }
    if !query.is_internet() || query.query_type() == QueryType::Transfer {
        reply.finish(Rcode::Refused);
        let is_transfer = query.is_internet() && transport == Transport::Tcp;
        return if is_transfer { Verdict::Transfer } else { Verdict::Answered };
    }
    let labels: Vec<&[u8]> = query.labels().collect();
    let found = view.zone.map(|zone| (zone, zone.find(&labels)));
    let (zone, found, apex) = match found {
        Some((zone, (found, apex))) if found != Lookup::Elsewhere && !view.is_expired => (zone, found, apex),
        Some((_, (Lookup::Elsewhere, _))) => {
            reply.finish(Rcode::Refused);
            return Verdict::Elsewhere;
        }
        None if !is_never_elsewhere(&labels) => {
            reply.finish(Rcode::Refused);
            return Verdict::Elsewhere;
        }
        Some(_) | None => {
            reply.finish(Rcode::ServFail);
            return Verdict::Answered;
        }
    };
    reply.set_authoritative();
    let ttl = zone.ttl();
    match (found, query.query_type(), zone.plan().ipv6) {
        (Lookup::Addresses(containers), QueryType::Ipv4 | QueryType::Any, _) => {
            reply.addresses((Family::V4, ttl), containers, rng);
        }
        (Lookup::Addresses(containers), QueryType::Ipv6, Some(prefix)) => {
            reply.addresses((Family::V6(prefix), ttl), containers, rng);
        }
        (Lookup::Service { of_type, port }, QueryType::Service | QueryType::Any, _) => {
            let mut indexes: Vec<u32> = of_type.containers.iter().map(|(index, _)| *index).collect();
            rng.shuffle(&mut indexes);
            let fits = indexes.into_iter().all(|index| {
                let slot = Slot::new(of_type.app, of_type.container_type, index).expect("planned slots have an index");
                reply.service(ttl, port.number.get(), &Name::container(zone.network(), &slot))
            });
            if !fits {
                reply.set_truncated();
            }
        }
        (Lookup::Pointer(name), QueryType::Pointer | QueryType::Any, _) => reply.pointer(ttl, &name),
        (Lookup::Apex, QueryType::Authority | QueryType::Any, _) => reply.authority(zone),
        (Lookup::Apex, QueryType::NameServer, _) => reply.name_server(ttl),
        _ => reply.deny(zone, apex),
    }
    reply.finish(if found == Lookup::NxDomain { Rcode::NxDomain } else { Rcode::NoError });
    Verdict::Answered
}

/// Returns whether a query has a cookie that its client got from here.
#[cfg(feature = "server")]
pub(crate) fn is_of_known_client(query: &[u8], cookies: &Cookies<'_>) -> bool {
    let cookie = Header::of_query(query).and_then(|header| Query::parse(header, query).ok()?.cookie());
    cookie.is_some_and(|cookie| cookies.is_valid(&cookie))
}

/// Returns whether a message may get a reply.
#[cfg(feature = "server")]
pub(crate) fn is_query(message: &[u8]) -> bool {
    Header::of_query(message).is_some()
}

/// Answers a query with nothing but that there is more to say over TCP, or with what is wrong with it.
#[cfg(feature = "server")]
pub(crate) fn respond_truncated(view: &View<'_>, query: &[u8], reply: &mut Vec<u8>) {
    let Some(header) = Header::of_query(query) else {
        return;
    };
    let query = match Query::parse(header, query) {
        Ok(query) => query,
        Err(rcode) => return header.reply(rcode, reply),
    };
    let extra = Extra { nsid: view.nsid, cookies: view.cookies };
    let mut writer = Writer::new(&query, limit(Transport::Udp, query.payload()), extra, reply);
    if query.is_of_the_future() {
        return writer.finish(Rcode::BadVers);
    }
    writer.set_truncated();
    writer.finish(Rcode::NoError);
}

/// Returns how long a reply may be, in octets (RFC 6891 §6.2.3).
fn limit(transport: Transport, payload: Option<u16>) -> usize {
    usize::from(match (transport, payload) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(payload)) => payload.clamp(MIN_PAYLOAD, PAYLOAD),
        (Transport::Udp, None) => MIN_PAYLOAD,
    })
}

/// What every client takes over UDP, in octets (RFC 1035 §4.2.1).
const MIN_PAYLOAD: u16 = 512;

#[cfg(test)]
mod tests;
