//! Streams: one task for each connection.

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fastrand::Rng;
use pn_core::{NetworkId, Resolver, Transport};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{ERROR_PAUSE, Service, unix_time};
use crate::answer::{Verdict, respond};
use crate::counts::{Count, Drop};
use crate::framing::{Frames, push};
use crate::names::Freshness;
use crate::other_names::{OtherNames, is_for_others};

/// The connections of a server.
#[derive(Debug, Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    open: HashMap<Id, Open>,
    /// Counts queries and connections, to know what came before what.
    turn: Arc<AtomicU64>,
}

/// An open connection.
#[derive(Debug)]
struct Open {
    task: AbortHandle,
    /// The turn of its last query, or of its beginning.
    last: Arc<AtomicU64>,
}

impl Connections {
    /// Accepts connections, for ever.
    pub(super) async fn accept(&mut self, service: &Arc<Service>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept().await;
            while let Some(ended) = self.tasks.try_join_next_with_id() {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                self.open.remove(&id);
            }
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(network = %service.network, %error, "cannot accept DNS connections");
                    sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            if self.open.len() >= service.max_connections {
                self.displace(service);
            }
            // Replies are written whole, so waiting for more to send only delays them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(network = %service.network, %error, "cannot send DNS replies without delay");
            }
            let last = Arc::new(AtomicU64::new(self.turn.fetch_add(1, Ordering::Relaxed)));
            let (of, turn) = (Arc::clone(&last), Arc::clone(&self.turn));
            let service = Arc::clone(service);
            let task = self.tasks.spawn(async move {
                let (idle, mut handler) = (service.idle_timeout, Serving::new(&service, client, of, turn));
                // An error or a silence of the client ends the connection, and there is nobody to tell.
                if let Err(error) = serve(stream, &mut handler, idle).await
                    && error.kind() == io::ErrorKind::TimedOut
                {
                    service.counters.add(Count::Dropped(Drop::Idle));
                }
            });
            self.open.insert(task.id(), Open { task, last });
        }
    }

    /// Closes the connection that has asked nothing for the longest time.
    fn displace(&mut self, service: &Service) {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.last.load(Ordering::Relaxed)).map(|(id, _)| *id);
        if let Some(open) = oldest.and_then(|id| self.open.remove(&id)) {
            open.task.abort();
            service.counters.add(Count::Dropped(Drop::Displaced));
        }
    }

    /// Closes every connection.
    pub(super) async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Answers the queries of one connection of a network, each with its length before it (RFC 7766 §8), until the client closes
/// it. A query that gets no reply is passed over.
///
/// Connections come from anywhere: a socket, or a stack in this process.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] where the client takes longer than `idle` for its next query or for reading a reply, and the
/// stream's own.
///
/// # Panics
/// Outside a tokio runtime with time enabled.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    network: NetworkId,
    resolver: &dyn Resolver,
    other_names: Option<&Arc<dyn OtherNames>>,
    idle: Duration,
) -> io::Result<()> {
    serve(stream, &mut Resolving { network, resolver, other_names }, idle).await
}

/// Who answers the queries of a connection.
trait Handler {
    /// Adds the reply to a query to what is to be sent, or says who has it.
    fn handle(&mut self, query: &[u8], out: &mut Vec<u8>) -> Next;

    /// Notes what somebody else had to say to a query: of many messages, the first.
    fn note(&self, _reply: Option<&[u8]>) {}
}

/// What is left to do about a query.
enum Next {
    Done,
    /// Somebody else is asked.
    Ask(Arc<dyn OtherNames>),
    /// Many messages follow.
    Transfer(Box<dyn Iterator<Item = Vec<u8>> + Send>),
}

struct Resolving<'a> {
    network: NetworkId,
    resolver: &'a dyn Resolver,
    other_names: Option<&'a Arc<dyn OtherNames>>,
}

impl Handler for Resolving<'_> {
    fn handle(&mut self, query: &[u8], out: &mut Vec<u8>) -> Next {
        let Some(reply) = self.resolver.resolve(self.network, Transport::Tcp, query) else { return Next::Done };
        if let Some(others) = self.other_names.filter(|_| is_for_others(query, &reply)) {
            return Next::Ask(Arc::clone(others));
        }
        push(out, &reply);
        Next::Done
    }
}

struct Serving<'a> {
    service: &'a Arc<Service>,
    client: SocketAddr,
    rng: Rng,
    reply: Vec<u8>,
    last: Arc<AtomicU64>,
    turn: Arc<AtomicU64>,
}

impl<'a> Serving<'a> {
    fn new(service: &'a Arc<Service>, client: SocketAddr, last: Arc<AtomicU64>, turn: Arc<AtomicU64>) -> Self {
        let rng = Rng::with_seed(service.names.seed());
        Self { service, client, rng, reply: Vec::new(), last, turn }
    }
}

impl Handler for Serving<'_> {
    fn handle(&mut self, query: &[u8], out: &mut Vec<u8>) -> Next {
        let Self { service, client, rng, reply, last, turn } = self;
        last.store(turn.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let (published, freshness) = (service.names.read(), service.names.freshness());
        let client: (IpAddr, SocketAddr) = (client.ip(), *client);
        let view = service.view(&published, freshness, client.0, unix_time());
        let verdict = respond(&view, Transport::Tcp, query, rng, reply);
        match (verdict, &service.other_names, &service.transfers) {
            (Verdict::Silence, ..) => {
                service.counters.add(Count::Dropped(Drop::NoQuery));
                return Next::Done;
            }
            (Verdict::Elsewhere, Some(others), _) => return Next::Ask(Arc::clone(others)),
            (Verdict::Transfer | Verdict::Signed, _, Some(transfers)) => {
                return Next::Transfer(transfers.transfer(service.network, client.1, Transport::Tcp, query));
            }
            _ => {}
        }
        service.counters.add_reply(Transport::Tcp, reply);
        if freshness != Freshness::Current {
            service.counters.add(Count::Stale(Transport::Tcp));
        }
        push(out, reply);
        Next::Done
    }

    fn note(&self, reply: Option<&[u8]>) {
        match reply {
            Some(reply) => self.service.counters.add_reply(Transport::Tcp, reply),
            None => self.service.counters.add(Count::Dropped(Drop::Unanswered)),
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    handler: &mut impl Handler,
    idle: Duration,
) -> io::Result<()> {
    let (mut frames, mut out) = (Frames::default(), Vec::new());
    // Answers of others come when they come (RFC 7766 §7); the tasks end with the connection.
    let (answered, mut answers) = mpsc::channel::<Option<Vec<u8>>>(MAX_ASKED);
    let (mut asking, mut asked, mut ended) = (JoinSet::new(), 0, false);
    let mut deadline = Instant::now() + idle;
    loop {
        while asked < MAX_ASKED
            && let Some(query) = frames.next()
        {
            deadline = Instant::now() + idle;
            match handler.handle(query, &mut out) {
                Next::Done => {}
                Next::Ask(others) => {
                    let (query, answered) = (query.to_vec(), answered.clone());
                    asked += 1;
                    asking.spawn(async move {
                        let answer = others.answer(&query, Transport::Tcp).await;
                        // It fails where nobody waits any more.
                        let _ = answered.send(answer).await;
                    });
                }
                Next::Transfer(messages) => {
                    let mut messages = messages.peekable();
                    handler.note(messages.peek().map(Vec::as_slice));
                    for message in messages {
                        push(&mut out, &message);
                        flush_beyond(FLUSH, &mut stream, &mut out, idle).await?;
                    }
                }
            }
            flush_beyond(FLUSH, &mut stream, &mut out, idle).await?;
        }
        flush_beyond(0, &mut stream, &mut out, idle).await?;
        if ended && asked == 0 {
            return if frames.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        tokio::select! {
            // It never ends: this function has a sender.
            Some(answer) = answers.recv() => {
                asked -= 1;
                deadline = Instant::now() + idle;
                handler.note(answer.as_deref());
                if let Some(answer) = answer {
                    push(&mut out, &answer);
                }
            }
            read = timeout_at(deadline, stream.read_buf(frames.buffer())), if !ended && asked < MAX_ASKED => {
                ended = read?? == 0;
            }
        }
        while asking.try_join_next().is_some() {}
    }
}

/// Sends what is to be sent, where it is more than this.
async fn flush_beyond<S: AsyncWrite + Unpin>(
    len: usize,
    stream: &mut S,
    out: &mut Vec<u8>,
    idle: Duration,
) -> io::Result<()> {
    if out.len() > len {
        timeout(idle, stream.write_all(out)).await??;
        out.clear();
    }
    Ok(())
}

/// How many questions of one connection others are asked at a time.
const MAX_ASKED: usize = 16;

/// How much is gathered before it is sent, in octets.
const FLUSH: usize = 32 << 10;
