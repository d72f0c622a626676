//! Packets that ask for a connection to a backend, counted by nftables where they pass.

use crate::{Error, NETWORK, namespaces};

/// A count in a namespace, from when it was made.
#[derive(Debug)]
pub(crate) struct Counter {
    netns: String,
    family: &'static str,
}

impl Counter {
    /// Counts what crosses a switch.
    pub(crate) async fn on_switch(netns: &str) -> Result<Self, Error> {
        Self::start(netns, "bridge", "prerouting").await
    }

    /// Counts what comes to a namespace.
    pub(crate) async fn of_what_arrives(netns: &str) -> Result<Self, Error> {
        Self::start(netns, "inet", "prerouting").await
    }

    /// Counts what leaves a namespace.
    pub(crate) async fn of_what_leaves(netns: &str) -> Result<Self, Error> {
        Self::start(netns, "inet", "postrouting").await
    }

    async fn start(netns: &str, family: &'static str, hook: &str) -> Result<Self, Error> {
        let chain = format!(
            "chain seen {{ type filter hook {hook} priority -300; \
             ip daddr {NETWORK} tcp dport 3000 tcp flags & (syn | ack) == syn counter; }}"
        );
        // One that was there begins anew.
        let rules = format!("table {family} waf; delete table {family} waf; table {family} waf {{ {chain}; }}");
        namespaces::sh(&format!("ip netns exec {netns} nft '{rules}'")).await?;
        Ok(Self { netns: netns.to_owned(), family })
    }

    pub(crate) async fn read(&self) -> Result<u64, Error> {
        let Self { netns, family } = self;
        let listed = namespaces::sh(&format!("ip netns exec {netns} nft list table {family} waf")).await?;
        let count = listed.split_once("packets ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        count.ok_or_else(|| format!("no counter in {netns}: {listed}").into())
    }
}
