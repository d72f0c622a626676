//! Keys, entries and transactions, as etcd has them.

use etcd_client::{Compare, CompareOp, DeleteOptions, KeyValue, PutOptions, ResponseHeader, TxnOp};

use crate::{Entry, KeyError, LeaseId, Operation, Precondition, Revision, StoreError, StoreErrorKind};

/// Returns a key as etcd takes it: it has no empty key, and nothing is before an octet of zero.
pub(super) fn octets(text: &str) -> Vec<u8> {
    if text.is_empty() { vec![0] } else { text.into() }
}

/// Returns the revision that an answer is of.
pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    number(header.map_or(0, ResponseHeader::revision))
}

fn number(revision: i64) -> Revision {
    Revision::new(u64::try_from(revision).unwrap_or(0))
}

/// Returns a revision as etcd has it.
pub(super) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

/// Reads an entry.
pub(super) fn entry(kv: &KeyValue) -> Result<Entry, StoreError> {
    let text = String::from_utf8_lossy(kv.key());
    let wrong = |error: KeyError| StoreError::new(StoreErrorKind::Corrupt, "read", &text).with_source(error);
    let lease = (kv.lease() != 0).then(|| LeaseId(kv.lease()));
    let (key, value) = (text.parse().map_err(wrong)?, kv.value().to_vec());
    Ok(Entry { key, value, revision: number(kv.mod_revision()), lease })
}

/// Returns a precondition as etcd has it.
pub(super) fn compare(precondition: &Precondition) -> Compare {
    match precondition {
        Precondition::Absent(key) => Compare::version(key.as_str(), CompareOp::Equal, 0),
        Precondition::Present(key) => Compare::version(key.as_str(), CompareOp::Greater, 0),
        Precondition::At(key, revision) => Compare::mod_revision(key.as_str(), CompareOp::Equal, signed(*revision)),
        Precondition::NoneSince(prefix, revision) => {
            let since = signed(*revision).saturating_add(1);
            Compare::mod_revision(octets(prefix.as_str()), CompareOp::Less, since).with_range(prefix.end())
        }
    }
}

/// Returns an operation as etcd has it.
pub(super) fn operation(operation: Operation) -> TxnOp {
    match operation {
        Operation::Put { key, value, lease } => {
            let lease = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_str(), value, lease)
        }
        Operation::Delete(key) => TxnOp::delete(key.as_str(), None),
        Operation::DeletePrefix(prefix) => {
            TxnOp::delete(octets(prefix.as_str()), Some(DeleteOptions::new().with_range(prefix.end())))
        }
    }
}
