//! The side of a primary: what its secondaries ask, and what it sends them.

use core::fmt;
use core::iter::Peekable;
use std::collections::HashMap;
use std::sync::Arc;

use domain::base::iana::{Class, Rcode, Rtype, TsigRcode};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, MessageBuilder, PushError, TreeCompressor};
use domain::base::{Message, Name, ParsedName, ToName};
use domain::rdata::{AllRecordData, Ns, Soa};
use domain::tsig::{Algorithm, KeyName, ServerSequence};
use pn_core::ZonePlan;

use super::{TsigKey, ZoneSoa, record, time, zone_name};
use crate::Zone;
use crate::records::{Data, Side};

/// Keys by what a signature names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(HashMap<(KeyName, Algorithm), TsigKey>);

impl Keys {
    /// Adds a key.
    pub(crate) fn insert(&mut self, key: TsigKey) {
        let named = (key.as_ref().name().clone(), key.as_ref().algorithm());
        self.0.insert(named, key);
    }
}

/// What a secondary asks.
pub(crate) struct Asked {
    message: Message<Vec<u8>>,
    name: Name<Vec<u8>>,
    pub(crate) wants: Wants,
    signature: Option<ServerSequence<TsigKey>>,
    now: u64,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// The whole zone (AXFR).
    Zone,
    /// What changed since a serial number (IXFR), for which the whole zone will do (RFC 1995 §4).
    Changes(u32),
    /// Anything else.
    Other,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("wants", &self.wants).field("key", &self.key()).finish_non_exhaustive()
    }
}

impl Asked {
    /// Reads a query and checks its signature. `Err` is the reply to one that cannot be read, or whose signature is wrong;
    /// what is no query at all gets none.
    pub(crate) fn open(query: &[u8], keys: &Keys, now: u64) -> Result<Self, Option<Vec<u8>>> {
        let mut message = Message::from_octets(query.to_vec()).map_err(|_| None)?;
        if message.header().qr() {
            return Err(None);
        }
        let signature = match ServerSequence::request(&keys.0, &mut message, time(now)) {
            Ok(signature) => signature,
            Err(error) => {
                let has_wrong_mac = error.error() == TsigRcode::FORMERR;
                let reply = error.build_message(&message, start()).map_err(|_| None)?;
                let says_notauth = reply.header().rcode() == Rcode::NOTAUTH;
                let mut reply = reply.finish().into_target();
                // RFC 8945 §5.2.2 has BADSIG here, where domain 0.12 says FORMERR: before the length of "other data", which ends it.
                if let Some(error) = reply.last_chunk_mut::<4>().filter(|_| has_wrong_mac && says_notauth) {
                    *error = [0, BADSIG, 0, 0];
                }
                return Err(Some(reply));
            }
        };
        let malformed = |message: &Message<Vec<u8>>| {
            Err(Some(start().start_error(message, Rcode::FORMERR).additional().finish().into_target()))
        };
        let Ok(question) = message.sole_question() else {
            return malformed(&message);
        };
        let (name, qtype) = (question.qname().to_vec(), question.qtype());
        let wants = match qtype {
            Rtype::AXFR => Wants::Zone,
            Rtype::IXFR => {
                let soa = message.authority().ok().and_then(|section| section.limit_to::<Soa<_>>().next()?.ok());
                let Some(serial) = soa.map(|record| record.data().serial().into_int()) else {
                    return malformed(&message);
                };
                Wants::Changes(serial)
            }
            _ => Wants::Other,
        };
        Ok(Self { message, name, wants, signature, now })
    }

    /// Returns the name of the key it is signed with, which is right.
    pub(crate) fn key(&self) -> Option<String> {
        self.signature.as_ref().map(|signature| signature.wrapped_key().name())
    }

    /// Returns whether it is about a zone, not a name in it.
    pub(crate) fn is_about(&self, zone: &str) -> bool {
        self.name.name_eq(&zone_name(zone))
    }

    /// Returns the query without its signature.
    pub(crate) fn unsigned(&self) -> Vec<u8> {
        let mut octets = self.message.as_slice().to_vec();
        let end = self.message.additional().map(|mut section| {
            while section.next().is_some_and(|record| record.is_ok()) {}
            section.pos()
        });
        octets.truncate(end.unwrap_or(octets.len()));
        octets
    }

    /// Returns how many octets a reply over UDP may have.
    pub(crate) fn payload(&self) -> usize {
        self.message.opt().map_or(512, |opt| usize::from(opt.udp_payload_size().max(512)))
    }

    /// Refuses.
    pub(crate) fn refuse(self) -> Vec<u8> {
        self.fail(Rcode::REFUSED)
    }

    /// Says that the zone is not known at the moment.
    pub(crate) fn unknown(self) -> Vec<u8> {
        self.fail(Rcode::SERVFAIL)
    }

    /// Says that the zone in question is none of ours.
    pub(crate) fn elsewhere(self) -> Vec<u8> {
        self.fail(Rcode::NOTAUTH)
    }

    fn fail(mut self, rcode: Rcode) -> Vec<u8> {
        let reply = start().start_error(&self.message, rcode).additional();
        sign(&mut self.signature, reply, self.now)
    }

    /// Signs a reply that was made without a thought of signatures, shortened to its header and question where it is then longer
    /// than `limit`.
    pub(crate) fn reply(mut self, reply: &[u8], limit: usize) -> Option<Vec<u8>> {
        let before = self.signature.clone();
        let signed = sign(&mut self.signature, copy(reply)?, self.now);
        if signed.len() <= limit {
            return Some(signed);
        }
        self.signature = before;
        let mut short = start();
        *short.header_mut() = Message::from_octets(reply).ok()?.header();
        short.header_mut().set_tc(true);
        let mut question = short.question();
        for asked in self.message.question().flatten() {
            question.push(asked).ok()?;
        }
        Some(sign(&mut self.signature, question.additional(), self.now))
    }

    /// Answers with the SOA record of a zone of its network alone: nothing changed, or it does not fit.
    pub(crate) fn unchanged(mut self, zone: &Zone) -> Vec<u8> {
        let mut answer = start().start_error(&self.message, Rcode::NOERROR);
        answer.header_mut().set_aa(true);
        let (name, soa) = (self.name.clone(), soa(zone, &self.name.to_string()));
        answer.push((&name, Class::IN, soa.ttl, soa.data())).expect("an SOA record fits");
        sign(&mut self.signature, answer.additional(), self.now)
    }

    /// Answers with a whole zone of its network, message by message. The clock is asked for each.
    pub(crate) fn transfer(self, zone: &Zone, side: Side, now: fn() -> u64) -> Outgoing {
        let plan = Arc::clone(zone.plan());
        let (name, ttl, soa) = (self.name.to_string(), zone.ttl(), soa(zone, &self.name.to_string()));
        let records = nothing().peekable();
        Outgoing { asked: self, now, name, soa, ttl, plan, side, app: 0, records, stage: Part::First }
    }
}

/// A zone on its way out.
pub(crate) struct Outgoing {
    asked: Asked,
    now: fn() -> u64,
    name: String,
    soa: ZoneSoa,
    ttl: u32,
    plan: Arc<ZonePlan>,
    side: Side,
    /// The app whose records come after those below.
    app: usize,
    records: Peekable<Box<dyn Iterator<Item = (String, Data)> + Send>>,
    stage: Part,
}

/// Which part of a zone comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    First,
    Middle,
    Over,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("zone", &self.name).field("serial", &self.soa.serial).finish_non_exhaustive()
    }
}

impl Iterator for Outgoing {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.stage == Part::Over {
            return None;
        }
        let mut answer = start().start_error(&self.asked.message, Rcode::NOERROR);
        answer.header_mut().set_aa(true);
        answer.set_push_limit(MESSAGE_LIMIT);
        let name = zone_name(&self.name);
        if self.stage == Part::First {
            self.stage = Part::Middle;
            self.push_soa(&mut answer).expect("an SOA record fits");
            answer.push((&name, Class::IN, self.ttl, Ns::new(name.clone()))).expect("an NS record fits");
        }
        loop {
            let Some((owner, data)) = self.peek() else {
                if self.push_soa(&mut answer).is_ok() {
                    self.stage = Part::Over;
                }
                break;
            };
            let (set, rdata) = ((owner, data.rtype()), data.rdata());
            if answer.push(record(&self.name, &set, Class::IN, self.ttl, &rdata)).is_err() {
                break;
            }
            self.records.next();
        }
        answer.clear_push_limit();
        Some(sign(&mut self.asked.signature, answer.additional(), (self.now)()))
    }
}

impl Outgoing {
    /// Returns the next record without taking it.
    fn peek(&mut self) -> Option<(String, Data)> {
        while self.records.peek().is_none() {
            let app = self.plan.apps.get(self.app)?.app;
            self.app += 1;
            self.records = self.side.records_of(&self.plan, app).peekable();
        }
        self.records.peek().cloned()
    }

    fn push_soa(&self, answer: &mut AnswerBuilder<TreeCompressor<Vec<u8>>>) -> Result<(), PushError> {
        answer.push((zone_name(&self.name), Class::IN, self.soa.ttl, self.soa.data()))
    }
}

fn nothing() -> Box<dyn Iterator<Item = (String, Data)> + Send> {
    Box::new(core::iter::empty())
}

/// Returns the SOA record that the server itself answers with.
pub(crate) fn soa(zone: &Zone, name: &str) -> ZoneSoa {
    let negative = zone.negative_ttl();
    ZoneSoa {
        mname: zone_name(name),
        rname: zone_name("nobody.invalid"),
        serial: zone.serial(),
        timers: [3600, 1200, 604_800],
        minimum: negative,
        ttl: negative,
    }
}

fn start() -> MessageBuilder<TreeCompressor<Vec<u8>>> {
    MessageBuilder::from_target(TreeCompressor::new(Vec::new())).expect("a vector takes a header")
}

fn sign(
    signature: &mut Option<ServerSequence<TsigKey>>,
    mut message: AdditionalBuilder<TreeCompressor<Vec<u8>>>,
    now: u64,
) -> Vec<u8> {
    if let Some(signature) = signature {
        signature.answer(&mut message, time(now)).expect("a signature fits");
    }
    message.finish().into_target()
}

/// Copies a message record by record, so that a signature can follow.
fn copy(message: &[u8]) -> Option<AdditionalBuilder<TreeCompressor<Vec<u8>>>> {
    type Any<'a> = AllRecordData<&'a [u8], ParsedName<&'a [u8]>>;
    let message = Message::from_octets(message).ok()?;
    let mut copy = start();
    *copy.header_mut() = message.header();
    let mut question = copy.question();
    for asked in message.question().flatten() {
        question.push(asked).ok()?;
    }
    let mut answer = question.answer();
    for record in message.answer().ok()?.limit_to::<Any<'_>>() {
        answer.push(record.ok()?).ok()?;
    }
    let mut authority = answer.authority();
    for record in message.authority().ok()?.limit_to::<Any<'_>>() {
        authority.push(record.ok()?).ok()?;
    }
    let mut additional = authority.additional();
    for record in message.additional().ok()?.limit_to::<Any<'_>>() {
        additional.push(record.ok()?).ok()?;
    }
    Some(additional)
}

/// The error of a signature that is wrong (RFC 8945 §3).
const BADSIG: u8 = 16;

/// The longest message of a transfer before its signature, in octets: pointers reach no further.
const MESSAGE_LIMIT: usize = 16_000;
