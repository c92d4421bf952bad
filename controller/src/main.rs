//! `cic-controller`: decides for the fleet.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use cic_common::config::{ConfigMistakes, EXIT_CONFIG};
use cic_common::telemetry::{self, LogFormat};
use cic_common::time::Clock;
use cic_controller::config::Config;
use cic_controller::store::Database;
use cic_controller::{backup, identity, provision, record, serve};
use clap::{Parser, Subcommand};

/// Weighs evidence about nodes and replaces what is lost.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller until SIGTERM. The nodes are left alone then.
    Serve {
        #[arg(long, default_value = "/etc/cic/controller.toml")]
        config: PathBuf,
        /// Write everything the core hears to this file, for `replay`.
        #[arg(long)]
        record: Option<PathBuf>,
    },
    /// Make the fleet's authority and this controller's certificate.
    Init {
        #[arg(long, default_value = "/etc/cic/controller.toml")]
        config: PathBuf,
    },
    /// Bring the database to this program's version.
    Migrate {
        #[arg(long, default_value = "/etc/cic/controller.toml")]
        config: PathBuf,
    },
    /// Write a snapshot of the store into the object store now.
    Backup {
        #[arg(long, default_value = "/etc/cic/controller.toml")]
        config: PathBuf,
    },
    /// Write the newest snapshot that verifies into an empty database. Every controller must be stopped.
    Restore {
        #[arg(long, default_value = "/etc/cic/controller.toml")]
        config: PathBuf,
        /// This one and no other, as `cic-controller backup` named it.
        #[arg(long)]
        from: Option<String>,
        /// Write over what the database holds; its event log stays.
        #[arg(long)]
        force: bool,
    },
    /// Print each decision of a recorded run again.
    Replay { file: PathBuf },
    /// Play one VM of provider `local`.
    #[command(hide = true)]
    Machine {
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<ConfigMistakes>() {
            Some(mistakes) => {
                eprintln!("{mistakes}");
                ExitCode::from(EXIT_CONFIG)
            }
            None => {
                eprintln!("cic-controller: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let clock = Clock::start();
    match command {
        Command::Serve { config, record } => {
            let config = read(&config)?;
            runtime()?.block_on(serve::serve(config, record.as_deref(), clock))?;
        }
        Command::Init { config } => {
            let config = read(&config)?;
            identity::open(&config.tls_dir, &config.id)?;
        }
        Command::Migrate { config } => runtime()?.block_on(migrate(read(&config)?))?,
        Command::Backup { config } => {
            let config = read(&config)?;
            println!("{}", runtime()?.block_on(backup::take(&config))?);
        }
        Command::Restore { config, from, force } => {
            let config = read(&config)?;
            println!("{}", runtime()?.block_on(restore(&config, from.as_deref(), force))?);
        }
        Command::Replay { file } => record::replay(&file, &mut io::stdout().lock())?,
        Command::Machine { dir } => {
            telemetry::begin(LogFormat::Text, "info")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(provision::local::run_machine(&dir, clock))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Config> {
    let config = Config::read(path, cic_common::config::environment())?;
    telemetry::begin(config.log_format, &config.log_filter)?;
    Ok(config)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

async fn restore(config: &Config, from: Option<&str>, over: bool) -> anyhow::Result<String> {
    std::fs::create_dir_all(&config.state_dir).context("cannot create the state directory")?;
    Ok(backup::restore(config, from, over).await?)
}

async fn migrate(config: Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.state_dir).context("cannot create the state directory")?;
    let database = Database::open(&config.store_url, config.store_password.as_deref()).await?;
    database.migrate().await?;
    database.close().await;
    Ok(())
}
