//! Names of projects, apps and nodes, as people give them.

use pn_core::{App, AppId, Node, Project, ProjectId, State};
use pn_store::Registry;

use crate::Error;

/// Finds what people call by a name or an id.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    registry: &'a Registry,
    app: Option<String>,
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(registry: &'a Registry, app: Option<String>) -> Self {
        Self { registry, app }
    }

    pub(crate) async fn state(&self) -> Result<State, Error> {
        Ok(self.registry.state().await?)
    }

    /// Finds the app that the command is for, in its project.
    pub(crate) async fn app(&self) -> Result<(State, App), Error> {
        let name = self.app.as_deref().ok_or("which app? --app NAME")?;
        let state = match name.parse::<AppId>() {
            Ok(id) => {
                let project = self.registry.project_of_app(id).await?;
                self.registry.project(project).await?
            }
            Err(_) => self.state().await?,
        };
        let app =
            one("app", name, state.apps(), |app| app.id.to_string() == name || app.label.as_str() == name)?.clone();
        Ok((state, app))
    }
}

pub(crate) fn project<'s>(state: &'s State, name: &str) -> Result<&'s Project, Error> {
    let is_it = |project: &Project| project.id.to_string() == name || project.label.as_str() == name;
    one("project", name, state.projects(), is_it)
}

pub(crate) fn node<'s>(state: &'s State, name: &str) -> Result<&'s Node, Error> {
    one("node", name, state.nodes(), |node| node.id.to_string() == name || node.label.as_str() == name)
}

/// Refuses a name that is taken: names are how people tell things apart.
pub(crate) fn refuse_taken<T>(
    what: &str,
    name: &str,
    all: impl Iterator<Item = T>,
    is_it: impl Fn(&T) -> bool,
) -> Result<(), Error> {
    match all.into_iter().find(is_it) {
        Some(_) => Err(format!("there is {what} {name} already: choose another name").into()),
        None => Ok(()),
    }
}

/// Returns the label of a project, or its id where it is not known.
pub(crate) fn project_label(state: &State, id: ProjectId) -> String {
    state.project(id).map_or_else(|| id.to_string(), |project| project.label.to_string())
}

fn one<'s, T>(
    what: &str,
    name: &str,
    all: impl Iterator<Item = &'s T>,
    is_it: impl Fn(&T) -> bool,
) -> Result<&'s T, Error> {
    let mut found = all.filter(|candidate| is_it(candidate));
    match (found.next(), found.next()) {
        (Some(it), None) => Ok(it),
        (Some(_), Some(_)) => Err(format!("more than one {what} is called {name}: give its id").into()),
        (None, _) => Err(format!("there is no {what} {name}").into()),
    }
}
