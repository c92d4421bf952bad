//! Reads the GPUs of this machine through NVML: the only program that loads it.
//!
//! ```text
//! agent --stdin--> wish ──▶ run (rounds) ──▶ round ──▶ read ──▶ NVML      voice --stdout--> agent
//!                  SIGTERM ─┘    └────▶ events (XIDs, a thread of its own) ──┘
//! ```
//! It is dynamically linked and a process of its own, because a static program cannot load NVML and because a call
//! into the driver may never come back: that costs this process and nothing else. Before each group of calls it says
//! which one begins, so that whoever listens can tell what hangs. It has no runtime and asks for no profiling
//! counters. See `docs/gpu-probe.md`.

mod args;
mod events;
mod lock;
mod nvml;
mod once;
mod read;
mod round;
mod run;
mod voice;
mod wish;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    end_on_panic();
    let args = args::Args::parse();
    if args.once { once::print() } else { run::run(&args) }
}

/// A probe that lost a thread would go on half blind; one that ended is started again.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
