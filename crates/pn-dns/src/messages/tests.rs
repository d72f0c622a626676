use domain::rdata::AllRecordData;

use super::*;

impl Request {
    /// Signs a query that was written without a thought of signatures.
    pub(crate) fn sign_octets(query: &[u8], key: &TsigKey, now: u64) -> Vec<u8> {
        let mut copy = copy(query);
        ClientTransaction::request(key.clone(), &mut copy, time(now)).unwrap();
        copy.finish().into_target()
    }

    /// Confirms a signed notification.
    pub(crate) fn confirm(notification: &[u8], rcode: u8, key: &TsigKey, now: u64) -> Vec<u8> {
        let mut message = Message::from_octets(notification.to_vec()).unwrap();
        let signature = domain::tsig::ServerTransaction::request(key, &mut message, time(now)).unwrap().unwrap();
        let mut reply =
            builder(0, Opcode::NOTIFY).start_answer(&message, Rcode::masked_from_int(rcode)).unwrap().additional();
        signature.answer(&mut reply, time(now)).unwrap();
        reply.finish().into_target()
    }
}

/// Copies a message, so that a signature can follow.
fn copy(message: &[u8]) -> AdditionalBuilder<TreeCompressor<Vec<u8>>> {
    let message = Message::from_octets(message).unwrap();
    let mut copy = builder(0, Opcode::QUERY);
    *copy.header_mut() = message.header();
    let mut question = copy.question();
    for asked in message.question() {
        question.push(asked.unwrap()).unwrap();
    }
    let mut authority = question.authority();
    for record in message.authority().unwrap().limit_to::<AllRecordData<_, _>>() {
        authority.push(record.unwrap()).unwrap();
    }
    let mut additional = authority.additional();
    for record in message.additional().unwrap().limit_to::<AllRecordData<_, _>>() {
        additional.push(record.unwrap()).unwrap();
    }
    additional
}

const ZONE: &str = "zone.example";
const NOW: u64 = 1_600_000_000;

fn key() -> TsigKey {
    "hmac-sha256:key.test:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".parse().unwrap()
}

fn octets(hex: &str) -> Vec<u8> {
    let hex: String = hex.split_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Made by another program from RFC 8945 alone: a query for SOA and its reply, signed with the key at `NOW` and a second later,
/// and the two refusals that are not signed.
const QUERY: &str = "123400000001000000000001 047a6f6e65076578616d706c650000060001 036b65790474657374
    0000fa00ff00000000003d 0b686d61632d73686132353600 00005f5e1000012c 0020
    288ca956bd43e016aef07dc82ee47ea1dc40587e18525ad2595f3d222a0bd272 123400000000";
const REPLY: &str = "123484000001000100000001 047a6f6e65076578616d706c650000060001 047a6f6e65076578616d706c65
    0000060001000000010030 026e73076578616d706c6500 066e6f626f647907696e76616c696400 0000000900000e100000025800015180
    00000001 036b65790474657374 0000fa00ff00000000003d 0b686d61632d73686132353600 00005f5e1001012c 0020
    a8cd65fd65366d9e00c0081c804c52b81ee1d1f56df9c9f7013fcba1bd01f4a7 123400000000";
const BAD_KEY: &str = "123480090001000000000001 047a6f6e65076578616d706c650000060001 036b65790474657374
    0000fa00ff00000000001d 0b686d61632d73686132353600 00005f5e1001012c 0000 1234 0011 0000";
const BAD_SIG: &str = "123480090001000000000001 047a6f6e65076578616d706c650000060001 036b65790474657374
    0000fa00ff00000000001d 0b686d61632d73686132353600 00005f5e1001012c 0000 1234 0010 0000";

#[test]
fn signatures_are_those_of_rfc_8945() {
    let request = Request::soa(ZONE, Some(&key()), 0x1234, NOW);
    assert_eq!(request.octets, octets(QUERY));
    let soa = request.read(octets(REPLY), NOW).unwrap().unwrap();
    assert_eq!((soa.serial, soa.timers, soa.minimum, soa.ttl), (9, [3600, 600, 86_400], 1, 1));
    assert_eq!(soa.mname.to_string(), "ns.example");
}

#[test]
fn every_algorithm_is_the_one_it_says() {
    let secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    for (algorithm, mac) in [
        ("hmac-sha256", "43755dd85c78e57832943fbf92ca81b68c676b345d018ec3495698a21a0a981a"),
        (
            "HMAC-SHA384",
            "3572976991712dfbc23848768a6c5cba86cb87a97ec3b0babb7961edf5e4e625fa14c1177c5d0cccbedad61e80a502a6",
        ),
        (
            "hmac-sha512",
            "1a5b32d9977a6458b0dd1d15ae6daad80e9c734766bbf57e45fb3ec6b39f199a\
             79b0f318f77c371f67901e5f3c6bbae58faec30adc627380b72158084932078d",
        ),
    ] {
        let key: TsigKey = format!("{algorithm}:key.test.:{secret}").parse().unwrap();
        let request = Request::soa(ZONE, Some(&key), 0x1234, 0x01_0203_0405);
        let mac = octets(mac);
        assert!(request.octets.windows(mac.len()).any(|octets| octets == mac), "{algorithm}");
    }
}

#[test]
fn keys_say_what_is_wrong_and_never_their_secret() {
    for (text, error) in [
        ("key.example", "a TSIG key is ALGORITHM:NAME:SECRET, as dig -y takes it"),
        ("key.test:AAAA", "a TSIG key is ALGORITHM:NAME:SECRET, as dig -y takes it"),
        ("md5:key:AAAA", "\"md5\" is not a TSIG algorithm: use hmac-sha256, hmac-sha384 or hmac-sha512"),
        ("hmac-sha256:a..b:MDEyMzQ1Njc4OWFiY2RlZg==", "\"a..b\" is not the name of a key: use a domain name"),
        (
            "hmac-sha256:k:c2hvcnQ=",
            "the secret of the key \"k\" is not Base64 of at least 16 octets: make one with tsig-keygen",
        ),
        (
            "hmac-sha256:k:!!!",
            "the secret of the key \"k\" is not Base64 of at least 16 octets: make one with tsig-keygen",
        ),
    ] {
        assert_eq!(text.parse::<TsigKey>().unwrap_err().to_string(), error, "{text}");
    }
    assert_eq!(format!("{:?}", key()), "TsigKey(key.test)");
}

fn read(change: impl FnOnce(&mut Vec<u8>), now: u64) -> Result<Option<ZoneSoa>, PeerError> {
    let mut reply = octets(REPLY);
    change(&mut reply);
    Request::soa(ZONE, Some(&key()), 0x1234, NOW).read(reply, now)
}

#[test]
fn a_reply_that_is_not_authentic_is_refused() {
    let mac = octets(REPLY).len() - 6 - 32;
    assert!(matches!(read(|reply| reply[mac] ^= 1, NOW), Err(PeerError::Unauthentic { .. })));
    assert!(matches!(read(|reply| reply[3] |= 8, NOW), Err(PeerError::Unauthentic { .. })), "another rcode");
    assert!(matches!(read(|reply| reply[86] ^= 1, NOW), Err(PeerError::Unauthentic { .. })), "another serial");
    assert!(matches!(read(|reply| reply[1] ^= 1, NOW), Err(PeerError::Malformed)), "another id");
    assert!(matches!(read(|reply| reply[2] = 0, NOW), Err(PeerError::Malformed)), "no reply");
    assert!(matches!(read(|reply| reply.truncate(11), NOW), Err(PeerError::Malformed)));
    assert!(matches!(read(|_| {}, NOW + 302), Err(PeerError::Clock)));
    assert!(read(|_| {}, NOW + 300).is_ok());
    let without = |reply: &mut Vec<u8>| {
        reply.truncate(mac - 37);
        reply[11] = 0;
    };
    assert!(matches!(read(without, NOW), Err(PeerError::Unauthentic { .. })), "no signature");
}

#[test]
fn refusals_say_what_to_do() {
    let request = Request::soa(ZONE, Some(&key()), 0x1234, NOW);
    assert!(matches!(request.read(octets(BAD_KEY), NOW), Err(PeerError::UnknownKey { key }) if key == "key.test"));
    assert!(matches!(request.read(octets(BAD_SIG), NOW), Err(PeerError::WrongSecret { key }) if key == "key.test"));
    let refused = octets("123480050001000000000000 047a6f6e65076578616d706c650000060001");
    let error = request.read(refused, NOW).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server answered REFUSED for zone zone.example: allow the TSIG key to update and transfer the zone"
    );
}

#[test]
fn an_update_takes_what_fits_and_always_what_comes_last() {
    let set = |n: usize| (format!("{n}.web.ap-00000000-0000-0000-0000-000000000001"), 1);
    let edits: Vec<Edit> = (0..5000).map(|n| Edit::Add(set(n), 5, vec![10, 240, 0, 1])).collect();
    let last = [Edit::DeleteSet(set(1)), Edit::Add(("last".to_owned(), 16), 0, b"\x04last".to_vec())];
    let prerequisites = [Prerequisite::None(("last".to_owned(), 16))];
    let (request, fitted) = Request::update(ZONE, &prerequisites, &edits, &last, Some(&key()), (1, NOW));
    assert!(request.octets.len() <= usize::from(u16::MAX) && fitted > 1300, "{fitted} in {}", request.octets.len());
    let message = Message::from_octets(request.octets).unwrap();
    assert_eq!(usize::from(message.header_counts().nscount()), fitted + last.len());
    assert_eq!((message.header_counts().ancount(), message.header_counts().arcount()), (1, 1));
    assert!(message.as_slice().windows(5).any(|octets| octets == b"\x04last"));
}

/// A zone of so many records, in messages of at most three, as a server sends it.
fn transferred(count: usize, limit: usize) -> Result<(ZoneSoa, Contents), PeerError> {
    let (query, mut transfer) = Transfer::request(ZONE, None, 0x1234, NOW);
    transfer.limit = limit;
    let query = Message::from_octets(query).unwrap();
    let soa = Soa::new(zone_name("ns.example"), zone_name("a.example"), Serial(9), TTL, TTL, TTL, TTL);
    let soa = || (zone_name(ZONE), Class::IN, 1, soa.clone());
    let sets: Vec<RrsetKey> = (0..count).map(|n| (format!("n{n}"), 1)).collect();
    let mut last = false;
    for (n, part) in sets.chunks(3).enumerate() {
        let mut answer = builder(0, Opcode::QUERY).start_answer(&query, Rcode::NOERROR).unwrap();
        if n == 0 {
            answer.push(soa()).unwrap();
        }
        part.iter().for_each(|set| answer.push(record(ZONE, set, Class::IN, 5, &[10, 240, 0, 1])).unwrap());
        if n + 1 == sets.len().div_ceil(3) {
            answer.push(soa()).unwrap();
        }
        assert!(!last, "it had come to its end");
        last = transfer.read(answer.finish().into_target(), NOW)?;
    }
    assert!(last, "it came to its end");
    transfer.finish()
}

#[test]
fn a_zone_that_is_too_large_is_an_error_of_its_own() {
    for (count, limit) in [(1, 1), (7, 7), (7, 8)] {
        let (soa, contents) = transferred(count, limit).unwrap();
        assert_eq!((soa.serial, contents.len()), (9, count));
    }
    for (count, limit) in [(1, 0), (8, 7), (100, 3)] {
        let error = transferred(count, limit).unwrap_err();
        let is_it = matches!(&error, PeerError::TooLarge { zone, limit: of } if zone == ZONE && *of == limit);
        assert!(is_it && error.kind() == ErrorKind::Unsupported, "{error}");
    }
}

const TTL: Ttl = Ttl::from_secs(1);

proptest::proptest! {
    #[test]
    fn total_on_arbitrary_octets(
        mut reply in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        at in 0usize..160,
        kind in 0u8..3,
    ) {
        if kind > 0 {
            // Most of a good reply.
            let mut good = octets(REPLY);
            let end = (at + usize::from(kind)).min(good.len());
            good.splice(at.min(end)..end, reply.iter().copied().take(4));
            reply = good;
        }
        let _ = Request::soa(ZONE, Some(&key()), 0x1234, NOW).read(reply.clone(), NOW);
        let _ = Request::soa(ZONE, None, 0x1234, NOW).read(reply.clone(), NOW);
        for key in [None, Some(&key())] {
            let (_, mut transfer) = Transfer::request(ZONE, key, 0x1234, NOW);
            let _ = transfer.read(reply.clone(), NOW);
        }
    }
}
