//! What is asked and what is answered, each with the fact or the RFC that wants it so.

use super::*;
use crate::cookie::Secret;
use crate::fixture::dual_stack;

/// Each line: why, `|`, the network that asks (1 where none is given) and the query, `|`, the reply.
///
/// `apN`, `pnN` and `^` stand for the labels of app and network N and the suffix, `$` for an SOA record's serial number.
const CASES: &str = include_str!("cases.txt");

#[test]
fn every_query_of_the_table_has_its_answer() {
    let model = dual_stack("10.240.0.0/22");
    let zones = [1, 2, 3].map(|n| model.zone(n));
    let secrets = [Secret::new([7; 16])];
    let cookies = Cookies { secrets: &secrets, client: [192, 0, 2, 1].into(), now: 1000 };
    let (mut cases, mut wrong) = (0, Vec::new());
    for line in CASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [_why, query, expected] = line.split('|').map(str::trim).collect::<Vec<_>>().try_into().unwrap();
        let (n, query) = query
            .strip_prefix(['1', '2', '3'])
            .and_then(|rest| rest.strip_prefix(": "))
            .map_or((1, query), |rest| (query.as_bytes()[0] - b'0', rest));
        let zone = &zones[usize::from(n) - 1];
        let (transport, query) =
            query.strip_suffix(" tcp").map_or((Transport::Udp, query), |query| (Transport::Tcp, query));
        let view = View { nsid: Some(b"ns-1"), cookies: Some(cookies), ..View::of(zone) };
        let reply = answer(view, transport, &eye::query(&expand(query)), &mut Rng::with_seed(cases)).unwrap();
        let expected = expand(expected).replace('$', &zone.serial().to_string());
        let found = eye::describe(&reply);
        if found != expected {
            wrong.push(format!("{line}\n  found {found}\n  not   {expected}"));
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= 150, "{cases}");
}
