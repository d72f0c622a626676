//! Why packets are dropped, and how many were.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[$doc])* $name,)+
        }

        impl DropReason {
            /// Every reason, in the order a packet meets them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Returns the reason as a metric's label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// The socket did not take a message from the underlay, of one datagram or of many that came together: its buffer was full,
    /// because the node takes them too slowly, or its checksum was wrong.
    NotReceived = "not_received",
    /// A datagram on the underlay is no WireGuard message; plain VXLAN that is sent to a node ends here.
    NotWireGuard = "not_wireguard",
    /// A handshake is from a key that is no peer's, or a message is for a session that nobody has.
    UnknownPeer = "unknown_peer",
    /// A handshake does not verify.
    Handshake = "handshake",
    /// A message is for a session that has ended.
    NoSession = "no_session",
    /// A data message does not decrypt, or what it holds is no IP packet.
    Decrypt = "decrypt",
    /// A data message came before, or is too old to tell.
    Replay = "replay",
    /// A packet in the tunnel has a source that is not the sending node's.
    TunnelSource = "tunnel_source",
    /// A packet in the tunnel is for another node.
    TunnelDestination = "tunnel_destination",
    /// A packet in the tunnel is not VXLAN over UDP, is a fragment, or is cut short.
    NotVxlan = "not_vxlan",
    /// A VXLAN packet is for a network that has no container here.
    UnknownVni = "unknown_vni",
    /// A VXLAN packet comes from a node that has no container of that network.
    NotMember = "not_member",
    /// A frame holds neither IPv4 nor what else its network carries.
    NotIp = "not_ip",
    /// A frame or packet claims to come from a container that is not on the node or port it came from.
    ForgedSource = "forged_source",
    /// A packet is for an address that no container has, or a frame for a container that is not here.
    UnknownDestination = "unknown_destination",
    /// A packet is larger than its network's MTU.
    TooBig = "too_big",
    /// No peer has the tunnel address a packet is to go to.
    NoRoute = "no_route",
    /// A queue is full: a container does not take its packets fast enough, or a peer's packets wait for a handshake.
    QueueFull = "queue_full",
    /// A packet waited for a handshake that nobody answered.
    Unanswered = "unanswered",
    /// The operating system did not take a datagram.
    SendFailed = "send_failed",
    /// A container's interface did not take a packet: it is down, or there is no memory.
    NotTaken = "not_taken",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many packets were dropped for each reason.
///
/// Whoever carries packets counts, others may read at any time.
#[derive(Debug, Default)]
pub struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl DropCounters {
    /// Counts one packet.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts some packets.
    pub fn add(&self, reason: DropReason, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// Returns how many packets were dropped for a reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Returns every reason that occurred, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.get(*reason))).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_label_of_its_own() {
        let counters = DropCounters::default();
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, n);
            (0..=n).for_each(|_| counters.count(*reason));
        }
        let counted: Vec<_> = counters.iter().collect();
        assert_eq!(counted.len(), DropReason::ALL.len());
        assert!(counted.iter().enumerate().all(|(n, (reason, count))| *reason as usize == n && *count == n as u64 + 1));
        let labels: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(labels.len(), DropReason::ALL.len());
    }
}
