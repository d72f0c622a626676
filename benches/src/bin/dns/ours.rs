//! What the harness starts of itself: our server, and a server that only echoes, with the same system calls.

use std::io::{self, BufRead, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg};
use pn_core::{Change, DnsBackend, Generation, Timestamp, ZoneSet};
use pn_dns::{DnsServer, Names};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

use crate::zone;

/// Serves a zone made from a plan until the parent closes the pipe, and says how long the names took to load.
pub(crate) fn serve(address: SocketAddr, names_count: u32) -> io::Result<()> {
    let plan = Arc::new(zone::plan(names_count));
    let begin = Instant::now();
    let set = ZoneSet { generation: Generation::new(1), zones: [(plan.network, plan)].into(), ..ZoneSet::default() };
    with_server(address, |names, runtime| {
        runtime.block_on(names.publish(&set)).into_result().map_err(io::Error::other)?;
        drop(set);
        say(&format!("{}", begin.elapsed().as_secs_f64()))?;
        io::stdin().lock().lines().try_for_each(|line| line.map(drop))
    })
}

/// Serves the zones of a state; each line that comes is the number of a container that is ready from now on.
pub(crate) fn serve_state(address: SocketAddr, names_count: u32) -> io::Result<()> {
    let mut state = zone::state(names_count);
    with_server(address, |names, runtime| {
        runtime.block_on(names.publish(&state.zones())).into_result().map_err(io::Error::other)?;
        say("0")?;
        for line in io::stdin().lock().lines() {
            let index = line?.parse().map_err(io::Error::other)?;
            state.apply(Timestamp::ZERO, Change::Ready(zone::waiting(index).0)).map_err(io::Error::other)?;
            runtime.block_on(names.publish(&state.zones())).into_result().map_err(io::Error::other)?;
        }
        Ok(())
    })
}

fn with_server(
    address: SocketAddr,
    then: impl FnOnce(&Names, &tokio::runtime::Runtime) -> io::Result<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let names = Arc::new(Names::new(1));
    let builder = DnsServer::builder(zone::network(), Arc::clone(&names));
    let server = runtime.block_on(builder.bind(address)).map_err(io::Error::other)?;
    then(&names, &runtime)?;
    runtime.block_on(server.shutdown());
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

const BATCH: usize = 64;
const LONGEST: usize = 2112;

/// Sends every datagram back, 16 octets longer, as an A record is.
pub(crate) fn echo(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20);
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut datagrams: Box<[[u8; LONGEST]]> = vec![[0; LONGEST]; BATCH].into();
    let mut received: Vec<(usize, SockaddrIn)> = Vec::with_capacity(BATCH);
    say("0")?;
    loop {
        received.clear();
        let mut rest = datagrams.iter_mut();
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(rest.next().map_or(&mut [], |datagram| &mut datagram[..]))]);
        let messages = recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None);
        received
            .extend(messages.map_err(io::Error::from)?.filter_map(|message| Some((message.bytes, message.address?))));
        for ((len, _), datagram) in received.iter().zip(&mut datagrams) {
            datagram[2] |= 0x84;
            debug_assert!(*len + 16 <= LONGEST);
        }
        let to: Vec<SocketAddrAny> = received.iter().map(|(_, to)| std::net::SocketAddrV4::from(*to).into()).collect();
        let slices: Vec<[IoSlice<'_>; 1]> = received
            .iter()
            .zip(&datagrams)
            .map(|((len, _), datagram)| [IoSlice::new(&datagram[..*len + 16])])
            .collect();
        let mut control: [SendAncillaryBuffer<'_, '_, '_>; BATCH] = std::array::from_fn(|_| Default::default());
        let parts = to.iter().zip(&slices).zip(&mut control);
        let mut messages: Vec<MMsgHdr<'_>> =
            parts.map(|((to, slice), control)| MMsgHdr::new_with_addr(to, slice, control)).collect();
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            let sent = sendmmsg(&socket, rest, SendFlags::empty())?;
            rest = &mut rest[sent..];
        }
    }
}
