//! What became of steps, as reports tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pn_core::{Action, BackendError, Report};

use crate::diff::{Change, Step, Subject};
use crate::kernel::Place;
use crate::worker::error;

/// Adds one outcome for each subject of the steps: the first failure, or what was done. Endpoints that come and go with their
/// network are not told apart.
pub(crate) fn record(steps: &[Step], results: Vec<io::Result<()>>, report: &mut Report) {
    let mut outcomes: BTreeMap<Subject, Result<Action, BackendError>> = BTreeMap::new();
    let mut whole = BTreeSet::new();
    for (step, result) in steps.iter().zip(results) {
        if let (Change::CreateNamespace(Place::Network(id)) | Change::RemoveNamespace(Place::Network(id)), Ok(())) =
            (&step.change, &result)
        {
            whole.insert(*id);
        }
        let result = result.map(|()| step.action).map_err(|source| error("change", step.subject, source));
        match (outcomes.get_mut(&step.subject), result) {
            (None, result) => drop(outcomes.insert(step.subject, result)),
            (Some(Err(_)), _) => {}
            (Some(before), Err(error)) => *before = Err(error),
            (Some(Ok(before)), Ok(action)) if *before != action => *before = Action::Updated,
            (Some(Ok(_)), Ok(_)) => {}
        }
    }
    for step in steps {
        if let (Change::CreateNamespace(place), Some(outcome @ Ok(_))) = (&step.change, outcomes.get_mut(&step.subject))
        {
            tracing::debug!(%place, "created");
            *outcome = Ok(Action::Created);
        }
        if let (Change::RemoveNamespace(place), Some(outcome @ Ok(_))) = (&step.change, outcomes.get_mut(&step.subject))
        {
            tracing::debug!(%place, "removed");
            *outcome = Ok(Action::Removed);
        }
    }
    for (subject, result) in outcomes {
        let is_told = matches!(subject, Subject::Endpoint(id, _) if whole.contains(&id)) && result.is_ok();
        if !is_told {
            report.record(subject, result);
        }
    }
}
