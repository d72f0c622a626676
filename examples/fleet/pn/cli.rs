//! What `pn` understands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pn_core::{ContainerId, ContainerType, Families, Formation, Label, Subnet};

/// Works with projects, apps and their private networks.
#[derive(Debug, Parser)]
#[command(name = "pn", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Where the state is kept.
    #[arg(long, env = "PN_STORE", global = true, hide_env_values = true, help = STORE)]
    pub(crate) store: Option<String>,
    /// The app, by name or id; also before the command.
    #[arg(short, long, global = true)]
    pub(crate) app: Option<String>,
    /// How lists are printed.
    #[arg(long, global = true, default_value = "table")]
    pub(crate) format: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    /// List the projects.
    Projects,
    /// Add a project.
    ProjectsAdd {
        /// What to call it.
        name: Label,
    },
    /// Show a project, its private network and the addresses in use.
    ProjectsDetails {
        /// The project, by name or id.
        name: String,
    },
    /// Give an empty project its private network.
    ProjectsEnablePrivateNetwork(Enable),
    /// Take the private network from a project without apps.
    ProjectsDisablePrivateNetwork {
        /// The project, by name or id.
        name: String,
    },
    /// Remove a project that has neither apps nor a private network.
    ProjectsRemove {
        /// The project, by name or id.
        name: String,
    },
    /// List the apps.
    Apps,
    /// Create an app.
    Create {
        /// What to call it.
        name: Label,
        /// The project it belongs to, by name or id.
        #[arg(long)]
        project: String,
        /// It hosts health data, and may not be in a private network.
        #[arg(long)]
        hds: bool,
    },
    /// Remove an app without containers.
    Destroy,
    /// Move an app without containers to a project.
    ProjectSet {
        /// The project, by name or id.
        name: String,
    },
    /// Set how many containers an app is meant to have, for example `scale web:0 my-app-backend:2 --app my-app`.
    Scale {
        /// TYPE:COUNT; types that are not named keep their count.
        #[arg(required = true)]
        formation: Vec<Formation>,
    },
    /// List an app's containers.
    Ps,
    /// List the names of an app in its private network.
    PrivateNetworksDomainNames {
        /// Which page, from 1.
        #[arg(long, default_value_t = 1)]
        page: u32,
        /// How many names a page has, 1 to 50.
        #[arg(long, default_value_t = 20)]
        per_page: u32,
    },
    /// List the nodes.
    Nodes,
    /// Start a container; prints its id, its address and its environment.
    Start(Start),
    /// Give a started container its name.
    Ready {
        /// The container.
        container: ContainerId,
    },
    /// Withdraw a container's name, let it drain, and remove it.
    Stop {
        /// The container.
        container: ContainerId,
    },
    /// Say that a container is gone without warning.
    Fail {
        /// The container.
        container: ContainerId,
    },
    /// Show the addresses of a name, as its network sees it.
    Resolve {
        /// The name.
        name: pn_core::Name,
    },
    /// Show what a node is to be, or what differs between that and what its agent has made of it.
    Plan {
        /// The node, by name or id.
        node: String,
        /// Only what differs from what the node's agent has applied, which is asked.
        #[arg(long)]
        diff: bool,
    },
    /// Show how the nodes' agents are doing.
    Status,
    /// Let agents go on that hold a plan back because of what it would remove.
    Confirm {
        /// Only this node's, by name or id.
        node: Option<String>,
    },
    /// Write the whole state to a file.
    Backup {
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Put the records of a backup back.
    Restore {
        /// The file.
        file: PathBuf,
    },
    /// Propose the records that agents still see and the store does not have.
    Rebuild {
        /// Write them.
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Enable {
    /// The project, by name or id.
    pub(crate) name: String,
    /// Who accepts the terms of private networking.
    #[arg(long, value_name = "WHO")]
    pub(crate) accept_terms: Label,
    /// Which version of the terms.
    #[arg(long, default_value = "beta")]
    pub(crate) terms_version: Label,
    /// Where addresses come from; 10.240.0.0/22 by default.
    #[arg(long)]
    pub(crate) subnet: Option<Subnet>,
    /// Give containers IPv6 addresses, too.
    #[arg(long)]
    pub ipv6: bool,
}

impl Enable {
    pub(crate) fn families(&self) -> Families {
        if self.ipv6 { Families::DualStack } else { Families::Ipv4 }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Its type, as in the app's formation.
    pub(crate) container_type: ContainerType,
    /// The node it runs on, by name or id.
    #[arg(long)]
    pub(crate) node: String,
    /// Its number; the smallest that is free by default.
    #[arg(long)]
    pub(crate) index: Option<u32>,
    /// The network namespace that gets an interface for it, for example /run/netns/web-1.
    #[arg(long)]
    pub(crate) netns: Option<PathBuf>,
    /// Return before the container is ready, which `pn ready` then says.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

const STORE: &str = "Where the state is kept: sqlite:PATH, or etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/PREFIX. \
                     By default a file in the user's data directory";

const EXAMPLES: &str = "\
Examples:
  pn projects-add shop
  pn projects-enable-private-network shop --accept-terms ada@example.com
  pn create my-app --project shop
  pn scale web:0 my-app-backend:2 --app my-app
  pn start my-app-backend --app my-app --node node-a --netns /run/netns/backend-1
  pn -a my-app private-networks-domain-names
Errors go to standard error; the status is 1 for an error and 2 for a wrong command line.";

impl Command {
    /// Returns whether the command is about one app.
    pub(crate) fn needs_app(&self) -> bool {
        matches!(
            self,
            Self::Destroy
                | Self::ProjectSet { .. }
                | Self::Scale { .. }
                | Self::Ps
                | Self::PrivateNetworksDomainNames { .. }
                | Self::Start(_)
        )
    }
}
