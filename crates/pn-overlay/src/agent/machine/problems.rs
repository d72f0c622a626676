//! What fails, and how that is told.

use std::error::Error as StdError;

use pn_core::{BackendError, Timestamp};

use super::Machine;
use crate::agent::status::Failure;

/// Something that failed in an attempt.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) object: String,
    pub(super) error: BackendError,
}

impl Problem {
    pub(super) fn of_server(number: usize, error: BackendError) -> Self {
        Self { object: format!("name server {number}: {}", error.object()), error }
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        Self { object: error.object().to_owned(), error }
    }
}

impl Machine {
    /// Puts what failed in the last attempt into the status, in the place of what failed before.
    pub(super) fn tell_problems(&mut self, now: Timestamp) {
        let refused = self.refused.as_ref();
        let still = |object: &String| self.problems.iter().any(|problem| problem.object == *object);
        self.status.failures.retain(|object, _| still(object) || refused == Some(object));
        for problem in self.problems.clone() {
            self.note(now, problem);
        }
    }

    /// Tells that something the source said is not taken, until it says something that is.
    pub(super) fn refuse(&mut self, now: Timestamp, problem: Problem) {
        let object = problem.object.clone();
        self.note(now, problem);
        if let Some(before) = self.refused.replace(object.clone()).filter(|before| *before != object) {
            self.status.failures.remove(&before);
        }
    }

    fn note(&mut self, now: Timestamp, Problem { object, error }: Problem) {
        let first = Failure { kind: error.kind(), message: String::new(), since: now, attempts: 0 };
        let failure = self.status.failures.entry(object).or_insert(first);
        failure.kind = error.kind();
        failure.message = message(&error);
        failure.attempts = failure.attempts.saturating_add(1);
    }
}

/// Writes an error with its causes.
fn message(error: &BackendError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
