//! `cic-fake-metadata`: the metadata services of AWS, GCP and Azure on a port of the loopback, for a VM of `cic dev`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fleet_tests::fakes::MetadataFake;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Options {
    /// Port of 127.0.0.1; 0 is any
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where the port is written once it is open
    #[arg(long)]
    port_file: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let fake = match MetadataFake::start(options.port).await {
        Ok(fake) => fake,
        Err(error) => {
            eprintln!("cic-fake-metadata: port {} cannot be opened: {error}", options.port);
            return ExitCode::FAILURE;
        }
    };
    println!("metadata of AWS, GCP and Azure: http://{}", fake.address());
    if let Some(path) = options.port_file {
        // Whoever waits for the file must see all of it.
        let part = path.with_extension("part");
        let written = std::fs::write(&part, fake.address()).and_then(|()| std::fs::rename(&part, &path));
        if let Err(error) = written {
            eprintln!("cic-fake-metadata: {} cannot be written: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    fake.run().await;
    ExitCode::SUCCESS
}
