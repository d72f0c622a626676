//! Connections to the members of a cluster.

use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::OnceCell;

use super::failure::{is_token_refused, was_not_reached};

/// One of the servers of a cluster, with connections of its own: a client of many would go on asking one that is gone.
pub(super) struct Member {
    url: String,
    options: ConnectOptions,
    /// What calls are made by.
    calls: Mutex<Arc<Connection>>,
}

impl Member {
    /// Makes a member that nobody has connected to.
    pub(super) fn new(url: String, options: ConnectOptions) -> Self {
        let calls = Mutex::new(Connection::new(&url, &options));
        Self { url, options, calls }
    }

    /// Returns the connection to make a call by.
    pub(super) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets go of a connection that is silent, so that the next call is made by a new one: what was lost on the way may be sent again
    /// minutes later only.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&calls, connection) {
            *calls = Connection::new(&self.url, &self.options);
        }
    }
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
