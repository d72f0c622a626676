//! What the failures of etcd and its client mean.

use etcd_client::Error;

use crate::{StoreError, StoreErrorKind};

/// Returns what a failure is to whoever asked.
pub(super) fn error(source: Error, operation: &'static str, object: &str) -> StoreError {
    StoreError::new(kind(&source), operation, object).with_source(source)
}

/// Returns whether a call failed before anything of it was sent, or was refused because the member knows no leader.
pub(super) fn was_not_reached(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return matches!(error, Error::TransportError(_)) };
    if status.message() == "etcdserver: no leader" {
        return true;
    }
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
            // Ours is that of connecting; the kernel's may be that of a connection.
            let is_ours = || error.get_ref().is_some_and(|inner| inner.is::<tokio::time::error::Elapsed>());
            return matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
                || (error.kind() == TimedOut && is_ours());
        }
        source = cause.source();
    }
    false
}

/// Returns whether the member knows no leader, or lost the one it had.
pub(super) fn lacks_leader(error: &Error) -> bool {
    said(error).contains("leader")
}

/// Returns whether whoever asked is known, but may not have what was asked for.
pub(super) fn is_not_permitted(error: &Error) -> bool {
    said(error).contains(NOT_PERMITTED)
}

/// Returns whether a call was refused for the token that came with it, so that it was not made.
pub(super) fn is_token_refused(error: &Error) -> bool {
    let said = said(error);
    // A watch whose token has ended is not permitted, older servers say.
    [OLD_TOKEN, INVALID_TOKEN].iter().any(|refusal| said.contains(refusal))
        || (matches!(error, Error::WatchError(_)) && is_not_permitted(error))
}

/// Returns what the member said.
fn said(error: &Error) -> &str {
    match error {
        Error::GRpcStatus(status) => status.message(),
        Error::WatchError(reason) | Error::LeaseKeepAliveError(reason) => reason,
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::IoError(_)
        | Error::TransportError(_)
        | Error::Utf8Error(_)
        | Error::ElectError(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => "",
    }
}

/// Returns the kind of a failure.
pub(super) fn kind(error: &Error) -> StoreErrorKind {
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::LeaseKeepAliveError(reason) if reason == "lease not found" => return StoreErrorKind::LeaseEnded,
        Error::WatchError(_) if is_not_permitted(error) => return StoreErrorKind::Denied,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::Utf8Error(_) | Error::InvalidMetadataValue(_) => {
            return StoreErrorKind::Invalid;
        }
        Error::IoError(_)
        | Error::TransportError(_)
        | Error::WatchError(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => return StoreErrorKind::Unavailable,
    };
    let message = status.message();
    // The numbers of gRPC (https://grpc.io/docs/guides/status-codes/); etcd's own messages where one stands for several.
    match status.code() as i32 {
        3 if message.contains("authentication failed") || message.contains("user name") => StoreErrorKind::Denied,
        // It was replaced, and is old again.
        3 if message.contains(OLD_TOKEN) => StoreErrorKind::Unavailable,
        3 if message.contains("too many operations") || message.contains("too large") => StoreErrorKind::TooLarge,
        7 | 16 => StoreErrorKind::Denied,
        9 if message.contains("authentication is not enabled") => StoreErrorKind::Denied,
        3 => StoreErrorKind::Invalid,
        5 if message.contains("lease") => StoreErrorKind::LeaseEnded,
        // Compacted, or of another history than this cluster's.
        11 if message.contains("required revision") => StoreErrorKind::Compacted,
        // The client's own limit, and the server's.
        11 if message.contains("message length too large") => StoreErrorKind::TooLarge,
        8 if message.contains("larger than max") => StoreErrorKind::TooLarge,
        8 if message.contains("space exceeded") => StoreErrorKind::Failed,
        12 | 15 => StoreErrorKind::Failed,
        _ => StoreErrorKind::Unavailable,
    }
}

/// What etcd says to a user who lacks the right.
const NOT_PERMITTED: &str = "permission denied";

/// What etcd says of a token that is older than some change of users or roles.
const OLD_TOKEN: &str = "revision of auth store is old";

/// What etcd says of a token that has ended, or that it does not know.
const INVALID_TOKEN: &str = "invalid auth token";

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::net::{TcpListener, TcpStream};

    use etcd_client::{Client, ConnectOptions};

    use super::*;

    #[tokio::test]
    async fn what_is_sent_to_a_machine_that_is_off_has_not_arrived() {
        // It takes no connection, as a listener that does not accept the many it has.
        let off = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = off.local_addr().unwrap();
        let soon = Duration::from_millis(100);
        let held: Vec<TcpStream> = core::iter::from_fn(|| TcpStream::connect_timeout(&address, soon).ok()).collect();
        let options = ConnectOptions::new().with_connect_timeout(soon);
        let client = Client::connect([format!("http://{address}")], Some(options)).await.unwrap();
        let failed = client.kv_client().get("k", None).await.unwrap_err();
        assert!(was_not_reached(&failed), "{failed:?}");
        assert_eq!(kind(&failed), StoreErrorKind::Unavailable);
        drop((off, held));
    }
}
