//! From a change to the first answer that shows it.

use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use pn_core::{Name, NetworkDomain};
use pn_dns::stub::{self, Reply};

use crate::peers::Updates;
use crate::process::Running;
use crate::zone;

/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes changes one after the other, and returns for each how many milliseconds passed until it was seen.
pub(crate) fn visible_ms(running: &mut Running, from: u32, count: u32) -> io::Result<Vec<f64>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(running.address)?;
    let mut times = Vec::new();
    for index in from..from + count {
        let name = Name::container(zone::network(), &zone::waiting(index).1).to_string();
        // The address is not looked at: one that was not there before is enough.
        let update = dynamic_update(&name, Ipv4Addr::new(10, 250, (index >> 8) as u8, index as u8), index as u16);
        let mut line = running.pipe.as_mut();
        let begin = Instant::now();
        match (running.server.updates(), &mut line) {
            (Updates::Pipe, Some(pipe)) => {
                writeln!(pipe, "{index}")?;
                pipe.flush()?;
            }
            (Updates::Dynamic, _) => drop(socket.send(&update)?),
            (Updates::Pipe | Updates::None, _) => return Ok(times),
        }
        while !sees(&socket, &name, index as u16 ^ 0x8000) {
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{} never shows {name}", running.server.name())));
            }
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        // Not every change at the same point of a rhythm of the server's.
        std::thread::sleep(Duration::from_micros(1000 + u64::from(index % 7) * 300));
    }
    Ok(times)
}

/// Asks until there is a reply to this question, and returns whether it has an address.
fn sees(socket: &UdpSocket, name: &str, id: u16) -> bool {
    let Ok(query) = stub::query(name, id) else {
        return false;
    };
    if socket.set_read_timeout(Some(Duration::from_millis(200))).is_err() || socket.send(&query).is_err() {
        return false;
    }
    let mut reply = [0; 1500];
    while let Ok(len) = socket.recv(&mut reply) {
        match stub::addresses(id, name, &reply[..len]) {
            Ok(reply) => return matches!(reply, Reply::Addresses(_)),
            // The reply to the update, or to an earlier question.
            Err(_) => continue,
        }
    }
    false
}

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
