//! `cic-s3`: a server of the S3 protocol over a directory, as the package `s3s-fs` brings it. Signatures are checked.

mod files;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

/// Its buffers come and go: given back to the kernel each time, they cost as much as what is sent in them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Options {
    /// Each directory in it is a bucket
    #[arg(long)]
    dir: PathBuf,
    /// Port of 127.0.0.1; 0 is any
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where its address is written once it is open
    #[arg(long)]
    port_file: PathBuf,
    #[arg(long)]
    access_key: String,
    #[arg(long)]
    secret_key: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cic-s3: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let Options { dir, port, port_file, access_key, secret_key } = options;
    let files = FileSystem::new(&dir)
        .map_err(|error| anyhow::anyhow!("{} cannot be served: {error:?}", dir.display()))?;
    let mut builder = S3ServiceBuilder::new(files::Buckets { inner: files, dir });
    builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
    let service = builder.build();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.context("its port cannot be opened")?;
    // Whoever waits for the file must see all of it.
    let part = port_file.with_extension("part");
    std::fs::write(&part, listener.local_addr()?.to_string())?;
    std::fs::rename(&part, &port_file)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
