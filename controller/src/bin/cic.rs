//! The operator's command.

use std::process::ExitCode;

use cic_controller::cli::{Cli, end_quietly_when_closed, run};
use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    end_quietly_when_closed();
    run(Cli::parse()).await
}
