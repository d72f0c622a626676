//! Losses that the other side tells of.
//!
//! smoltcp sends a segment again once three acknowledgements say the same, and otherwise after its timeout. A few segments on
//! their way do not give three, and neither does a second loss among the same segments. But an acknowledgement with a selective
//! part (RFC 2018) says that something behind a segment has arrived: where that one is still missing after a moment, it is
//! lost, and smoltcp is told so in the way it understands.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::HashMap;

use pn_overlay::packet::IpPacket;

/// How long what was overtaken is waited for.
const GRACE: Duration = Duration::from_millis(3);

/// How often an acknowledgement is repeated: the first may bring another window, and is not counted then.
const REPEATS: usize = 4;

/// Connections with a hole at a time; beyond that all are forgotten.
const MAX_HOLES: usize = 4096;

/// What each connection's other side said last, where something was missing there.
#[derive(Debug, Default)]
pub(super) struct Holes(HashMap<Connection, Hole>);

/// The other side's address and port, and the port here.
type Connection = (IpAddr, u16, u16);

#[derive(Debug)]
struct Hole {
    /// What is missing.
    at: u32,
    /// When it is lost; `None` where that was said.
    due: Option<Duration>,
    /// The acknowledgement that says so.
    packet: Vec<u8>,
}

impl Holes {
    /// Looks at a TCP packet that arrives.
    pub(super) fn note(&mut self, packet: &IpPacket<'_>, now: Duration) {
        let Some(Acknowledgement { ports, at, is_selective }) = Acknowledgement::parse(packet.payload()) else {
            return;
        };
        if !is_selective && self.0.is_empty() {
            return;
        }
        let connection = (packet.source(), ports.0, ports.1);
        match self.0.get_mut(&connection) {
            Some(hole) if hole.at == at && is_selective && hole.due.is_some() => {
                packet.octets().clone_into(&mut hole.packet);
            }
            Some(hole) if hole.at == at => {}
            Some(_) if !is_selective => drop(self.0.remove(&connection)),
            _ if is_selective => {
                if self.0.len() == MAX_HOLES {
                    self.0.clear();
                }
                self.0.insert(connection, Hole { at, due: Some(now + GRACE), packet: packet.octets().to_vec() });
            }
            _ => {}
        }
    }

    /// Returns the packets that say of every segment that is lost by now that it is.
    pub(super) fn lost(&mut self, now: Duration) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for hole in self.0.values_mut().filter(|hole| hole.due.is_some_and(|due| due <= now)) {
            hole.due = None;
            packets.extend(core::iter::repeat_n(core::mem::take(&mut hole.packet), REPEATS));
        }
        packets
    }

    /// Returns when the next segment is lost.
    pub(super) fn next(&self) -> Option<Duration> {
        self.0.values().filter_map(|hole| hole.due).min()
    }
}

/// An acknowledgement that carries nothing.
struct Acknowledgement {
    ports: (u16, u16),
    at: u32,
    is_selective: bool,
}

impl Acknowledgement {
    fn parse(segment: &[u8]) -> Option<Self> {
        let [a, b, c, d, _, _, _, _, n0, n1, n2, n3, offset, flags, ..] = *segment.first_chunk::<20>()?;
        let is_bare = usize::from(offset >> 4) * 4 == segment.len() && flags & !(PSH | ECN) == ACK;
        is_bare.then(|| Self {
            ports: (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
            at: u32::from_be_bytes([n0, n1, n2, n3]),
            is_selective: is_selective(&segment[20..]),
        })
    }
}

/// Returns whether there is a selective acknowledgement among the options of a segment.
fn is_selective(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [END, ..] | [] => return false,
            [NO_OPERATION, ..] => &options[1..],
            [SELECTIVE, len, ..] => return len > 2,
            [_, len, ..] if len >= 2 => options.get(len.into()..).unwrap_or_default(),
            _ => return false,
        };
    }
}

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECN: u8 = 0xc0;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const SELECTIVE: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_totally() {
        for (options, expected) in [
            (&[][..], false),
            (&[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2], true),
            (&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2], true),
            (&[8, 10, 0, 0, 0, 0, 0, 0, 0, 5, 1, 1], false),
            (&[0, 5, 10], false),
            (&[8, 0, 5, 10], false),
            (&[8, 200, 5, 10], false),
            (&[8], false),
            (&[5], false),
        ] {
            assert_eq!(is_selective(options), expected, "{options:?}");
        }
    }
}
