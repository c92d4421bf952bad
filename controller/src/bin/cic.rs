//! The operator's command.

use std::process::ExitCode;

use cic_controller::cli::{Cli, run};
use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Cli::parse()).await
}
