//! DNS cookies: a client that has one was seen at its address (RFC 7873), in the form that servers share (RFC 9018).

use core::fmt;
use core::hash::Hasher;
use core::net::IpAddr;

use siphasher::sip::SipHasher24;

/// Length of a client's cookie, in octets.
pub(crate) const CLIENT: usize = 8;

/// Length of a server's cookie in this form, in octets.
pub(crate) const SERVER: usize = 16;

/// The lengths that a server's cookie may have at all.
const SERVER_LENGTHS: core::ops::RangeInclusive<usize> = 8..=32;

/// How old a cookie may be, how far ahead of this server's clock, and when it is renewed, in seconds (RFC 9018 §4.3).
const MAX_AGE: u32 = 3600;
const MAX_AHEAD: u32 = 300;
const RENEW: u32 = 1800;

/// What the cookies of a server, or of several behind one address, are made with.
#[derive(Clone, Copy)]
pub struct Secret([u8; 16]);

impl Secret {
    /// Makes a secret from random octets.
    #[must_use]
    pub const fn new(octets: [u8; 16]) -> Self {
        Self(octets)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What it takes to make and check the cookies of one client.
#[derive(Debug, Clone, Copy)]
pub struct Cookies<'a> {
    /// The secrets, newest first: cookies are made with the first and checked with all.
    pub secrets: &'a [Secret],
    /// Where the client sends from.
    pub client: IpAddr,
    /// Seconds since 1970, in a circle.
    pub now: u32,
}

/// The COOKIE option of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie {
    client: [u8; CLIENT],
    server: Option<[u8; SERVER]>,
}

impl Cookie {
    /// Reads the option; `None` where its length is wrong (RFC 7873 §5.2.2).
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let (client, server) = octets.split_first_chunk()?;
        if !server.is_empty() && !SERVER_LENGTHS.contains(&server.len()) {
            return None;
        }
        Some(Self { client: *client, server: server.try_into().ok() })
    }
}

impl Cookies<'_> {
    /// Returns whether a cookie is one of this server's, for this client, and not too old.
    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only servers tell clients apart"))]
    pub(crate) fn is_valid(&self, cookie: &Cookie) -> bool {
        self.secret_of(cookie).is_some()
    }

    /// Returns what the reply says: the client's cookie and the server's.
    pub(crate) fn reply(&self, cookie: &Cookie) -> Option<[u8; CLIENT + SERVER]> {
        let first = self.secrets.first()?;
        let made = match (cookie.server, self.secret_of(cookie)) {
            (Some(server), Some(0)) if self.age(&server) <= RENEW => server,
            _ => {
                let [a, b, c, d] = self.now.to_be_bytes();
                self.make(first, &cookie.client, [1, 0, 0, 0, a, b, c, d])
            }
        };
        let mut octets = [0; CLIENT + SERVER];
        octets[..CLIENT].copy_from_slice(&cookie.client);
        octets[CLIENT..].copy_from_slice(&made);
        Some(octets)
    }

    /// Returns the number of the secret that a valid cookie was made with.
    fn secret_of(&self, cookie: &Cookie) -> Option<usize> {
        let server = cookie.server?;
        let age = self.age(&server);
        let head = *server.first_chunk::<8>()?;
        if head[0] != 1 || age > MAX_AGE && age.wrapping_neg() > MAX_AHEAD {
            return None;
        }
        self.secrets.iter().position(|secret| {
            let made = self.make(secret, &cookie.client, head);
            // Every octet is looked at, however many are right.
            made.iter().zip(server).fold(0, |differ, (made, given)| differ | (made ^ given)) == 0
        })
    }

    const fn age(&self, server: &[u8; SERVER]) -> u32 {
        self.now.wrapping_sub(u32::from_be_bytes([server[4], server[5], server[6], server[7]]))
    }

    fn make(&self, secret: &Secret, client: &[u8; CLIENT], head: [u8; 8]) -> [u8; SERVER] {
        let mut hasher = SipHasher24::new_with_key(&secret.0);
        hasher.write(client);
        hasher.write(&head);
        match self.client {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
        let mut octets = [0; SERVER];
        octets[..8].copy_from_slice(&head);
        octets[8..].copy_from_slice(&hasher.finish().to_le_bytes());
        octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets<const N: usize>(hex: &str) -> [u8; N] {
        let pairs = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        pairs.collect::<Vec<_>>().try_into().unwrap()
    }

    /// The examples of RFC 9018, appendix A.
    #[test]
    fn rfc9018_examples() {
        let first = [Secret::new(octets("e5e973e5a6b2a43f48e7dc849e37bfcf"))];
        let check = |secrets: &[Secret], client: &str, now: u32, given: &str, expected: &str, valid: bool| {
            let cookies = Cookies { secrets, client: client.parse().unwrap(), now };
            let given: Vec<u8> = (0..given.len() / 2).map(|at| octets::<1>(&given[2 * at..][..2])[0]).collect();
            let cookie = Cookie::read(&given).unwrap();
            assert_eq!(cookies.is_valid(&cookie), valid);
            assert_eq!(cookies.reply(&cookie), Some(octets(expected)));
        };
        let learned = "2464c4abcf10c957010000005cf79f111f8130c3eee29480";
        check(&first, "198.51.100.100", 1_559_731_985, "2464c4abcf10c957", learned, false);
        check(&first, "198.51.100.100", 1_559_731_985 + RENEW, learned, learned, true);
        let renewed = "2464c4abcf10c957010000005cf7a871d4a564a1442aca77";
        check(&first, "198.51.100.100", 1_559_734_385, learned, renewed, true);
        let another = "fc93fc62807ddb86010000005cf7a871b4a564a1442aca77";
        let cookies = Cookies { secrets: &first, client: "203.0.113.203".parse().unwrap(), now: 1_559_734_385 };
        assert!(!cookies.is_valid(&Cookie::read(&octets::<24>(another)).unwrap()));
    }

    #[test]
    fn a_cookie_is_good_for_its_client_its_time_and_its_secret() {
        let [old, new] = [1, 2].map(|octet| Secret::new([octet; 16]));
        let at =
            |secrets: &'static [Secret], client: &str, now| Cookies { secrets, client: client.parse().unwrap(), now };
        let secrets: [&'static [Secret]; 2] = [Box::leak(Box::new([old])), Box::leak(Box::new([new, old]))];
        let given = at(secrets[0], "2001:db8::1", 7).reply(&Cookie::read(&[9; 8]).unwrap()).unwrap();
        let cookie = Cookie::read(&given).unwrap();
        for (cookies, valid) in [
            (at(secrets[0], "2001:db8::1", 7 + MAX_AGE), true),
            (at(secrets[0], "2001:db8::1", 8 + MAX_AGE), false),
            (at(secrets[0], "2001:db8::1", 7u32.wrapping_sub(MAX_AHEAD)), true),
            (at(secrets[0], "2001:db8::1", 6u32.wrapping_sub(MAX_AHEAD)), false),
            (at(secrets[0], "2001:db8::2", 7), false),
            (at(secrets[1], "2001:db8::1", 7), true),
        ] {
            assert_eq!(cookies.is_valid(&cookie), valid, "{cookies:?}");
        }
        // What an old secret made is renewed.
        assert_ne!(at(secrets[1], "2001:db8::1", 7).reply(&cookie), Some(given));
        assert!(!format!("{old:?}").contains('1'));
        for len in (0..8).chain(9..16).chain(41..50) {
            assert_eq!(Cookie::read(&vec![0; len]), None, "{len}");
        }
    }
}
