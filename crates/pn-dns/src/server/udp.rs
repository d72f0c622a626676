//! Datagrams: threads that answer a batch with two system calls.

use core::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use core::sync::atomic::{AtomicBool, Ordering};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use fastrand::Rng;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg};
use pn_core::Transport;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::runtime::Handle;

use super::limit::Allowed;
use super::turn::Turn;
use super::{ERROR_PAUSE, Service, unix_time};
use crate::answer::{Verdict, View, is_of_known_client, is_query, look_up, respond_fully, respond_truncated};
use crate::counts::{Count, Counts, Drop};
use crate::names::Freshness;
use crate::wire::PAYLOAD;

/// Opens a socket, which may share its port with others of the same user.
pub(super) fn bind(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // What the system allows will do where more needs privileges.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    socket.set_send_buffer_size(BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The threads of a server. Dropping it stops them.
#[derive(Debug)]
pub(super) struct Workers {
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl Workers {
    /// Starts a thread for each socket.
    pub(super) fn start(service: &Arc<Service>, sockets: Vec<UdpSocket>) -> io::Result<Self> {
        let sockets = sockets.into_iter().map(Arc::new).collect();
        let mut workers = Self { sockets, threads: Vec::new(), stopping: Arc::default() };
        for (n, socket) in workers.sockets.iter().enumerate() {
            let (socket, stopping) = (Arc::clone(socket), Arc::clone(&workers.stopping));
            let worker = Worker { service: Arc::clone(service), socket, stopping, runtime: Handle::current() };
            let is_ipv4 = worker.socket.local_addr()?.is_ipv4();
            let run = move || if is_ipv4 { worker.run::<SockaddrIn>() } else { worker.run::<SockaddrIn6>() };
            workers.threads.push(thread::Builder::new().name(format!("dns-{n}")).spawn(run)?);
        }
        Ok(workers)
    }

    /// Tells the threads to end, and wakes them.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for socket in &self.sockets {
            // A socket without a peer is "not connected", and whoever waits for it is woken all the same.
            let _: io::Result<()> = SockRef::from(&**socket).shutdown(Shutdown::Read);
        }
    }

    /// Waits until the threads have ended.
    pub(super) fn join(mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that answers DNS had panicked");
            }
        }
    }
}

impl core::ops::Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An address as the system calls have it.
trait Address: SockaddrLike + Copy {
    fn get(self) -> SocketAddr;
}

impl Address for SockaddrIn {
    fn get(self) -> SocketAddr {
        SocketAddrV4::from(self).into()
    }
}

impl Address for SockaddrIn6 {
    fn get(self) -> SocketAddr {
        SocketAddrV6::from(self).into()
    }
}

#[derive(Debug)]
struct Worker {
    service: Arc<Service>,
    socket: Arc<UdpSocket>,
    stopping: Arc<AtomicBool>,
    runtime: Handle,
}

/// Queries of a batch, and their replies.
struct Batch<S> {
    /// Replies to plain questions stand where the questions stood.
    datagrams: Box<[[u8; DATAGRAM]]>,
    /// Lengths and senders; one without a sender keeps its place, so that each reply goes to who asked.
    received: Vec<(usize, Option<S>)>,
    replies: Box<[Reply]>,
    rng: Rng,
    begin: Instant,
    /// `None` where the thread waits for the next query.
    turn: Option<Turn>,
}

/// The reply to one query.
#[derive(Debug, Default)]
struct Reply {
    /// Its length where it stands in the place of the query; 0 where it does not.
    in_place: usize,
    /// The reply otherwise; empty where there is none.
    apart: Vec<u8>,
}

impl Reply {
    fn octets<'a>(&'a self, datagram: &'a [u8; DATAGRAM]) -> &'a [u8] {
        if self.in_place > 0 { &datagram[..self.in_place] } else { &self.apart }
    }

    fn clear(&mut self) {
        self.in_place = 0;
        self.apart.clear();
    }
}

impl Worker {
    fn run<S: Address>(self) {
        let mut headers = MultiHeaders::<S>::preallocate(BATCH, None);
        let mut batch = Batch {
            datagrams: vec![[0; DATAGRAM]; BATCH].into(),
            received: Vec::with_capacity(BATCH),
            replies: (0..BATCH).map(|_| Reply::default()).collect(),
            rng: Rng::with_seed(self.service.names.seed()),
            begin: Instant::now(),
            turn: None,
        };
        loop {
            let received = self.receive(&mut batch, &mut headers);
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if let Err(error) = received {
                if error == Errno::EAGAIN {
                    batch.turn = None;
                    continue;
                }
                // An error of an earlier reply, for example that nobody listens there.
                tracing::debug!(network = %self.service.network, %error, "cannot receive DNS queries");
                if !matches!(error, Errno::ECONNREFUSED | Errno::EINTR) {
                    thread::sleep(ERROR_PAUSE);
                }
                continue;
            }
            let mut counts = Counts::default();
            self.answer(&mut batch, &mut counts);
            self.send(&batch, &mut counts);
            self.service.counters.add_all(&counts);
            batch.turn.get_or_insert_default().give_way();
        }
    }

    /// Takes the queries that are there, and between turns waits for one.
    fn receive<S: Address>(&self, batch: &mut Batch<S>, headers: &mut MultiHeaders<S>) -> Result<(), Errno> {
        batch.received.clear();
        let mut datagrams = batch.datagrams.iter_mut();
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            core::array::from_fn(|_| [IoSliceMut::new(datagrams.next().map_or(&mut [], |datagram| &mut datagram[..]))]);
        let flags = if batch.turn.is_some() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::MSG_WAITFORONE };
        let messages = recvmmsg(self.socket.as_raw_fd(), headers, &mut slices, flags, None)?;
        if self.stopping.load(Ordering::SeqCst) {
            // Nothing was received, and so there are no addresses.
            return Ok(());
        }
        batch.received.extend(messages.map(|message| (message.bytes, message.address)));
        Ok(())
    }

    fn answer<S: Address>(&self, batch: &mut Batch<S>, counts: &mut Counts) {
        // Whoever published before the queries were sent finds it here.
        let (published, freshness) = (self.service.names.read(), self.service.names.freshness());
        let now = unix_time();
        // What they all see; a plain question is answered alike whoever asks.
        let seen = self.service.view(&published, freshness, IpAddr::from([0; 4]), now);
        let queries = batch.received.iter().zip(&batch.datagrams).map(|((len, _), datagram)| &datagram[..*len]);
        let found: [_; BATCH] = look_up(&seen, queries);
        for ((((len, from), datagram), reply), plain) in
            batch.received.iter().zip(&mut batch.datagrams).zip(&mut batch.replies).zip(&found)
        {
            reply.clear();
            let Some(from) = from.map(Address::get) else {
                counts.add(Count::Dropped(Drop::NoQuery));
                continue;
            };
            // Whoever asks is limited before anything is done about it, and whoever would have the answer.
            if let Some(limiter) = &self.service.limiter
                && is_query(&datagram[..*len])
            {
                let (query, client) = (&datagram[..*len], from.ip());
                let view = View { cookies: self.service.cookies(client, now), ..seen };
                // A plain question has no cookie.
                let cookies = view.cookies.filter(|_| plain.is_none());
                let known = cookies.is_some_and(|cookies| is_of_known_client(query, &cookies));
                let elapsed = batch.begin.elapsed().as_nanos() as u64;
                match if known { Allowed::Yes } else { limiter.count(client, elapsed) } {
                    Allowed::Yes => {}
                    Allowed::Truncated => {
                        respond_truncated(&view, query, &mut reply.apart);
                        counts.add_reply(Transport::Udp, &reply.apart);
                        continue;
                    }
                    Allowed::No => {
                        counts.add(Count::Dropped(Drop::Limited));
                        continue;
                    }
                }
            }
            let verdict = if let (Some(zone), Some(plain)) = (seen.zone, plain) {
                reply.in_place = plain.answer(zone, Transport::Udp, &mut batch.rng, datagram);
                Verdict::Answered
            } else {
                let view = View { cookies: self.service.cookies(from.ip(), now), ..seen };
                respond_fully(&view, Transport::Udp, &datagram[..*len], &mut batch.rng, &mut reply.apart)
            };
            match verdict {
                Verdict::Silence => {
                    counts.add(Count::Dropped(Drop::NoQuery));
                    continue;
                }
                Verdict::Elsewhere if self.ask_others(&datagram[..*len], from, counts) => {
                    reply.clear();
                    continue;
                }
                Verdict::Signed if self.ask_transfers(&datagram[..*len], from, &mut reply.apart, counts) => {
                    continue;
                }
                Verdict::Answered | Verdict::Elsewhere | Verdict::Transfer | Verdict::Signed => {}
            }
            if freshness != Freshness::Current {
                counts.add(Count::Stale(Transport::Udp));
            }
            counts.add_reply(Transport::Udp, reply.octets(datagram));
        }
    }

    /// Sends the replies of a batch. What the socket does not take is lost, as datagrams may be.
    fn send<S: Address>(&self, batch: &Batch<S>, counts: &mut Counts) {
        let octets = batch.replies.iter().zip(&batch.datagrams).map(|(reply, datagram)| reply.octets(datagram));
        let replies = batch.received.iter().zip(octets).filter_map(|((_, client), reply)| Some(((*client)?, reply)));
        let mut to = [const { None::<SocketAddrAny> }; BATCH];
        let mut slices = [[IoSlice::new(&[])]; BATCH];
        for (n, (client, reply)) in replies.filter(|(_, reply)| !reply.is_empty()).enumerate() {
            (to[n], slices[n]) = (Some(client.get().into()), [IoSlice::new(reply)]);
        }
        let mut control: [SendAncillaryBuffer<'_, '_, '_>; BATCH] = core::array::from_fn(|_| Default::default());
        let parts = to.iter().zip(&slices).zip(&mut control);
        let mut messages: Vec<MMsgHdr<'_>> = parts
            .map_while(|((to, slice), control)| Some(MMsgHdr::new_with_addr(to.as_ref()?, slice, control)))
            .collect();
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            let done = match sendmmsg(&self.socket, rest, SendFlags::empty()) {
                Ok(done) => done.max(1),
                Err(rustix::io::Errno::INTR) => 0,
                Err(error) => {
                    // It is about the first of them.
                    tracing::debug!(network = %self.service.network, %error, "cannot send a DNS reply");
                    counts.add(Count::Dropped(Drop::Unsent));
                    1
                }
            };
            rest = &mut rest[done..];
        }
    }

    /// Asks somebody else for a name of theirs, if anybody is to be asked.
    fn ask_others(&self, query: &[u8], client: SocketAddr, counts: &mut Counts) -> bool {
        let Some(others) = self.service.other_names.clone() else {
            return false;
        };
        let Ok(permit) = Arc::clone(&self.service.asking).try_acquire_owned() else {
            counts.add(Count::Dropped(Drop::Busy));
            return true;
        };
        let (service, socket, query) = (Arc::clone(&self.service), Arc::clone(&self.socket), query.to_vec());
        self.runtime.spawn(async move {
            let reply = others.answer(&query, Transport::Udp).await;
            drop(permit);
            match reply {
                None => service.counters.add(Count::Dropped(Drop::Unanswered)),
                Some(reply) if socket.send_to(&reply, client).is_ok() => {
                    service.counters.add_reply(Transport::Udp, &reply);
                }
                Some(_) => service.counters.add(Count::Dropped(Drop::Unsent)),
            }
        });
        true
    }

    /// Has a signed query answered by whoever knows keys, if anybody does.
    fn ask_transfers(&self, query: &[u8], client: SocketAddr, reply: &mut Vec<u8>, counts: &mut Counts) -> bool {
        let Some(transfers) = &self.service.transfers else {
            return false;
        };
        reply.clear();
        match transfers.transfer(self.service.network, client, Transport::Udp, query).next() {
            None => counts.add(Count::Dropped(Drop::Unanswered)),
            Some(message) => {
                counts.add_reply(Transport::Udp, &message);
                *reply = message;
            }
        }
        true
    }
}

/// How many datagrams are received or sent with one system call.
const BATCH: usize = 64;

/// The longest query that is read whole, in octets; a longer one is malformed. It is more than EDNS offers and than any reply to
/// a plain question has, and an odd number of cache lines, so that the beginnings of a batch do not crowd in one part of the
/// cache.
const DATAGRAM: usize = 21 * 64;
const _: () = assert!(DATAGRAM >= PAYLOAD as usize);

/// The size of a socket's buffers, in octets: what arrives while a thread has not got the processor.
const BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{expand, network, shop};
    use crate::names::Names;
    use crate::wire::eye;

    /// A datagram whose sender is not known gets no reply, and the others get theirs.
    #[tokio::test]
    async fn each_reply_goes_to_who_asked() {
        let names = Arc::new(Names::new(1));
        pn_core::DnsBackend::publish(&*names, &shop().zones()).await.into_result().unwrap();
        let socket = Arc::new(bind("127.0.0.1:0".parse().unwrap(), false).unwrap());
        let service = Arc::new(Service::new(network(1), names));
        let worker = Worker { service, socket, stopping: Arc::default(), runtime: Handle::current() };
        let clients: Vec<UdpSocket> = (0..4).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let mut batch = Batch {
            datagrams: vec![[0; DATAGRAM]; BATCH].into(),
            received: Vec::new(),
            replies: (0..BATCH).map(|_| Reply::default()).collect(),
            rng: Rng::with_seed(1),
            begin: Instant::now(),
            turn: None,
        };
        // Plain questions and others.
        let queries = ["1.web.ap1.pn1.^ A", "2.web.ap1.pn1.^ A", "ap9.pn1.^ TXT", "pn1.^ NS"];
        for (n, (query, client)) in queries.iter().zip(&clients).enumerate() {
            let query = eye::query(&expand(query));
            batch.datagrams[n][..query.len()].copy_from_slice(&query);
            let SocketAddr::V4(from) = client.local_addr().unwrap() else { unreachable!("it is bound to IPv4") };
            batch.received.push((query.len(), (n != 1).then(|| SockaddrIn::from(from))));
        }
        let mut counts = Counts::default();
        worker.answer(&mut batch, &mut counts);
        worker.send(&batch, &mut counts);
        assert_eq!(counts.get(Count::Dropped(Drop::NoQuery)), 1);
        for (n, (query, client)) in queries.iter().zip(&clients).enumerate() {
            client.set_nonblocking(true).unwrap();
            let (mut reply, query) = ([0; 512], eye::query(&expand(query)));
            let got = client.recv(&mut reply);
            assert_eq!(got.is_ok(), n != 1, "client {n}");
            assert!(n == 1 || reply[12..query.len()] == query[12..], "client {n} got another's reply");
        }
    }
}
