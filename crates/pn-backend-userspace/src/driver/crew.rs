//! Several threads of one node. The first does what is done once: plans, peers, stacks, clocks. The others only carry: each has a
//! socket with the node's port, a queue of every interface and tables of its own.
//!
//! The kernel gives all datagrams of a peer to one of the sockets, and all packets of a flow to one of the queues, so the order
//! in a flow is kept. Peers are shared, each behind its own lock, which is held for a batch. What is for a stack is handed over to
//! the first thread.

use std::sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};

use pn_core::NetworkId;
use pn_overlay::{Admitted, Routed, Vtep, queue};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{Attached, Command, Commands, Driver, FIRST_TUN, ForStack, HandedOver, Shared};
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
    /// Gives packets to the thread that has the stacks, and returns how many were dropped for them.
    pub(super) fn hand_over(&self, network: NetworkId, to: Owner, give: impl FnOnce(&mut dyn FnMut(&[u8]))) -> usize {
        let mut waiting = self.handed_over();
        let HandedOver { packets, spares } = &mut *waiting;
        let mut dropped = 0;
        give(&mut |packet| {
            let flow = queue::flow_of(network.as_u128(), packet);
            packets.push_with(flow, 1, (network, to, spares.fill(packet)), |(.., buffer)| {
                dropped += 1;
                spares.put(buffer);
            });
        });
        drop(waiting);
        self.wake();
        dropped
    }

    /// Takes what was handed over, and gives back the buffers of what was taken before.
    pub(super) fn take_handed_over(&self, taken: &mut Vec<ForStack>) {
        let HandedOver { packets, spares } = &mut *self.handed_over();
        taken.drain(..).for_each(|(.., buffer)| spares.put(buffer));
        taken.extend(core::iter::from_fn(|| packets.pop()));
    }

    pub(super) fn has_handed_over(&self) -> bool {
        !self.handed_over().packets.is_empty()
    }

    fn handed_over(&self) -> MutexGuard<'_, HandedOver> {
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
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
                self.places.clear();
                self.tuns.resize_with(self.tuns.len().max(place + 1), || None);
                self.tuns[place] = Some(attached);
            }
            Share::NoInterface(place) => {
                self.places.clear();
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
        (self.routed, self.admitted) = (Routed::default(), Admitted::default());
        self.places.clear();
    }
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
