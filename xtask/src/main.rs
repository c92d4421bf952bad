//! The project's own commands: `cargo xtask` lists them.

mod clients;
mod dev;
mod engine;
mod fleet_tests;
mod fuzz;
mod repository;
mod suite;
mod tidy;

use std::process::ExitCode;

use anyhow::Result;

struct Subcommand {
    name: &'static str,
    arguments: &'static str,
    what: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const SUBCOMMANDS: [Subcommand; 8] = [
    Subcommand {
        name: "dev",
        arguments: "[args…]",
        what: "build, fetch the engine, and run a whole fleet on this machine (`cic dev args…`)",
        run: dev::run,
    },
    Subcommand {
        name: "test",
        arguments: "[--quick] [--skip-engine]",
        what: "install what the tests need and run every one of them, as CI does",
        run: suite::run,
    },
    Subcommand {
        name: "engine",
        arguments: "[--check]",
        what: "a real vLLM for the CPU and a tiny model, in .engine/",
        run: engine::run,
    },
    Subcommand {
        name: "clients",
        arguments: "",
        what: "OpenAI's client for Python, in .clients/",
        run: clients::run,
    },
    Subcommand {
        name: "tidy",
        arguments: "",
        what: "the rules of this repository that clippy cannot see",
        run: tidy::run,
    },
    Subcommand {
        name: "sim",
        arguments: "--seeds N [--from S] | --seed S --trace",
        what: "both cores in a simulated world",
        run: fleet_tests::simulate,
    },
    Subcommand {
        name: "fuzz",
        arguments: "[SECONDS]",
        what: "search for inputs that break the parsers of a model's files, by libFuzzer",
        run: fuzz::run,
    },
    Subcommand {
        name: "bench",
        arguments: "NAME [--json] [--release]",
        what: "measure one promise of SPEC.md",
        run: fleet_tests::bench,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        print!("{}", help());
        return ExitCode::SUCCESS;
    };
    if ["help", "--help", "-h"].contains(&name.as_str()) {
        print!("{}", help());
        return ExitCode::SUCCESS;
    }
    let Some(subcommand) = SUBCOMMANDS.iter().find(|subcommand| subcommand.name == name) else {
        eprint!("error: there is no `cargo xtask {name}`\n\n{}", help());
        return ExitCode::from(2);
    };
    match (subcommand.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    let mut text = "The project's own commands.\n\nusage: cargo xtask COMMAND\n\n".to_owned();
    for Subcommand { name, arguments, what, .. } in &SUBCOMMANDS {
        text.push_str(&format!("  {:<46}{what}\n", format!("{name} {arguments}")));
    }
    text
}
