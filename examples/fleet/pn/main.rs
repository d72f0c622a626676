//! `pn`: projects, apps and their private networks, from the command line.

#![expect(clippy::print_stderr, reason = "it is a program, and this is where it complains")]

mod apps;
mod cli;
mod containers;
mod lookup;
mod operations;
mod output;
mod projects;

use std::error::Error as StdError;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use pn_core::Region;
use pn_store::Registry;

use crate::cli::{Cli, Command};
use crate::lookup::Lookup;

/// What a command can end with.
pub(crate) type Error = Box<dyn StdError + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let (true, None) = (cli.command.needs_app(), &cli.app) {
        Cli::command().error(ErrorKind::MissingRequiredArgument, "which app? --app NAME").exit();
    }
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", pn_examples::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Error> {
    let url = match cli.store {
        Some(url) => url,
        None => default_store()?,
    };
    let registry = Registry::new(pn_store::connect(&url).await?, Region::default());
    let lookup = Lookup::new(&registry, cli.app);
    let (format, mut out) = (cli.format, io::stdout().lock());
    match cli.command {
        Command::Projects => projects::list(&lookup, format, &mut out).await?,
        Command::ProjectsAdd { name } => projects::add(&registry, &lookup, name, &mut out).await?,
        Command::ProjectsDetails { name } => projects::details(&lookup, &name, format, &mut out).await?,
        Command::ProjectsEnablePrivateNetwork(enable) => projects::enable(&registry, &lookup, enable, &mut out).await?,
        Command::ProjectsDisablePrivateNetwork { name } => projects::disable(&registry, &lookup, &name).await?,
        Command::ProjectsRemove { name } => projects::remove(&registry, &lookup, &name).await?,
        Command::Apps => apps::list(&lookup, format, &mut out).await?,
        Command::Create { name, project, hds } => {
            apps::create(&registry, &lookup, name, &project, hds, &mut out).await?;
        }
        Command::Destroy => apps::destroy(&registry, &lookup).await?,
        Command::ProjectSet { name } => apps::migrate(&registry, &lookup, &name).await?,
        Command::Scale { formation } => apps::scale(&registry, &lookup, &formation, &mut out).await?,
        Command::Ps => apps::containers(&lookup, format, &mut out).await?,
        Command::PrivateNetworksDomainNames { page, per_page } => {
            apps::domain_names(&lookup, page, per_page, format, &mut out).await?;
        }
        Command::Start(start) => containers::start(&registry, &lookup, start, format, &mut out).await?,
        Command::Ready { container } => containers::ready(&registry, container).await?,
        Command::Stop { container } => containers::stop(&registry, container).await?,
        Command::Fail { container } => containers::fail(&registry, container).await?,
        Command::Resolve { name } => containers::resolve(&registry, name, format, &mut out).await?,
        Command::Nodes => operations::nodes(&registry, &lookup, format, &mut out).await?,
        Command::Plan { node, diff } => operations::plan(&registry, &lookup, &node, diff, format, &mut out).await?,
        Command::Status => operations::status(&registry, &lookup, format, &mut out).await?,
        Command::Confirm { node } => operations::confirm(&registry, &lookup, node, &mut out).await?,
        Command::Backup { file } => operations::backup(&registry, &file, &mut out).await?,
        Command::Restore { file } => operations::restore(&registry, &file, &mut out).await?,
        Command::Rebuild { confirm } => operations::rebuild(&registry, confirm, format, &mut out).await?,
    }
    out.flush()?;
    Ok(())
}

/// Returns the store of this user: a file in the directory for data, which is made.
fn default_store() -> Result<String, Error> {
    let home = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let data = home("XDG_DATA_HOME").or_else(|| Some(home("HOME")?.join(".local/share")));
    let data = data.ok_or("neither XDG_DATA_HOME nor HOME says where data is kept: give --store sqlite:PATH")?;
    let dir = data.join("private-networks");
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let path = dir.join("state.sqlite");
    let path = path.to_str().ok_or_else(|| format!("{} is not UTF-8: give --store sqlite:PATH", path.display()))?;
    Ok(format!("sqlite:{path}"))
}
