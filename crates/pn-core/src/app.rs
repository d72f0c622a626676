//! Apps and their formations.

use crate::container_type::{ContainerType, ContainerTypeError};
use crate::id::{AppId, ProjectId};
use crate::label::Label;
use crate::ports::Ports;
use core::fmt;
use core::str::FromStr;
use std::collections::BTreeMap;

/// What a platform knows of an app that decides whether it may be private.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hosting {
    /// Nothing special.
    #[default]
    Ordinary,
    /// Health-data hosting (HDS), to which private networks are closed by default.
    HealthData,
}

/// An app of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Identifies it.
    pub id: AppId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// What people call it.
    pub label: Label,
    /// How it is hosted.
    pub hosting: Hosting,
    /// How many containers of each type it is meant to have.
    pub formation: Formation,
    /// The ports of the types that declare any.
    pub ports: BTreeMap<ContainerType, Ports>,
}

impl App {
    /// Makes an app as the product does: one `web` container.
    #[must_use]
    pub fn new(id: AppId, project: ProjectId, label: Label) -> Self {
        Self { id, project, label, hosting: Hosting::Ordinary, formation: Formation::web(1), ports: BTreeMap::new() }
    }
}

/// How many containers an app is meant to have of each type: `web:0 my-app-backend:2`.
///
/// A type with 0 is *declared*: its names exist and have no addresses. No two types differ only by case.
///
/// ```
/// use pn_core::Formation;
///
/// let formation: Formation = "web:0 my-app-backend:2".parse()?;
/// assert!(formation.is_web_less());
/// assert_eq!(formation.to_string(), "my-app-backend:2 web:0");
/// # Ok::<(), pn_core::FormationError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Formation(Vec<(ContainerType, u32)>);

/// Why a text is not a [`Formation`], or one does not fit another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormationError {
    /// An item has no colon.
    #[error("{item:?} is not TYPE:COUNT, for example web:2")]
    Syntax {
        /// The item.
        item: String,
    },
    /// The type of an item is not one.
    #[error("the type of {item:?} is wrong")]
    Type {
        /// The item.
        item: String,
        /// What is wrong with the type.
        source: ContainerTypeError,
    },
    /// The count of an item is not a number of containers.
    #[error("the count of {item:?} is not a number from 0 to {max}", max = Formation::MAX_COUNT)]
    Count {
        /// The item.
        item: String,
    },
    /// A type stands there twice.
    #[error("container type {container_type} is given twice")]
    Twice {
        /// The type.
        container_type: ContainerType,
    },
    /// Two types differ only by case, so DNS could not tell them apart.
    #[error(
        "container types {existing} and {given} differ only by case, and DNS cannot tell them apart: write {existing}"
    )]
    CaseTwin {
        /// The type that was there first.
        existing: ContainerType,
        /// The type that was given.
        given: ContainerType,
    },
}

impl Formation {
    /// The most containers of one type, far beyond any network's addresses.
    pub const MAX_COUNT: u32 = 16_777_214;

    /// Makes a formation with `count` containers of type `web`.
    #[must_use]
    pub fn web(count: u32) -> Self {
        Self(vec![(ContainerType::web(), count)])
    }

    /// Returns the declared types and their counts, in order.
    pub fn types(&self) -> impl ExactSizeIterator<Item = (&ContainerType, u32)> {
        self.0.iter().map(|(container_type, count)| (container_type, *count))
    }

    /// Returns the count of a declared type.
    #[must_use]
    pub fn count(&self, container_type: &ContainerType) -> Option<u32> {
        self.declared(container_type).map(|(_, count)| count)
    }

    /// Returns a declared type in the spelling of the formation, with its count.
    #[must_use]
    pub fn declared(&self, container_type: &ContainerType) -> Option<(&ContainerType, u32)> {
        self.find(container_type).ok().map(|at| (&self.0[at].0, self.0[at].1))
    }

    pub(crate) fn undeclare(&mut self, container_type: &ContainerType) {
        if let Ok(at) = self.find(container_type) {
            self.0.remove(at);
        }
    }

    /// Finds a type, or where it would stand; types are kept in order.
    fn find(&self, container_type: &ContainerType) -> Result<usize, usize> {
        self.0.binary_search_by_key(container_type, |(declared, _)| *declared)
    }

    /// Puts a count for a type, in the spelling that is there already if there is one.
    fn put(&mut self, container_type: ContainerType, count: u32) {
        match self.find(&container_type) {
            Ok(at) => self.0[at].1 = count,
            Err(at) => self.0.insert(at, (container_type, count)),
        }
    }

    /// Returns whether the app has no `web` container, so that nothing public leads to it.
    #[must_use]
    pub fn is_web_less(&self) -> bool {
        self.count(&ContainerType::web()).unwrap_or(0) == 0
    }

    /// Returns this formation with the counts of another put over it; types the other does not name keep theirs.
    ///
    /// # Errors
    /// [`FormationError::CaseTwin`].
    pub fn scaled(&self, other: &Self) -> Result<Self, FormationError> {
        let mut scaled = self.clone();
        for (given, count) in other.types() {
            if let Some((existing, _)) = self.declared(given)
                && existing.as_str() != given.as_str()
            {
                return Err(FormationError::CaseTwin { existing: *existing, given: *given });
            }
            scaled.put(*given, count);
        }
        Ok(scaled)
    }
}

impl FromStr for Formation {
    type Err = FormationError;

    fn from_str(text: &str) -> Result<Self, FormationError> {
        let mut formation = Self::default();
        for item in text.split_ascii_whitespace() {
            let owned = || item.to_owned();
            let (given, count) = item.split_once(':').ok_or_else(|| FormationError::Syntax { item: owned() })?;
            let given: ContainerType =
                given.parse().map_err(|source| FormationError::Type { item: owned(), source })?;
            let digits = !count.is_empty() && count.bytes().all(|octet| octet.is_ascii_digit());
            let count = count.parse().ok().filter(|count| digits && *count <= Self::MAX_COUNT);
            let count = count.ok_or_else(|| FormationError::Count { item: owned() })?;
            if let Some((&existing, _)) = formation.declared(&given) {
                return Err(if existing.as_str() == given.as_str() {
                    FormationError::Twice { container_type: given }
                } else {
                    FormationError::CaseTwin { existing, given }
                });
            }
            formation.put(given, count);
        }
        Ok(formation)
    }
}

impl fmt::Display for Formation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (container_type, count)) in self.types().enumerate() {
            let separator = if n == 0 { "" } else { " " };
            write!(f, "{separator}{container_type}:{count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let parsed = text.parse::<Formation>().map(|f| f.to_string()).map_err(|e| e.to_string());
        assert_eq!(parsed.as_ref().map(String::as_str).map_err(String::as_str), expected, "{text:?}");
    }

    #[test]
    fn formations_parse_and_print() {
        check("web:0 my-app-backend:2", Ok("my-app-backend:2 web:0"));
        check(" web:1\t7:3 ", Ok("7:3 web:1"));
        check("", Ok(""));
        check("web", Err("\"web\" is not TYPE:COUNT, for example web:2"));
        check("we_b:1", Err("the type of \"we_b:1\" is wrong"));
        for text in ["web:", "web:-1", "web:+1", "web:1:2", "web:16777215", "web:99999999999"] {
            check(text, Err(&format!("the count of {text:?} is not a number from 0 to 16777214")));
        }
        check("web:1 web:2", Err("container type web is given twice"));
        check(
            "web:1 Web:2",
            Err("container types web and Web differ only by case, and DNS cannot tell them apart: write web"),
        );
    }

    #[test]
    fn a_new_app_has_one_web_container() {
        let app = App::new(AppId::from_u128(1), ProjectId::from_u128(2), "api".parse().unwrap());
        assert_eq!(app.formation.to_string(), "web:1");
        assert_eq!((app.hosting, app.ports.is_empty()), (Hosting::Ordinary, true));
    }

    #[test]
    fn scaling_keeps_what_is_not_named() {
        let scaled = Formation::web(1).scaled(&"worker:2".parse().unwrap()).unwrap();
        assert_eq!(scaled.to_string(), "web:1 worker:2");
        let twin = scaled.scaled(&"Worker:3".parse().unwrap());
        assert!(matches!(twin, Err(FormationError::CaseTwin { .. })));
        assert!(!scaled.is_web_less());
        assert!(scaled.scaled(&Formation::web(0)).unwrap().is_web_less());
        assert!(Formation::default().is_web_less());
    }
}
