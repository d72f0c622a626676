//! A whole zone, as another server sends it.

use core::fmt;

use domain::base::iana::{Opcode, Rtype};
use domain::base::rdata::ComposeRecordData;
use domain::base::{Message, Name, ToName};
use domain::rdata::AllRecordData;
use domain::tsig::{ClientSequence, ValidationError};

use super::{Contents, PeerError, TsigKey, ZoneSoa, builder, check_rcode, invalid, time, zone_name};

/// A transfer of a zone that comes in, message by message.
pub(crate) struct Transfer {
    zone: String,
    id: u16,
    signature: Option<ClientSequence<TsigKey>>,
    soa: Option<ZoneSoa>,
    contents: Contents,
    records: usize,
    /// The most records that are read; more are [`PeerError::TooLarge`].
    pub(crate) limit: usize,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("zone", &self.zone).field("records", &self.records).finish_non_exhaustive()
    }
}

impl Transfer {
    /// Asks for all of a zone (RFC 5936). Returns the message to send.
    pub(crate) fn request(zone: &str, key: Option<&TsigKey>, id: u16, now: u64) -> (Vec<u8>, Self) {
        let mut question = builder(id, Opcode::QUERY).question();
        question.push((&zone_name(zone), Rtype::AXFR)).expect("a question fits");
        let mut message = question.additional();
        let mut sign = |key: &TsigKey| ClientSequence::request(key.clone(), &mut message, time(now));
        let signature = key.map(|key| sign(key).expect("a signature fits"));
        let (zone, contents, limit) = (zone.to_owned(), Contents::new(), RECORDS_LIMIT);
        let transfer = Self { zone, id, signature, soa: None, contents, records: 0, limit };
        (message.finish().into_target(), transfer)
    }

    /// Reads the next message, which must be authentic, and returns whether it was the last.
    pub(crate) fn read(&mut self, message: Vec<u8>, now: u64) -> Result<bool, PeerError> {
        let mut message = Message::from_octets(message).map_err(|_| PeerError::Malformed)?;
        let header = message.header();
        if header.id() != self.id || !header.qr() || header.opcode() != Opcode::QUERY {
            return Err(PeerError::Malformed);
        }
        if let Some(signature) = &mut self.signature {
            let checked = signature.answer(&mut message, time(now));
            checked.map_err(|error| match (&error, check_rcode(&self.zone, header.rcode())) {
                (ValidationError::ServerUnsigned, Err(refused)) => refused,
                _ => invalid(&error, signature.key()),
            })?;
        }
        check_rcode(&self.zone, header.rcode())?;
        let answers = message.answer().map_err(|_| PeerError::Malformed)?;
        let (zone, suffix) = (self.zone.to_ascii_lowercase(), format!(".{}", self.zone.to_ascii_lowercase()));
        for record in answers.limit_to::<AllRecordData<_, _>>() {
            let record = record.map_err(|_| PeerError::Malformed)?;
            let mut owner = record.owner().to_string();
            owner.make_ascii_lowercase();
            // What is read is written again in updates.
            if !owner.parse::<Name<Vec<u8>>>().is_ok_and(|name| name.name_eq(record.owner())) {
                return Err(PeerError::Malformed);
            }
            let owner = if owner == zone { "" } else { owner.strip_suffix(&suffix).ok_or(PeerError::Malformed)? };
            if let AllRecordData::Soa(soa) = record.data() {
                // The zone is between its SOA record and the same once more.
                if self.soa.is_some() {
                    return Ok(true);
                }
                self.soa = Some(ZoneSoa::read(soa, record.ttl()));
                continue;
            }
            if self.soa.is_none() {
                return Err(PeerError::Malformed);
            }
            self.records += 1;
            if self.records > self.limit {
                return Err(PeerError::TooLarge { zone: self.zone.clone(), limit: self.limit });
            }
            let mut rdata = Vec::new();
            record.data().compose_canonical_rdata(&mut rdata).map_err(|_| PeerError::Malformed)?;
            let set = self.contents.entry((owner.to_owned(), record.rtype().to_int())).or_default();
            set.ttl = record.ttl().as_secs();
            set.rdata.insert(rdata);
        }
        if self.soa.is_none() {
            return Err(PeerError::Malformed);
        }
        Ok(false)
    }

    /// Returns what came, after the last message.
    pub(crate) fn finish(self) -> Result<(ZoneSoa, Contents), PeerError> {
        if let Some(signature) = self.signature {
            let key = signature.key().name().to_string();
            signature.done().map_err(|_| PeerError::Unauthentic { key })?;
        }
        Ok((self.soa.ok_or(PeerError::Malformed)?, self.contents))
    }
}

/// The most records that are read of a server's zone where nothing else is said: a network of 1 022 containers has some 4 000.
pub(crate) const RECORDS_LIMIT: usize = 1_000_000;
