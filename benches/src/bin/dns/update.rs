//! From a change to the first answer that shows it.

use core::ops::Range;
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use pn_core::{Name, NetworkDomain};
use pn_dns::stub::{self, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::Load;
use crate::peers::Updates;
use crate::process::Running;
use crate::zone;

/// How long changes are made without a pause.
const SERIES: Duration = Duration::from_secs(1);

/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes changes one after the other for a second at most, and returns for each how many milliseconds passed until it was
/// seen. The load, if there is one, goes on all the time.
pub(crate) fn visible_ms(
    running: &mut Running,
    changes: Range<u32>,
    mut load: Option<&mut Load<'_>>,
) -> io::Result<Vec<f64>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(running.address)?;
    socket.set_nonblocking(true)?;
    let (mut times, mut reply) = (Vec::new(), [0; 1500]);
    let series = Instant::now();
    for index in changes {
        if series.elapsed() > SERIES {
            break;
        }
        let name = Name::container(zone::network(), &zone::waiting(index).1).to_string();
        // The address is not looked at: one that was not there before is enough.
        let update = dynamic_update(&name, Ipv4Addr::new(10, 250, (index >> 8) as u8, index as u8), index as u16);
        let id = index as u16 ^ 0x8000;
        let query = stub::query(&name, id).map_err(io::Error::other)?;
        // Not every change at the same point of a rhythm of the server's.
        let rest = Instant::now() + Duration::from_micros(1000 + u64::from(index % 7) * 300);
        while Instant::now() < rest {
            match &mut load {
                Some(load) => drop(load.turn()),
                None => std::thread::sleep(rest.saturating_duration_since(Instant::now())),
            }
        }
        let begin = Instant::now();
        match (running.server.updates(), &mut running.pipe) {
            (Updates::Pipe, Some(pipe)) => {
                writeln!(pipe, "{index}")?;
                pipe.flush()?;
            }
            (Updates::Dynamic, _) => drop(socket.send(&update)?),
            (Updates::Pipe | Updates::None, _) => return Ok(times),
        }
        let (mut asked, mut told) = (None, begin);
        loop {
            // An update may be lost as every datagram may.
            if running.server.updates() == Updates::Dynamic && told.elapsed() > Duration::from_millis(200) {
                socket.send(&update)?;
                told = Instant::now();
            }
            if asked.is_none_or(|at: Instant| at.elapsed() > Duration::from_millis(200)) {
                socket.send(&query)?;
                asked = Some(Instant::now());
            }
            match &mut load {
                Some(load) => drop(load.turn()),
                None => drop(poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&A_MOMENT))),
            }
            // What is no reply to the question is the one to the update.
            if let Ok(len) = socket.recv(&mut reply)
                && let Ok(reply) = stub::addresses(id, &name, &reply[..len])
            {
                asked = None;
                if matches!(reply, Reply::Addresses(_)) {
                    break;
                }
            }
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{} never shows {name}", running.server.name())));
            }
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

const A_MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Writes a message that adds an address (RFC 2136).
fn dynamic_update(name: &str, address: Ipv4Addr, id: u16) -> Vec<u8> {
    let encode = |name: &str, out: &mut Vec<u8>| {
        for label in name.split('.') {
            out.push(label.len() as u8);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
    };
    let mut message = Vec::new();
    for word in [id, 5 << 11, 1, 0, 1, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    encode(&NetworkDomain(zone::network()).to_string(), &mut message);
    message.extend_from_slice(&[0, 6, 0, 1]);
    encode(name, &mut message);
    message.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
    message.extend_from_slice(&address.octets());
    message
}
