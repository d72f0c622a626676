//! Connections to the members of a cluster.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::OnceCell;

use super::failure::{is_token_refused, was_not_reached};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// What changes nothing more when it is done twice.
    Repeatable,
    /// What may be done once.
    Once,
    /// A watch. It goes on after its first answer, and may be asked for twice.
    Watch,
}

/// One of the servers of a cluster, with connections of its own: a client of many would go on asking one that is gone.
pub(super) struct Member {
    url: String,
    options: ConnectOptions,
    /// What calls are made by.
    calls: Mutex<Arc<Connection>>,
    /// What watches are carried by, each of which has its connection; the last one takes it with it.
    watches: Mutex<Vec<Weak<Connection>>>,
}

/// How many watches share a connection. Each is a stream of it, and older servers with TLS take 250; what is beyond waits for ever.
const WATCHES: usize = 100;

impl Member {
    /// Makes a member that nobody has connected to.
    pub(super) fn new(url: String, options: ConnectOptions) -> Self {
        let calls = Mutex::new(Connection::new(&url, &options));
        Self { url, options, calls, watches: Mutex::default() }
    }

    /// Returns a connection to ask by.
    pub(super) fn connection(&self, what: Call) -> Arc<Connection> {
        if what != Call::Watch {
            return Arc::clone(&lock(&self.calls));
        }
        let mut watches = lock(&self.watches);
        watches.retain(|connection| connection.strong_count() > 0);
        let has_room = |connection: &&Weak<Connection>| connection.strong_count() < WATCHES;
        let with_room = watches.iter().filter(has_room).find_map(Weak::upgrade);
        with_room.unwrap_or_else(|| {
            let connection = Connection::new(&self.url, &self.options);
            watches.push(Arc::downgrade(&connection));
            connection
        })
    }

    /// Lets go of a connection that is silent, so that nothing more is asked by it: what was lost on the way may be sent again only
    /// minutes later.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        lock(&self.watches).retain(|other| !core::ptr::eq(other.as_ptr(), Arc::as_ptr(connection)));
        let mut calls = lock(&self.calls);
        if Arc::ptr_eq(&calls, connection) {
            *calls = Connection::new(&self.url, &self.options);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to a member. It is opened by the first call, and again by the next one after it has ended.
pub(super) struct Connection {
    url: String,
    options: ConnectOptions,
    client: OnceCell<Client>,
    /// How many tokens the client has had after its first.
    tokens: tokio::sync::Mutex<u64>,
}

/// Why a call was not answered.
pub(super) struct Failed {
    /// What the client says.
    pub(super) source: Error,
    /// Whether the call may have been made.
    pub(super) may_have_arrived: bool,
}

impl Connection {
    fn new(url: &str, options: &ConnectOptions) -> Arc<Self> {
        let (client, tokens) = (OnceCell::new(), tokio::sync::Mutex::default());
        Arc::new(Self { url: url.to_owned(), options: options.clone(), client, tokens })
    }

    /// Makes a call; where its token is refused, once more with a new one.
    pub(super) async fn make<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<T, Failed> {
        let connect = || Client::connect([&self.url], Some(self.options.clone()));
        let never_sent = |source| Failed { source, may_have_arrived: false };
        let client = self.client.get_or_try_init(connect).await.map_err(never_sent)?;
        let token = *self.tokens.lock().await;
        let answer = match call(client.clone()).await {
            Err(refusal) if is_token_refused(&refusal) => {
                self.replace_token(client, token).await.map_err(never_sent)?;
                call(client.clone()).await
            }
            answer => answer,
        };
        answer.map_err(|source| {
            let may_have_arrived = !was_not_reached(&source);
            Failed { source, may_have_arrived }
        })
    }

    /// Asks for a new token, unless somebody did since a call was made with this one: that costs the server a tenth of a second.
    async fn replace_token(&self, client: &Client, token: u64) -> Result<(), Error> {
        let mut tokens = self.tokens.lock().await;
        if *tokens == token {
            client.refresh_token().await?;
            *tokens += 1;
        }
        Ok(())
    }
}
