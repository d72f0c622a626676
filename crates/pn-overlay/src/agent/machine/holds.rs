//! What is obeyed of a plan, and what waits for a confirmation.

use core::net::Ipv4Addr;
use std::collections::BTreeSet;

use pn_core::{Generation, NetworkId};

use super::Machine;
use crate::agent::breaker::{self, Reason, Removal};
use crate::agent::status::{Held, Phase};

/// A network that is held.
#[derive(Debug)]
pub(super) struct Hold {
    reason: Reason,
    going: BTreeSet<Ipv4Addr>,
    of: usize,
    /// The generation that first asked for this much.
    generation: Generation,
}

impl Machine {
    /// Decides what of the wanted plan is obeyed.
    pub(super) fn judge(&mut self) {
        if !self.is_judged {
            self.tell_nothing();
        }
        let Some(wanted) = &self.wanted else { return };
        let tolerance = &self.options.tolerance;
        let mut held = match (&self.target, &self.found) {
            (Some(before), _) => breaker::judge(before, wanted, tolerance).held,
            (None, Some(found)) => breaker::judge_first(found, wanted, tolerance).held,
            // The data plane has to be read first.
            (None, None) => return,
        };
        let asked_for = |id: &NetworkId, removal: &Removal| {
            let known = self.holds.get(id).filter(|hold| hold.going.is_superset(&removal.going));
            known.map_or(wanted.generation, |hold| hold.generation)
        };
        held.retain(|id, removal| self.confirmed.is_none_or(|until| asked_for(id, removal) > until));
        let target = match &self.target {
            Some(before) => Some(breaker::merge(before, wanted, &mut held)),
            // What is there cannot be told as a plan, so nothing is changed while any of it is held.
            None => held.is_empty().then(|| wanted.clone()),
        };
        let holds = held.into_iter().map(|(id, removal)| {
            let generation = asked_for(&id, &removal);
            let Removal { reason, going, of } = removal;
            (id, Hold { reason, going, of, generation })
        });
        self.holds = holds.collect();
        self.tell_holds();
        if let Some(target) = target {
            self.status.phase = Phase::Following;
            if self.target.as_ref() != Some(&target) || !self.is_judged {
                self.is_judged = true;
                self.set_target(target);
            }
        }
    }

    /// Says of no network of which generation it is.
    pub(super) fn tell_nothing(&mut self) {
        let plans = [&self.wanted, &self.target, &self.current];
        let networks = plans.into_iter().flatten().flat_map(|plan| plan.networks.keys());
        self.status.apart.extend(networks.map(|id| (*id, Generation::ZERO)));
    }

    /// Lets go what was asked for up to a generation.
    pub(super) fn confirm(&mut self, generation: Generation) {
        self.confirmed = self.confirmed.max(Some(generation));
        if !self.holds.is_empty() {
            self.judge();
        }
    }

    pub(super) fn tell_holds(&mut self) {
        let held = self.holds.iter().map(|(id, hold)| {
            let Hold { reason, going, of, generation } = hold;
            (*id, Held { reason: *reason, going: going.len(), of: *of, generation: *generation })
        });
        self.status.held = held.collect();
    }
}
