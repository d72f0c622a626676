//! The members of a cluster, and how they are asked.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::Arc;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::{Call, Connection, Member};
use super::failure::{self, error};
use crate::{StoreError, StoreErrorKind};

/// The members of a cluster, and which one is asked first. Clones share connections.
#[derive(Clone)]
pub(super) struct Cluster {
    members: Arc<[Member]>,
    /// The number of the member that is asked first; they go round.
    current: Arc<AtomicUsize>,
}

/// How long a call may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a member may be silent before the next one is asked, too, and how long connecting may take where there is a next one. A
/// lease of 5 s is kept alive in time when one of the members hangs.
const TURN: Duration = Duration::from_secs(1);

/// How long the members are left alone while they choose a leader.
const PAUSE: Duration = Duration::from_millis(200);

/// How many octets an answer may have. A page of 512 keys may have more than the 4 MB that a client takes by itself; where it has
/// more than this, fewer keys are asked for.
pub(super) const MESSAGE: usize = 64 << 20;

impl Cluster {
    /// Makes a cluster of its members' addresses, without asking anybody.
    pub(super) fn new(urls: Vec<String>, options: ConnectOptions) -> Self {
        let options = options.with_connect_timeout(if urls.len() > 1 { TURN } else { PATIENCE });
        let members = urls.into_iter().map(|url| Member::new(url, options.clone())).collect();
        Self { members, current: Arc::default() }
    }

    /// Asks the member that answered last, and the next one where it fails or is silent for a while. The first answer counts. What
    /// may be done once goes to the next member only where it cannot have arrived. While they choose a leader, all are asked again.
    /// With the answer comes the connection that it came by.
    pub(super) async fn ask<T, F>(
        &self,
        what: Call,
        operation: &'static str,
        object: &str,
        call: impl Fn(Client) -> F + Clone + Send + Sync + 'static,
    ) -> Result<(T, Arc<Connection>), StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let deadline = Instant::now() + PATIENCE;
        let first = self.current.load(Ordering::Relaxed);
        let members = (0..self.members.len()).map(|n| first.wrapping_add(n));
        let (mut next, mut lacks_leader) = (members.clone(), false);
        let mut answers = JoinSet::new();
        // Who was asked and has not answered.
        let mut silent: Vec<(usize, Arc<Connection>)> = Vec::new();
        let mut failed = StoreError::new(StoreErrorKind::Invalid, operation, "a cluster without members");
        loop {
            if let Some(number) = next.next() {
                let connection = self.member(number).connection(what);
                silent.push((number, Arc::clone(&connection)));
                let call = call.clone();
                answers.spawn(async move {
                    let answer = connection.make(call).await;
                    (number, answer.map(|answer| (answer, connection)))
                });
            } else if answers.is_empty() {
                if !lacks_leader || Instant::now() + PAUSE > deadline {
                    return Err(failed);
                }
                sleep(PAUSE).await;
                (next, lacks_leader) = (members.clone(), false);
                continue;
            }
            let asks_another = what != Call::Once && next.len() > 0;
            let until = if asks_another { deadline.min(Instant::now() + TURN) } else { deadline };
            let (number, answer) = match timeout_at(until, answers.join_next()).await {
                Ok(Some(Ok(answer))) => answer,
                Ok(Some(Err(panicked))) => {
                    return Err(StoreError::new(StoreErrorKind::Failed, operation, object).with_source(panicked));
                }
                Ok(None) => return Err(failed),
                Err(elapsed) => {
                    silent.last().into_iter().for_each(|(number, _)| self.turn(*number));
                    if Instant::now() < deadline {
                        continue;
                    }
                    self.forget(&silent);
                    return Err(StoreError::new(StoreErrorKind::Unavailable, operation, object).with_source(elapsed));
                }
            };
            silent.retain(|(other, _)| *other != number);
            match answer {
                Ok(answer) => {
                    silent.retain(|(other, _)| *other < number);
                    self.forget(&silent);
                    return Ok(answer);
                }
                Err(answer) => {
                    lacks_leader |= failure::lacks_leader(&answer.source);
                    failed = error(answer.source, operation, object);
                    if failed.kind() != StoreErrorKind::Unavailable {
                        return Err(failed);
                    }
                    self.turn(number);
                    if what == Call::Once && answer.may_have_arrived {
                        return Err(failed);
                    }
                }
            }
        }
    }

    fn member(&self, number: usize) -> &Member {
        &self.members[number % self.members.len()]
    }

    /// Asks the one after a member first; whoever was as unlucky has turned to it already.
    fn turn(&self, number: usize) {
        let _ = self.current.compare_exchange(number, number.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Lets go of connections that were silent for too long.
    fn forget(&self, silent: &[(usize, Arc<Connection>)]) {
        for (number, connection) in silent {
            self.member(*number).forget(connection);
        }
    }
}
