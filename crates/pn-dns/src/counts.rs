//! What became of queries, counted.

use core::fmt;
use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering};

use pn_core::Transport;

use crate::rcode::Rcode;

/// What is counted. Its `Display` is a line of labels: `udp NXDOMAIN`, `dropped limited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Count {
    /// A reply with this code. Those of other name servers count by the code they have, or as SERVFAIL; a transfer counts as one.
    Reply(Transport, Rcode),
    /// A reply that says that not all fitted.
    Truncated(Transport),
    /// A query that was looked up in names that were stale or expired.
    Stale(Transport),
    /// What got no reply.
    Dropped(Drop),
}

/// Why something got no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Drop {
    /// It was too short for a query, or a reply itself.
    NoQuery,
    /// The client had asked too much.
    Limited,
    /// The socket did not take the reply.
    Unsent,
    /// Too many questions for other name servers were open.
    Busy,
    /// The other name server, or the transfer, had nothing to say.
    Unanswered,
    /// A connection that gave way to a new one.
    Displaced,
    /// A connection that took too long.
    Idle,
}

/// How many codes, transports and reasons there are.
const CODES: usize = Rcode::ALL.len();
const DROPS: [Drop; 7] =
    [Drop::NoQuery, Drop::Limited, Drop::Unsent, Drop::Busy, Drop::Unanswered, Drop::Displaced, Drop::Idle];
const TRANSPORTS: [Transport; 2] = [Transport::Udp, Transport::Tcp];
const COUNTS: usize = 2 * (CODES + 2) + DROPS.len();

impl Count {
    /// Returns everything that is counted.
    pub fn all() -> impl Iterator<Item = Self> {
        let replies = TRANSPORTS.into_iter().flat_map(|over| Rcode::ALL.map(|rcode| Self::Reply(over, rcode)));
        let others = TRANSPORTS.into_iter().flat_map(|over| [Self::Truncated(over), Self::Stale(over)]);
        replies.chain(others).chain(DROPS.map(Self::Dropped))
    }

    const fn place(self) -> usize {
        const fn over(transport: Transport) -> usize {
            match transport {
                Transport::Udp => 0,
                Transport::Tcp => 1,
            }
        }
        match self {
            Self::Reply(transport, Rcode::BadVers) => over(transport) * CODES + CODES - 1,
            Self::Reply(transport, rcode) => over(transport) * CODES + rcode as usize,
            Self::Truncated(transport) => 2 * CODES + 2 * over(transport),
            Self::Stale(transport) => 2 * CODES + 2 * over(transport) + 1,
            Self::Dropped(reason) => 2 * CODES + 4 + reason as usize,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = |transport: &Transport| match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        match self {
            Self::Reply(transport, rcode) => write!(f, "{} {rcode}", over(transport)),
            Self::Truncated(transport) => write!(f, "{} truncated", over(transport)),
            Self::Stale(transport) => write!(f, "{} stale", over(transport)),
            Self::Dropped(reason) => f.write_str(match reason {
                Drop::NoQuery => "dropped no-query",
                Drop::Limited => "dropped limited",
                Drop::Unsent => "dropped unsent",
                Drop::Busy => "dropped busy",
                Drop::Unanswered => "dropped unanswered",
                Drop::Displaced => "dropped displaced",
                Drop::Idle => "dropped idle",
            }),
        }
    }
}

/// How often each thing happened since the beginning.
///
/// ```
/// use pn_core::Transport;
/// use pn_dns::{Count, Counts, Rcode};
///
/// let counts = Counts::default();
/// assert_eq!(counts.get(Count::Reply(Transport::Udp, Rcode::NoError)), 0);
/// assert_eq!(counts.iter().next().unwrap().0.to_string(), "udp NOERROR");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts([u64; COUNTS]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; COUNTS])
    }
}

impl Counts {
    /// Returns how often something happened.
    #[must_use]
    pub const fn get(&self, count: Count) -> u64 {
        self.0[count.place()]
    }

    /// Returns everything that is counted, with how often it happened.
    pub fn iter(&self) -> impl Iterator<Item = (Count, u64)> + '_ {
        Count::all().map(|count| (count, self.get(count)))
    }

    #[cfg(feature = "server")]
    pub(crate) const fn add(&mut self, count: Count) {
        self.0[count.place()] += 1;
    }

    /// Counts a reply by what it says.
    #[cfg(feature = "server")]
    pub(crate) fn add_reply(&mut self, transport: Transport, reply: &[u8]) {
        counted(transport, reply, |count| self.add(count));
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}

/// Counts that many threads add to.
#[derive(Debug)]
pub(crate) struct Counters([AtomicU64; COUNTS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTS])
    }
}

impl Counters {
    pub(crate) fn add(&self, count: Count) {
        self.0[count.place()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a reply by what it says.
    pub(crate) fn add_reply(&self, transport: Transport, reply: &[u8]) {
        counted(transport, reply, |count| self.add(count));
    }

    /// Adds what one thread counted for itself.
    #[cfg(feature = "server")]
    pub(crate) fn add_all(&self, counts: &Counts) {
        for (sum, more) in self.0.iter().zip(counts.0).filter(|(_, more)| *more > 0) {
            sum.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Counts {
        Counts(core::array::from_fn(|n| self.0[n].load(Ordering::Relaxed)))
    }
}

fn counted(transport: Transport, reply: &[u8], mut add: impl FnMut(Count)) {
    let Some([_, _, flags, codes, ..]) = reply.first_chunk::<4>() else {
        return;
    };
    let rcode = match codes & 0xf {
        // The rest of the code stands in the OPT record.
        0 if flags & 4 == 0 && is_bad_version(reply) => Rcode::BadVers,
        0 => Rcode::NoError,
        1 => Rcode::FormErr,
        3 => Rcode::NxDomain,
        4 => Rcode::NotImp,
        5 => Rcode::Refused,
        _ => Rcode::ServFail,
    };
    add(Count::Reply(transport, rcode));
    if flags & 2 != 0 {
        add(Count::Truncated(transport));
    }
}

/// Returns whether a reply that knows nothing ends in an OPT record with the high bits of BADVERS.
fn is_bad_version(reply: &[u8]) -> bool {
    reply.get(6..12) == Some(&[0, 0, 0, 0, 0, 1]) && reply.windows(6).any(|window| window == [0, 0, 41, 0x04, 0xd0, 1])
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_place() {
        let places: Vec<usize> = Count::all().map(Count::place).collect();
        assert_eq!(places, (0..COUNTS).collect::<Vec<_>>());
        let mut counts = Counts::default();
        Count::all().for_each(|count| counts.add(count));
        let counters = Counters::default();
        counters.add_all(&counts);
        counters.add(Count::Dropped(Drop::Idle));
        counts += Counts::default();
        assert!(counts.iter().all(|(count, n)| n == 1 && counters.read().get(count) >= n));
        assert_eq!(counters.read().get(Count::Dropped(Drop::Idle)), 2);
        let lines: std::collections::BTreeSet<String> = Count::all().map(|count| count.to_string()).collect();
        assert_eq!(lines.len(), COUNTS);
    }
}
