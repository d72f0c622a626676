//! Several threads of one node. The first does what is done once: plans, peers, stacks, clocks. The others only carry: each has a
//! socket with the node's port, a queue of every interface and tables of its own.
//!
//! The kernel gives all datagrams of a peer to one of the sockets, and all packets of a flow to one of the queues, so the order
//! in a flow is kept. Peers are shared, each behind its own lock, which is held for a batch. What is for a stack is handed over to
//! the first thread.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};

use pn_core::NetworkId;
use pn_overlay::{Admitted, DropReason, Vtep, queue};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{Attached, Command, Commands, Driver, FIRST_TUN, Shared};
use crate::port::Owner;

/// The other threads, as one of them sees them.
pub(crate) enum Crew {
    /// The first thread has the others.
    First(Vec<Commands>),
    /// Another thread has the first.
    Other(Arc<Shared>),
}

/// What the first thread tells the others, before anybody is told that it is so.
#[derive(Debug)]
pub(crate) enum Share {
    Plan(Vtep),
    /// A queue of the interface at a place.
    Interface(usize, Attached),
    /// There is no interface at a place any more.
    NoInterface(usize),
}

impl Crew {
    pub(super) const fn is_first(&self) -> bool {
        matches!(self, Self::First(_))
    }

    /// Tells the others, and waits until each of them has heard it. One that has ended has nothing to hear.
    pub(super) fn share(&self, shares: impl Iterator<Item = Share>) {
        let Self::First(others) = self else {
            return;
        };
        let (done, heard) = mpsc::channel();
        for (other, share) in others.iter().zip(shares) {
            let _: bool = other.send(Command::Share(Box::new(share), done.clone()));
        }
        drop(done);
        // It ends when the last of them has dropped what it was sent.
        let _: Result<(), mpsc::RecvError> = heard.recv();
    }
}

impl Shared {
    /// Gives a packet to the thread that has the stacks.
    fn hand_over(&self, network: NetworkId, to: Owner, packet: Vec<u8>) -> Result<(), DropReason> {
        let mut waiting = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = waiting.push(queue::flow_of(network.as_u128(), &packet), 1, (network, to, packet));
        drop(waiting);
        self.wake();
        if dropped == 0 { Ok(()) } else { Err(DropReason::QueueFull) }
    }

    pub(super) fn take_handed_over(&self) -> Option<(NetworkId, Owner, Vec<u8>)> {
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(super) fn has_handed_over(&self) -> bool {
        !self.handed_over.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Driver {
    /// Gives a packet to a stack of this node, where another thread has it; otherwise gives it back.
    pub(super) fn hand_over(
        &self,
        network: NetworkId,
        to: Owner,
        packet: Vec<u8>,
    ) -> Result<Result<(), DropReason>, Vec<u8>> {
        match &self.crew {
            Crew::First(_) => Err(packet),
            Crew::Other(first) => Ok(first.hand_over(network, to, packet)),
        }
    }

    /// Takes what the first thread tells.
    pub(super) fn take(&mut self, share: Share) {
        match share {
            Share::Plan(vtep) => self.set_vtep(vtep),
            Share::Interface(place, attached) => {
                let event = EventData::new_u64(place as u64 + FIRST_TUN);
                if let Err(error) = epoll::add(&self.epoll, &attached.tun, event, EventFlags::IN) {
                    tracing::error!(%error, "a queue of an interface is not read");
                }
                match attached.container {
                    Some(container) => self.tun_of.insert(container, place),
                    None => self.tap_of.insert(attached.network, place),
                };
                self.tuns.resize_with(self.tuns.len().max(place + 1), || None);
                self.tuns[place] = Some(attached);
            }
            Share::NoInterface(place) => {
                self.last_tun = None;
                self.tun_of.retain(|_, of| *of != place);
                self.tap_of.retain(|_, of| *of != place);
                if let Some(attached) = self.tuns.get_mut(place) {
                    *attached = None;
                }
            }
        }
    }

    /// Takes the tables of a plan, and forgets what was found in those before.
    pub(super) fn set_vtep(&mut self, vtep: Vtep) {
        self.vtep = vtep;
        self.admitted = Admitted::default();
        self.tuns.iter_mut().flatten().for_each(|attached| attached.last = None);
    }
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
