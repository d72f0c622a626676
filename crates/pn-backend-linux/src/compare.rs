//! What a kernel holds, in the terms of the plan that it was made from: a part that is not what it was made is left out, so
//! that whoever compares finds it missing.

use std::collections::BTreeSet;

use pn_core::backend::Observed;

use crate::diff::{self, Subject};
use crate::kernel::{Kernel, LinkName, Place};

/// Says what is there of what should be. No packet gets through a tunnel that is not as it should be, so without it there is no
/// network.
pub(crate) fn observed(is: &Kernel, should: &Kernel) -> Observed {
    let mut observed = is.observed();
    let different: BTreeSet<Subject> = diff::steps(is, should).into_iter().map(|step| step.subject).collect();
    for subject in different {
        let endpoints = match subject {
            Subject::Transport => {
                observed.networks.clear();
                continue;
            }
            Subject::Peer(key) => {
                observed.peers.remove(&key);
                continue;
            }
            Subject::Network(id) => {
                observed.networks.remove(&id);
                continue;
            }
            Subject::Endpoint(id, address) => vec![(id, address)],
            Subject::Container(id) => {
                should.pairs.iter().filter(|(_, container)| **container == id).map(|(pair, _)| *pair).collect()
            }
        };
        for (id, address) in endpoints {
            let is_wanted = should
                .places
                .get(&Place::Network(id))
                .is_some_and(|network| network.neighbours.contains_key(&(LinkName::Bridge, address.into())));
            if let (true, Some(network)) = (is_wanted, observed.networks.get_mut(&id)) {
                network.endpoints.remove(&address);
            } else {
                // Nobody would miss what nobody planned.
                observed.networks.remove(&id);
            }
        }
    }
    observed
}
