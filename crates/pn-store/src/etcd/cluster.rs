//! The members of a cluster, and how they are asked.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::Arc;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::failure::{error, was_not_reached};
use crate::{StoreError, StoreErrorKind};

/// The members of a cluster, one of which is asked at a time. Clones share connections.
#[derive(Clone)]
pub(super) struct Cluster {
    members: Arc<[Member]>,
    /// The number of the member that is asked.
    current: Arc<AtomicUsize>,
    options: ConnectOptions,
}

/// One of the servers of a cluster, with a connection of its own: a client of many would go on asking one that is gone.
struct Member {
    url: String,
    client: OnceCell<Client>,
}

/// How long a call may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How many octets an answer may have. A page of 512 keys may have more than the 4 MB that a client takes by itself; where it has
/// more than this, fewer keys are asked for.
pub(super) const MESSAGE: usize = 64 << 20;

impl Cluster {
    /// Makes a cluster of its members' addresses, without asking anybody.
    pub(super) fn new(urls: impl Iterator<Item = String>, options: ConnectOptions) -> Self {
        let members = urls.map(|url| Member { url, client: OnceCell::new() }).collect();
        Self { members, current: Arc::default(), options }
    }

    /// Asks the member that was asked last, and the others where it and they were not reached; a call that may have arrived is
    /// made once.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Error>> + Send>(
        &self,
        operation: &'static str,
        object: &str,
        call: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let mut tries = self.members.len();
        loop {
            let number = self.current.load(Ordering::Relaxed);
            let member = self
                .members
                .get(number % self.members.len().max(1))
                .ok_or_else(|| StoreError::new(StoreErrorKind::Invalid, operation, "a cluster without members"))?;
            let answer = async {
                let connect = || Client::connect([&member.url], Some(self.options.clone()));
                let client = member.client.get_or_try_init(connect).await.map_err(|error| (error, true))?;
                call(client.clone()).await.map_err(|error| {
                    let was_not_reached = was_not_reached(&error);
                    (error, was_not_reached)
                })
            };
            let (failed, was_not_reached) = match timeout(PATIENCE, answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err((source, was_not_reached))) => (error(source, operation, object), was_not_reached),
                Err(elapsed) => {
                    (StoreError::new(StoreErrorKind::Unavailable, operation, object).with_source(elapsed), false)
                }
            };
            if failed.kind() != StoreErrorKind::Unavailable {
                return Err(failed);
            }
            // Whoever was as unlucky has turned to the next one already.
            let next = number.wrapping_add(1);
            let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
            tries -= 1;
            if !was_not_reached || tries == 0 {
                return Err(failed);
            }
        }
    }
}
