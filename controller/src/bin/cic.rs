//! The operator's command.

use std::process::ExitCode;

use cic_controller::cli::{Cli, end_quietly_when_closed, run};
use clap::Parser as _;

/// A push holds parts of megabytes, which the C library's allocator would keep after them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    end_quietly_when_closed();
    run(Cli::parse()).await
}
