//! `cic-standin-engine`: the command line, API and metrics of vLLM 0.32 without a model, with faults on demand.
//!
//! A request becomes a [`request::Job`], the job one [`generation::Generation`] per answer, and these become one reply
//! or a stream of events. [`engine::Engine`] is what they share. The contract test runs the same cases against the
//! real engine; what differs there is a fault of this program.

mod core;
mod engine;
mod faults;
mod generation;
mod metrics;
mod options;
mod reply;
mod request;
mod routes;
mod server;
mod sse;
mod tokens;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == core::COMMAND) {
        core::run();
    }
    let options = match options::Options::parse(std::env::args_os()) {
        Ok(options) => options,
        Err((text, 0)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err((text, code)) => {
            eprint!("{text}");
            return ExitCode::from(code);
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(server::run(options)),
        Err(error) => {
            eprintln!("ERROR: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
