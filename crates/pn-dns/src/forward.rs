//! Other names, asked of upstream servers.

use core::fmt;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequestOptions, Edns, Message, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::EdnsOption;
use hickory_resolver::proto::rr::{Name, Record};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};
use pn_core::Transport;
use pn_core::name::SUFFIX;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use crate::OtherNames;

/// Asks upstream servers for names that are not ours, and keeps their answers.
///
/// - An upstream is asked over UDP, from a random port with a random id, and over TCP where its reply is truncated. A reply with
///   another id, from another address or to another question does not count.
/// - Upstreams are asked one after another, from the one that answered last: one that is silent, unreachable, or fails or
///   refuses is passed over. Where none answers, the reply is SERVFAIL with an extended error (RFC 8914).
/// - Answers are kept as long as they say, at most a day, denials at most 5 minutes, and at most 8 192 in all.
/// - Nothing under `private-network.internal` is ever asked for or believed, nor are the reverse zones of private and
///   link-local addresses (RFC 6303): those names are ours or nobody's.
///
/// Replies are not validated (DNSSEC), and do not say that they are.
///
/// It is built of `hickory-resolver`'s pool and cache, not of its resolver, which follows aliases by itself and would ask an
/// upstream for our names where somebody's alias leads to one.
pub struct Forwarder {
    upstreams: Vec<Upstream>,
    /// Which upstream answered last.
    preferred: AtomicUsize,
    cache: ResponseCache,
    timeout: Duration,
}

struct Upstream {
    address: SocketAddr,
    pool: NameServerPool<TokioRuntimeProvider>,
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upstreams: Vec<_> = self.upstreams.iter().map(|upstream| upstream.address).collect();
        f.debug_struct("Forwarder").field("upstreams", &upstreams).finish_non_exhaustive()
    }
}

/// Why there is no [`Forwarder`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// There is nobody to ask.
    #[error("there is no upstream server: give at least one, or no forwarder, and other names are refused")]
    NoUpstream,
    /// An address is not one that can be asked.
    #[error("{address} is no upstream server: give the address and port of one, such as 192.0.2.53:53")]
    Upstream {
        /// The address.
        address: SocketAddr,
    },
}

impl Forwarder {
    /// Makes a forwarder to upstream servers, the first preferred.
    ///
    /// # Errors
    /// [`ForwardError`]: there is none, or one has no address or port.
    pub fn new(upstreams: impl IntoIterator<Item = SocketAddr>) -> Result<Self, ForwardError> {
        Self::with_timeout(upstreams, TIMEOUT)
    }

    /// Makes a forwarder that waits this long for each upstream; [`new`](Self::new) waits 2 s.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_timeout(
        upstreams: impl IntoIterator<Item = SocketAddr>,
        timeout: Duration,
    ) -> Result<Self, ForwardError> {
        let mut options = ResolverOpts::default();
        options.timeout = timeout;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.max_active_requests = MAX_ACTIVE;
        let cache = ResponseCache::new(CACHED, TtlConfig::from_opts(&options));
        let upstream = |address| Upstream::new(address, &options).ok_or(ForwardError::Upstream { address });
        let upstreams = upstreams.into_iter().map(upstream).collect::<Result<Vec<_>, _>>()?;
        if upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        Ok(Self { upstreams, preferred: AtomicUsize::new(0), cache, timeout })
    }

    /// Returns what is known of a question, or what the first upstream says that says anything.
    async fn find(&self, question: &Query) -> Found {
        if let Some(found) = self.cache.get(question, Instant::now()).and_then(Found::of) {
            return found;
        }
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.upstreams.len());
        let mut failure = Found::unreachable();
        for index in (0..count).map(|n| (first + n) % count) {
            let Some(upstream) = self.upstreams.get(index) else {
                continue;
            };
            let said = upstream.ask(question, self.timeout).await;
            let Some(found) = Found::of(said.clone()) else {
                let error = said.err();
                failure = Found::failed(error.as_ref(), upstream.address);
                let why = failure.error.as_ref().map(|(_, why)| why.as_str());
                tracing::warn!(upstream = %upstream.address, why, "an upstream server did not answer");
                // It may say what was asked for.
                tracing::debug!(upstream = %upstream.address, ?error, "what an upstream server did instead");
                continue;
            };
            if index != first {
                self.preferred.store(index, Ordering::Relaxed);
            }
            if found.answers.len() <= MAX_CACHED_RECORDS {
                self.cache.insert(question.clone(), said, Instant::now());
            }
            return found;
        }
        failure
    }
}

#[async_trait]
impl OtherNames for Forwarder {
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?;
        let found = match Keeping::of(question.name()) {
            Keeping::Ours => Found::code(ResponseCode::Refused),
            Keeping::Nobodys => Found::code(ResponseCode::NXDomain),
            Keeping::Others => self.find(question).await,
        };
        reply(&query, found, limit(&query, transport))
    }
}

impl Upstream {
    fn new(address: SocketAddr, options: &ResolverOpts) -> Option<Self> {
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return None;
        }
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        let server = NameServerConfig::new(address.ip(), true, connections.into());
        let context = Arc::new(PoolContext::new(options.clone(), TlsConfig::new().ok()?));
        // A pool for each, since one pool for all would not pass over a server that fails or refuses.
        let pool = NameServerPool::from_config([server], context, TokioRuntimeProvider::default());
        Some(Self { address, pool })
    }

    async fn ask(&self, question: &Query, patience: Duration) -> Result<Message, NetError> {
        let mut options = DnsRequestOptions::default();
        options.edns_payload_len = PAYLOAD;
        let answer = self.pool.lookup(question.clone(), options).first_answer();
        // It would warn of a reply to another question, and say what the question was.
        let answer = answer.with_subscriber(NoSubscriber::default());
        let answer = tokio::time::timeout(patience, answer).await.map_err(|_| NetError::Timeout)??.into_message();
        // Over TCP too.
        if answer.queries != [question.clone()] {
            return Err(NetError::Message("the reply is to another question"));
        }
        Ok(answer)
    }
}

/// What is to be said of a question.
#[derive(Debug, Clone)]
struct Found {
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    /// An extended error, and what to say of it.
    error: Option<(u16, String)>,
}

impl Found {
    const fn code(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authorities: Vec::new(), error: None }
    }

    /// Returns what an upstream's answer comes to, `None` for what is none.
    fn of(said: Result<Message, NetError>) -> Option<Self> {
        let mut found = match said {
            Ok(message) => Self { answers: message.answers, ..Self::code(message.metadata.response_code) },
            Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords { soa, response_code, .. }))) => {
                let soa = soa.map(|soa| (*soa).into_record_of_rdata());
                Self { authorities: soa.into_iter().collect(), ..Self::code(response_code) }
            }
            Err(_) => return None,
        };
        // Nobody else knows our names.
        let is_others = |record: &Record| Keeping::of(&record.name) != Keeping::Ours;
        found.answers.retain(is_others);
        found.authorities.retain(is_others);
        Some(found)
    }

    fn unreachable() -> Self {
        Self { error: Some((NO_REACHABLE_AUTHORITY, String::new())), ..Self::code(ResponseCode::ServFail) }
    }

    fn failed(error: Option<&NetError>, upstream: SocketAddr) -> Self {
        let Some(NetError::Dns(DnsError::ResponseCode(code))) = error else {
            let text = format!("upstream {upstream} cannot be reached");
            return Self { error: Some((NETWORK_ERROR, text)), ..Self::unreachable() };
        };
        let text = format!("upstream {upstream} answers {code}");
        Self { error: Some((NO_REACHABLE_AUTHORITY, text)), ..Self::unreachable() }
    }
}

/// Whose names are these?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// A private network's: forwarding them would tell them, and believing others would be worse.
    Ours,
    /// Reverse names of addresses that mean something else everywhere (RFC 6303, RFC 6761).
    Nobodys,
    /// Somebody else's.
    Others,
}

impl Keeping {
    fn of(name: &Name) -> Self {
        let labels: Vec<String> =
            name.iter().rev().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let ours: Vec<&str> = SUFFIX.rsplit('.').collect();
        if labels.starts_with(&ours) {
            return Self::Ours;
        }
        let nobodys = match &*labels {
            ["arpa", "in-addr", "0" | "10" | "127", ..]
            | ["arpa", "in-addr", "169", "254", ..]
            | ["arpa", "in-addr", "192", "168", ..] => true,
            ["arpa", "in-addr", "100", octet, ..] => octet.parse().is_ok_and(|octet: u8| (64..128).contains(&octet)),
            ["arpa", "in-addr", "172", octet, ..] => octet.parse().is_ok_and(|octet: u8| (16..32).contains(&octet)),
            // fc00::/7 and fe80::/10.
            ["arpa", "ip6", "f", "c" | "d", ..] | ["arpa", "ip6", "f", "e", "8" | "9" | "a" | "b", ..] => true,
            _ => false,
        };
        if nobodys { Self::Nobodys } else { Self::Others }
    }
}

/// Returns how long a reply may be, in octets.
fn limit(query: &Message, transport: Transport) -> usize {
    usize::from(match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(MIN_PAYLOAD, PAYLOAD),
        (Transport::Udp, None) => MIN_PAYLOAD,
    })
}

/// Writes the reply to a query: as much as fits, with TC set where that is not all.
fn reply(query: &Message, found: Found, limit: usize) -> Option<Vec<u8>> {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = found.code;
    reply.queries.clone_from(&query.queries);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        if let Some((code, text)) = found.error {
            edns.options_mut()
                .insert(EdnsOption::Unknown(EXTENDED_ERROR, [&code.to_be_bytes(), text.as_bytes()].concat()));
        }
        reply.edns = Some(edns);
    }
    let answers = found.answers;
    reply.answers.clone_from(&answers);
    reply.authorities = found.authorities;
    let whole = reply.to_vec().ok().filter(|octets| octets.len() <= limit);
    if whole.is_some() {
        return whole;
    }
    reply.metadata.truncation = true;
    reply.authorities.clear();
    // The most answers that fit, by halving what is in question.
    let (mut fits, mut count) = (None, (0, answers.len() + 1));
    while count.0 < count.1 {
        let middle = usize::midpoint(count.0, count.1);
        reply.answers.clone_from(&answers);
        reply.answers.truncate(middle);
        match reply.to_vec().ok().filter(|octets| octets.len() <= limit) {
            Some(octets) => (fits, count.0) = (Some(octets), middle + 1),
            None => count.1 = middle,
        }
    }
    fits
}

/// How long an upstream may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How many answers are kept, and the longest of them, in records: 8 192 × 64 × 100 octets are about 50 MB at worst.
const CACHED: u64 = 8192;
const MAX_CACHED_RECORDS: usize = 64;

/// How long answers and denials are kept at most.
const MAX_TTL: Duration = Duration::from_secs(86_400);
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(300);

/// How many questions an upstream has before it on one connection.
const MAX_ACTIVE: usize = 1024;

/// What fits every path over UDP (DNS flag day 2020), and what every client takes, in octets.
const PAYLOAD: u16 = 1232;
const MIN_PAYLOAD: u16 = 512;

/// OPTION-CODE and INFO-CODE of extended errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
const NO_REACHABLE_AUTHORITY: u16 = 22;
const NETWORK_ERROR: u16 = 23;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn our_names_and_private_reverse_names_are_kept() {
        for (text, keeping) in [
            ("private-network.internal.", Keeping::Ours),
            ("Private-Network.INTERNAL.", Keeping::Ours),
            ("1.web.ap-x.pn-y.private-network.internal.", Keeping::Ours),
            ("xprivate-network.internal.", Keeping::Others),
            ("private-network.internal.example.", Keeping::Others),
            ("internal.", Keeping::Others),
            (".", Keeping::Others),
            ("1.0.240.10.in-addr.arpa.", Keeping::Nobodys),
            ("53.53.254.169.in-addr.arpa.", Keeping::Nobodys),
            ("1.0.16.172.IN-ADDR.arpa.", Keeping::Nobodys),
            ("1.0.31.172.in-addr.arpa.", Keeping::Nobodys),
            ("1.0.32.172.in-addr.arpa.", Keeping::Others),
            ("1.1.168.192.in-addr.arpa.", Keeping::Nobodys),
            ("1.1.64.100.in-addr.arpa.", Keeping::Nobodys),
            ("1.1.1.1.in-addr.arpa.", Keeping::Others),
            ("8.b.d.0.1.0.0.2.ip6.arpa.", Keeping::Others),
            ("0.0.d.f.ip6.arpa.", Keeping::Nobodys),
            ("0.8.e.f.ip6.arpa.", Keeping::Nobodys),
        ] {
            assert_eq!(Keeping::of(&name(text)), keeping, "{text}");
        }
    }

    #[test]
    fn addresses_that_nobody_has_are_no_upstreams() {
        assert_eq!(Forwarder::new([]).unwrap_err(), ForwardError::NoUpstream);
        for text in ["0.0.0.0:53", "192.0.2.1:0", "224.0.0.251:5353", "[::]:53"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Forwarder::new([address]).unwrap_err(), ForwardError::Upstream { address });
        }
    }
}
