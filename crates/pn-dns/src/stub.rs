//! The two messages of a stub resolver, as pure functions: a question for addresses, and what came back.

use core::net::Ipv4Addr;

use crate::wire;

/// What a name server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The addresses of the name, at least one, in the server's order.
    Addresses(Vec<Ipv4Addr>),
    /// The name exists and has no address.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// There is more than fitted; ask again over TCP.
    Truncated(Vec<Ipv4Addr>),
    /// The server did not answer, with this response code (RFC 6895 §2.3).
    Failed(u16),
}

/// Why there is no question, or no reply to one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StubError {
    /// The text is not a domain name.
    #[error("{name:?} is not a domain name: labels of 1 to 63 printable ASCII characters, at most 255 octets in all")]
    Name {
        /// The text that was given.
        name: String,
    },
    /// The octets are not a DNS message.
    #[error("the reply is not a DNS message")]
    Malformed,
    /// The message is not the reply to this question: its id, its question or its direction differ.
    #[error("the message is no reply to this question")]
    Foreign,
}

/// Writes a question for the IPv4 addresses of a name, without TCP's length prefix.
///
/// The name is absolute, with or without the final dot.
///
/// # Errors
/// [`StubError::Name`].
pub fn query(name: &str, id: u16) -> Result<Vec<u8>, StubError> {
    Ok(wire::write_query(id, &encode(name)?))
}

/// Reads the reply to [`query`] with the same id and name.
///
/// # Errors
/// [`StubError::Malformed`] and [`StubError::Foreign`]: the reply, which may be forged, is to be ignored. [`StubError::Name`]
/// as [`query`].
pub fn addresses(id: u16, name: &str, reply: &[u8]) -> Result<Reply, StubError> {
    wire::read_reply(id, &encode(name)?, reply)
}

/// Returns the wire form of a name.
fn encode(name: &str) -> Result<Vec<u8>, StubError> {
    let mut octets = Vec::with_capacity(name.len() + 2);
    let relative = name.strip_suffix('.').unwrap_or(name);
    let labels = relative.split('.').filter(|_| name != ".");
    for label in labels {
        if !(1..=63).contains(&label.len()) || !label.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err(StubError::Name { name: name.to_owned() });
        }
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    if octets.len() > 255 {
        return Err(StubError::Name { name: name.to_owned() });
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use pn_core::Transport;
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{crowd, expand, shop};
    use crate::{View, answer};

    #[test]
    fn names_are_absolute_with_or_without_the_dot() {
        let longest = ["a".repeat(63).as_str(); 4].join(".")[..253].to_owned();
        for name in ["a", "example.com", "_x._tcp.example.com", "1.web.ap-X.private-network.internal", &longest] {
            assert_eq!(query(name, 1), query(&format!("{name}."), 1), "{name}");
            assert!(query(name, 1).is_ok(), "{name}");
        }
        assert_eq!(query(".", 0x102).unwrap()[..17], [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1]);
        for name in ["", "..", ".a", "a..b", "a b", "é", &"a".repeat(64), &format!("{longest}b")] {
            assert_eq!(query(name, 1), Err(StubError::Name { name: name.to_owned() }));
            assert_eq!(addresses(1, name, &[]), Err(StubError::Name { name: name.to_owned() }));
        }
    }

    /// Asks inside network 1 of the shop, changes the reply, and reads it.
    fn check(name: &str, change: impl FnOnce(&mut Vec<u8>), expected: Result<Reply, StubError>) {
        let name = expand(name);
        let zone = shop().zone(1);
        let query = query(&name, 7).unwrap();
        let mut reply = answer(View::of(&zone), Transport::Udp, &query, &mut fastrand::Rng::with_seed(1)).unwrap();
        change(&mut reply);
        assert_eq!(addresses(7, &name, &reply), expected, "{name} {reply:02x?}");
    }

    #[test]
    fn replies_are_read() {
        let address = Ipv4Addr::new(10, 240, 0, 1);
        check("1.web.ap1.pn1.^", |_| {}, Ok(Reply::Addresses(vec![address])));
        check("1.WEB.ap1.pn1.^", |reply| reply[14..17].make_ascii_lowercase(), Ok(Reply::Addresses(vec![address])));
        check("idle.ap1.pn1.^", |_| {}, Ok(Reply::NoData));
        check("ap2.pn2.^", |_| {}, Ok(Reply::NxDomain));
        check("example.com", |_| {}, Ok(Reply::Failed(5)));
        check("example.com", |reply| reply.splice(5.., [0; 7]).for_each(drop), Ok(Reply::Failed(5)));
        check("1.web.ap1.pn1.^", |reply| reply[2] |= 2, Ok(Reply::Truncated(vec![address])));
    }

    #[test]
    fn what_is_no_reply_to_the_question_is_refused() {
        check("ap1.pn1.^", |reply| reply[1] = 8, Err(StubError::Foreign));
        check("ap1.pn1.^", |reply| reply[2] &= 0x7f, Err(StubError::Foreign));
        check("ap1.pn1.^", |reply| reply[2] |= 0x28, Err(StubError::Foreign));
        check("ap1.pn1.^", |reply| reply[5] = 0, Err(StubError::Foreign));
        check("ap1.pn1.^", |reply| reply[5] = 2, Err(StubError::Foreign));
        check("ap1.pn1.^", |reply| reply[13] = b'x', Err(StubError::Foreign));
        check("ap1.pn1.^", |reply| reply.truncate(11), Err(StubError::Malformed));
        check("ap1.pn1.^", |reply| reply.truncate(reply.len() - 1), Err(StubError::Malformed));
    }

    #[test]
    fn addresses_of_other_names_do_not_count_and_aliases_do() {
        let question = b"\x01a\0\0\x01\0\x01";
        let alias = b"\xc0\x0c\0\x05\0\x01\0\0\0\0\0\x03\x01b\0";
        let [a, b, c] = [b'a', b'b', b'c']
            .map(|owner| [&[1, owner, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0], &[owner][..]].concat());
        for (records, expected) in [
            (vec![&alias[..], &b, &c], Reply::Addresses(vec![[10, 0, 0, b'b'].into()])),
            (vec![&a], Reply::Addresses(vec![[10, 0, 0, b'a'].into()])),
            (vec![&b], Reply::NoData),
            (vec![&alias[..]], Reply::NoData),
        ] {
            let header = [0, 7, 0x80, 0, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
            let reply = [&header[..], question, &records.concat()].concat();
            assert_eq!(addresses(7, "a", &reply), Ok(expected));
        }
    }

    #[test]
    fn a_truncated_reply_leads_to_a_whole_one() {
        let (zone, name) = (crowd("web", 1022), expand("ap1.pn1.^"));
        let ask = |transport| {
            let query = query(&name, 1).unwrap();
            let reply = answer(View::of(&zone), transport, &query, &mut fastrand::Rng::with_seed(1));
            addresses(1, &name, &reply.unwrap()).unwrap()
        };
        assert!(matches!(ask(Transport::Udp), Reply::Truncated(part) if part.len() == 68));
        assert!(matches!(ask(Transport::Tcp), Reply::Addresses(all) if all.len() == 1022));
    }

    proptest! {
        #[test]
        fn total_on_arbitrary_octets(mut reply in proptest::collection::vec(any::<u8>(), 0..400), like_one: bool) {
            if like_one {
                let head = b"\0\x07\x80\0\0\x01\0\x02\0\0\0\0\x01a\0\0\x01\0\x01";
                reply.splice(0..0, head.iter().copied());
            }
            let _ = addresses(7, "a", &reply);
        }
    }
}
