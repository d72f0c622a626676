//! A limit to the replies that one client gets over UDP, for networks in which senders can be forged.

use core::hash::Hasher;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use siphasher::sip::SipHasher13;

/// How many replies one client gets over UDP: an IPv4 address, or an IPv6 /64.
///
/// Beyond that, every second query gets a reply without records that says TC, so that whoever really asked comes back over TCP;
/// the others get none, and nobody else is asked for either. A client with a valid cookie (RFC 7873) was seen at its address and is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimit {
    /// Replies in a second, in the long run.
    pub per_second: u32,
    /// Replies at once, after a silence.
    pub burst: u32,
}

impl RateLimit {
    /// Limits the replies of a second; five seconds' worth may come at once.
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, burst: per_second.saturating_mul(5) }
    }
}

/// What is to be done about a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    Yes,
    /// Only a reply that says TC.
    Truncated,
    No,
}

/// The clients of a server. Two clients may be taken for one; who they are is decided by a secret, so nobody chooses with whom.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Nanoseconds that a reply takes of its client's time, and that a client may be ahead.
    interval: u64,
    ahead: u64,
    key: [u8; 16],
    /// Until when each client's time is used up, in nanoseconds.
    used: Box<[AtomicU64]>,
}

impl Limiter {
    pub(super) fn new(limit: RateLimit, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let interval = 1_000_000_000 / u64::from(limit.per_second.max(1));
        let ahead = interval * u64::from(limit.burst.max(1) - 1);
        let used = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
        Self { interval, ahead, key: rng.u128(..).to_be_bytes(), used }
    }

    /// Counts a query of a client, at a time in nanoseconds since a moment of the caller's.
    pub(super) fn count(&self, client: IpAddr, now: u64) -> Allowed {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        match client.to_canonical() {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()[..8]),
        }
        let used = &self.used[hasher.finish() as usize % CLIENTS];
        let mut before = used.load(Ordering::Relaxed);
        loop {
            let from = before.max(now);
            if from - now > self.ahead {
                // Whoever is not limited pays nothing, so this count only has to be even and odd in turn.
                let odd = before & 1 == 1;
                used.fetch_xor(1, Ordering::Relaxed);
                return if odd { Allowed::No } else { Allowed::Truncated };
            }
            match used.compare_exchange_weak(before, from + self.interval, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Allowed::Yes,
                Err(other) => before = other,
            }
        }
    }
}

/// How many clients are told apart.
const CLIENTS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_its_burst_and_then_its_rate() {
        let limiter = Limiter::new(RateLimit { per_second: 10, burst: 3 }, 1);
        let client = IpAddr::from([192, 0, 2, 1]);
        let allowed = |at_ms: u64| limiter.count(client, at_ms * 1_000_000);
        assert_eq!([0, 0, 0].map(allowed), [Allowed::Yes; 3]);
        assert_eq!(limiter.count([192, 0, 2, 2].into(), 0), Allowed::Yes, "another client has its own");
        let beyond = [0, 1, 2, 3].map(allowed);
        assert_eq!(beyond.iter().filter(|allowed| **allowed == Allowed::No).count(), 2, "{beyond:?}");
        assert_eq!(beyond.iter().filter(|allowed| **allowed == Allowed::Truncated).count(), 2, "{beyond:?}");
        assert_eq!([101, 201, 301].map(allowed), [Allowed::Yes; 3]);
        assert_ne!(allowed(302), Allowed::Yes);
        assert_eq!(allowed(10_000), Allowed::Yes);
        assert_eq!(limiter.count("::ffff:192.0.2.1".parse().unwrap(), 10_000_000_000), Allowed::Yes);
        assert_eq!(limiter.count("::ffff:192.0.2.1".parse().unwrap(), 10_000_000_000), Allowed::Yes);
        assert_ne!(limiter.count("::ffff:192.0.2.1".parse().unwrap(), 10_000_000_000), Allowed::Yes, "one client");
        let [a, b] = ["2001:db8::1", "2001:db8::2"].map(|address| address.parse::<IpAddr>().unwrap());
        let mut allowed = [a, b, a, b].map(|client| limiter.count(client, 0));
        allowed.sort_by_key(|allowed| *allowed as u8);
        assert_eq!(allowed[..3], [Allowed::Yes; 3]);
        assert_ne!(allowed[3], Allowed::Yes, "a /64 is one client");
    }
}
