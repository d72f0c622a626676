//! What a name server leaves to others: names of other zones, and transfers of its own.

use core::fmt;
use core::net::SocketAddr;

use async_trait::async_trait;
use pn_core::{NetworkId, Transport};

use crate::rcode::Rcode;
use crate::wire::{Header, Query, QueryType};

/// Answers for names that are not ours: neither beneath `private-network.internal.` nor in the reverse zones of the asker's
/// network. Where a server has none, such names are REFUSED.
///
/// # Contract
/// - It is called for well-formed queries only: one question of class IN with opcode QUERY, and at most one OPT record.
/// - The answer has the id and the question of the query, and fits its transport.
/// - A call may take long: it is made off the fast path, and a bounded number run at a time.
///
/// # Cancel safety
/// A dropped call leaves nothing behind; it happens when the server stops or the client closes its connection.
#[async_trait]
pub trait OtherNames: fmt::Debug + Send + Sync {
    /// Answers one query, a DNS message without TCP's length prefix. `None` means silence.
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>>;
}

/// Returns whether a query is one for [`OtherNames`], as the reply of a [`Resolver`](pn_core::Resolver) says: it refuses what is
/// well-formed and could be answered by somebody.
#[must_use]
pub fn is_for_others(query: &[u8], reply: &[u8]) -> bool {
    let is_refused = reply.get(3).is_some_and(|flags| flags & 0xf == Rcode::Refused as u8);
    is_refused
        && Header::of_query(query)
            .and_then(|header| Query::parse(header, query).ok())
            .is_some_and(|query| query.is_internet() && query.query_type() != QueryType::Transfer && !query.is_signed())
}

/// Hands whole zones to secondaries. Where a server has none, transfers are REFUSED.
///
/// # Contract
/// - It is called for AXFR and IXFR over TCP, and for every query that is signed (TSIG, RFC 8945), whatever it asks for and
///   over either transport: a secondary that signs expects signed answers to its SOA queries, too.
/// - The network is that of the listener the query came in on. The peer's address is what the socket says.
/// - The query has one question and opcode QUERY; nothing else of it was looked at.
/// - Over UDP at most one message is yielded. No message at all is silence.
pub trait Transfers: fmt::Debug + Send + Sync {
    /// Returns the messages that answer one query, without TCP's length prefix. They are made as they are sent.
    fn transfer(
        &self,
        network: NetworkId,
        peer: SocketAddr,
        transport: Transport,
        query: &[u8],
    ) -> Box<dyn Iterator<Item = Vec<u8>> + Send>;
}
