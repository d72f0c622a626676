//! What name servers say to each other, as octets: questions about zones, transfers, updates, notifications, and their
//! signatures. Pure: time and ids are arguments.
//!
//! No other file than these names `domain`, which has what `hickory-proto` lacks: signed sequences of messages, shortened
//! signatures, and a reader of signatures that no header can make overflow.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AuthorityBuilder, MessageBuilder, PushError, TreeCompressor};
use domain::base::rdata::UnknownRecordData;
use domain::base::{Message, Name, Serial, ToName, Ttl};
use domain::rdata::Soa;
use domain::rdata::tsig::Time48;
use domain::tsig::{ClientTransaction, ValidationError};

use pn_core::ErrorKind;

pub(crate) use self::incoming::{RECORDS_LIMIT, Transfer};
pub use self::key::{TsigAlgorithm, TsigKey, TsigKeyError};

mod incoming;
mod key;
#[cfg(feature = "transfer")]
pub(crate) mod primary;

/// A zone's SOA record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ZoneSoa {
    pub(crate) mname: Name<Vec<u8>>,
    pub(crate) rname: Name<Vec<u8>>,
    pub(crate) serial: u32,
    /// REFRESH, RETRY and EXPIRE.
    pub(crate) timers: [u32; 3],
    pub(crate) minimum: u32,
    pub(crate) ttl: u32,
}

/// The records of one owner and type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rrset {
    pub(crate) ttl: u32,
    /// RDATA in canonical form.
    pub(crate) rdata: BTreeSet<Vec<u8>>,
}

/// Owner, relative to the zone, in lower case and empty for the apex, and TYPE.
pub(crate) type RrsetKey = (String, u16);

/// A zone as a server has it, SOA record apart.
pub(crate) type Contents = BTreeMap<RrsetKey, Rrset>;

/// A step of an update (RFC 2136 §2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Puts a record there.
    Add(RrsetKey, u32, Vec<u8>),
    /// Takes a record away.
    Delete(RrsetKey, Vec<u8>),
    /// Takes all records of an owner and type away.
    DeleteSet(RrsetKey),
    /// Replaces the SOA record.
    Soa(ZoneSoa),
}

/// What must hold for an update to be made (RFC 2136 §2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prerequisite {
    /// There are exactly these records.
    Exactly(RrsetKey, BTreeSet<Vec<u8>>),
    /// There is no record of this owner and type.
    None(RrsetKey),
}

/// Why another name server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// It cannot be reached, or says nothing in time.
    #[error("cannot talk to the name server at {server}: start it, or correct its address")]
    Unreachable {
        /// Its address.
        server: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// It does not know the key.
    #[error("the server does not know the TSIG key {key}: configure the key there, under this name and algorithm")]
    UnknownKey {
        /// The key's name.
        key: String,
    },
    /// It has another secret under the key's name.
    #[error("the server has another secret for the TSIG key {key}: configure the same on both sides")]
    WrongSecret {
        /// The key's name.
        key: String,
    },
    /// Its clock and ours differ.
    #[error("the server's clock is more than 300 s from this one: set both clocks")]
    Clock,
    /// It did not sign its reply, or not with the key.
    #[error(
        "the reply is not signed with the TSIG key {key}: it may be forged, or the server does not ask for the key"
    )]
    Unauthentic {
        /// The key's name.
        key: String,
    },
    /// It refused.
    #[error("the server answered {rcode} for zone {zone}: {hint}")]
    Refused {
        /// The zone.
        zone: String,
        /// The response code's name.
        rcode: String,
        /// What to look at.
        hint: &'static str,
    },
    /// What must hold for the update does not.
    #[error("zone {zone} was changed by somebody else meanwhile")]
    Overtaken {
        /// The zone.
        zone: String,
    },
    /// What it said is not a reply to what was asked.
    #[error("the reply is not a DNS message, or not one to this question")]
    Malformed,
    /// The zone on the server is larger than what is read.
    #[error("zone {zone} on the server has more than {limit} records: give the network a zone of its own")]
    TooLarge {
        /// The zone.
        zone: String,
        /// How many records are read.
        limit: usize,
    },
}

/// A request that waits for its reply.
#[derive(Debug)]
pub(crate) struct Request {
    /// The message to send, without TCP's length prefix.
    pub(crate) octets: Vec<u8>,
    zone: String,
    id: u16,
    opcode: Opcode,
    signature: Option<ClientTransaction<TsigKey>>,
}

type Builder = MessageBuilder<TreeCompressor<Vec<u8>>>;

fn builder(id: u16, opcode: Opcode) -> Builder {
    let mut builder = MessageBuilder::from_target(TreeCompressor::new(Vec::new())).expect("a vector takes a header");
    builder.header_mut().set_id(id);
    builder.header_mut().set_opcode(opcode);
    builder
}

impl PeerError {
    /// Returns what kind of failure it is for a backend.
    pub(crate) const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Malformed | Self::Clock => ErrorKind::Io,
            Self::UnknownKey { .. } | Self::WrongSecret { .. } | Self::Unauthentic { .. } | Self::Refused { .. } => {
                ErrorKind::PermissionDenied
            }
            Self::Overtaken { .. } => ErrorKind::Conflict,
            Self::TooLarge { .. } => ErrorKind::Unsupported,
        }
    }
}

impl Request {
    /// Asks for the SOA record of a zone.
    pub(crate) fn soa(zone: &str, key: Option<&TsigKey>, id: u16, now: u64) -> Self {
        let mut question = builder(id, Opcode::QUERY).question();
        question.push((&zone_name(zone), Rtype::SOA)).expect("a question fits");
        Self::sign(zone, id, Opcode::QUERY, question.additional(), key, now)
    }

    /// Tells a secondary that a zone has a new serial number (RFC 1996).
    pub(crate) fn notify(zone: &str, soa: &ZoneSoa, key: Option<&TsigKey>, id: u16, now: u64) -> Self {
        let mut builder = builder(id, Opcode::NOTIFY);
        builder.header_mut().set_aa(true);
        let mut question = builder.question();
        let name = zone_name(zone);
        question.push((&name, Rtype::SOA)).expect("a question fits");
        let mut answer = question.answer();
        answer.push((&name, Class::IN, soa.ttl, soa.data())).expect("an SOA record fits");
        Self::sign(zone, id, Opcode::NOTIFY, answer.additional(), key, now)
    }

    /// Changes a zone, all at once. Returns how many edits fitted, counted from the first; `last` is always among them.
    pub(crate) fn update(
        zone: &str,
        prerequisites: &[Prerequisite],
        edits: &[Edit],
        last: &[Edit],
        key: Option<&TsigKey>,
        (id, now): (u16, u64),
    ) -> (Self, usize) {
        let mut builder = builder(id, Opcode::UPDATE);
        builder.set_push_limit(UPDATE_LIMIT);
        let mut question = builder.question();
        question.push((&zone_name(zone), Rtype::SOA)).expect("a question fits");
        let mut answer = question.answer();
        for prerequisite in prerequisites {
            match prerequisite {
                Prerequisite::Exactly(set, rdata) => {
                    for rdata in rdata {
                        answer.push(record(zone, set, Class::IN, 0, rdata)).expect("few prerequisites fit");
                    }
                }
                Prerequisite::None(set) => {
                    answer.push(record(zone, set, Class::NONE, 0, &[])).expect("few prerequisites fit");
                }
            }
        }
        let mut authority = answer.authority();
        for edit in last {
            push_edit(&mut authority, zone, edit).expect("few edits fit");
        }
        let fitted = edits.iter().take_while(|edit| push_edit(&mut authority, zone, edit).is_ok()).count();
        let mut additional = authority.additional();
        additional.clear_push_limit();
        (Self::sign(zone, id, Opcode::UPDATE, additional, key, now), fitted)
    }

    fn sign(
        zone: &str,
        id: u16,
        opcode: Opcode,
        mut message: AdditionalBuilder<TreeCompressor<Vec<u8>>>,
        key: Option<&TsigKey>,
        now: u64,
    ) -> Self {
        let mut sign = |key: &TsigKey| ClientTransaction::request(key.clone(), &mut message, time(now));
        let signature = key.map(|key| sign(key).expect("a signature fits"));
        Self { octets: message.finish().into_target(), zone: zone.to_owned(), id, opcode, signature }
    }

    /// Reads the reply, which must be authentic, and returns the SOA record that it answers with, if it does.
    pub(crate) fn read(&self, reply: Vec<u8>, now: u64) -> Result<Option<ZoneSoa>, PeerError> {
        let mut message = Message::from_octets(reply).map_err(|_| PeerError::Malformed)?;
        let header = message.header();
        if header.id() != self.id || !header.qr() || header.opcode() != self.opcode {
            return Err(PeerError::Malformed);
        }
        if let Some(signature) = &self.signature {
            let checked = signature.answer(&mut message, time(now));
            checked.map_err(|error| self.invalid(error, signature.key(), header.rcode()))?;
        }
        check_rcode(&self.zone, header.rcode())?;
        let answers = message.answer().map_err(|_| PeerError::Malformed)?;
        let soas = answers.limit_to::<Soa<_>>();
        let zone = zone_name(&self.zone);
        for record in soas {
            let record = record.map_err(|_| PeerError::Malformed)?;
            if record.owner().name_eq(&zone) {
                return Ok(Some(ZoneSoa::read(record.data(), record.ttl())));
            }
        }
        Ok(None)
    }

    fn invalid(&self, error: ValidationError, key: &domain::tsig::Key, rcode: Rcode) -> PeerError {
        match (&error, check_rcode(&self.zone, rcode)) {
            // A server that refuses before it looks at the key says nothing signed; it is believed, for nothing follows from it.
            (ValidationError::ServerUnsigned, Err(refused)) => refused,
            _ => invalid(&error, key),
        }
    }
}

impl ZoneSoa {
    fn read<N: ToName>(soa: &Soa<N>, ttl: Ttl) -> Self {
        Self {
            mname: soa.mname().to_vec(),
            rname: soa.rname().to_vec(),
            serial: soa.serial().into_int(),
            timers: [soa.refresh(), soa.retry(), soa.expire()].map(|ttl| ttl.as_secs()),
            minimum: soa.minimum().as_secs(),
            ttl: ttl.as_secs(),
        }
    }

    fn data(&self) -> Soa<Name<Vec<u8>>> {
        let [refresh, retry, expire] = self.timers.map(Ttl::from_secs);
        let minimum = Ttl::from_secs(self.minimum);
        Soa::new(self.mname.clone(), self.rname.clone(), Serial(self.serial), refresh, retry, expire, minimum)
    }
}

fn push_edit(
    updates: &mut AuthorityBuilder<TreeCompressor<Vec<u8>>>,
    zone: &str,
    edit: &Edit,
) -> Result<(), PushError> {
    match edit {
        Edit::Add(set, ttl, rdata) => updates.push(record(zone, set, Class::IN, *ttl, rdata)),
        Edit::Delete(set, rdata) => updates.push(record(zone, set, Class::NONE, 0, rdata)),
        Edit::DeleteSet(set) => updates.push(record(zone, set, Class::ANY, 0, &[])),
        Edit::Soa(soa) => updates.push((zone_name(zone), Class::IN, soa.ttl, soa.data())),
    }
}

type RawRecord<'a> = (Name<Vec<u8>>, Class, u32, UnknownRecordData<&'a [u8]>);

fn record<'a>(zone: &str, (owner, rtype): &RrsetKey, class: Class, ttl: u32, rdata: &'a [u8]) -> RawRecord<'a> {
    let name = if owner.is_empty() { zone_name(zone) } else { zone_name(&format!("{owner}.{zone}")) };
    let data = UnknownRecordData::from_octets(Rtype::from_int(*rtype), rdata);
    (name, class, ttl, data.expect("what came in one message fits into one"))
}

/// Returns the wire form of a name that this crate wrote, or that came from a server.
fn zone_name(text: &str) -> Name<Vec<u8>> {
    text.parse().expect("a name that was one before is one")
}

fn check_rcode(zone: &str, rcode: Rcode) -> Result<(), PeerError> {
    let hint = match rcode {
        Rcode::NOERROR => return Ok(()),
        Rcode::NXRRSET | Rcode::YXRRSET => return Err(PeerError::Overtaken { zone: zone.to_owned() }),
        Rcode::REFUSED => "allow the TSIG key to update and transfer the zone",
        Rcode::NOTAUTH | Rcode::NOTZONE | Rcode::NXDOMAIN => "configure the zone on the server, as primary",
        Rcode::NOTIMP => "the server does not know such requests",
        Rcode::SERVFAIL => {
            "see its log; BIND, for one, has at most 100 containers of a type unless max-records-per-type says otherwise"
        }
        _ => "see the server's log",
    };
    Err(PeerError::Refused { zone: zone.to_owned(), rcode: rcode.to_string(), hint })
}

fn invalid(error: &ValidationError, key: &domain::tsig::Key) -> PeerError {
    let key = key.name().to_string();
    match error {
        ValidationError::ServerBadKey => PeerError::UnknownKey { key },
        ValidationError::ServerBadSig => PeerError::WrongSecret { key },
        ValidationError::ServerBadTime { .. } | ValidationError::BadTime => PeerError::Clock,
        ValidationError::FormErr => PeerError::Malformed,
        ValidationError::BadAlg
        | ValidationError::BadOther
        | ValidationError::BadSig
        | ValidationError::BadTrunc
        | ValidationError::BadKey
        | ValidationError::ServerUnsigned
        | ValidationError::TooManyUnsigned => PeerError::Unauthentic { key },
    }
}

fn time(now: u64) -> Time48 {
    Time48::from_u64(now & 0xffff_ffff_ffff)
}

/// The longest update, in octets, with room for its signature.
const UPDATE_LIMIT: usize = 60_000;

#[cfg(test)]
mod tests;
