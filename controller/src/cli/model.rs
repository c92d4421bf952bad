//! `cic model`: a model's files on their way to where nodes find them.

use std::path::PathBuf;
use std::time::Duration;

use cic_common::model::Manifest;
use cic_common::objects::{Store, Stores};
use cic_common::source::{Source, is_regional, without_options};
use cic_common::time::Clock;
use cic_common::units::Bytes;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::Client;
use super::failure::Failure;
use super::shown::Shown;
use crate::publish::{Origin, Published, Terms, manifest_in, manifest_of_directory, publish};

const BAR: &str =
    "{percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}";

/// Thirty days.
const EDGE_TTL_S: &str = "2592000";

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Upload a model with its manifest, so that nodes can fetch it; what is there already is not sent again
    #[command(
        after_help = "Credentials are those of each cloud's own tools, from the environment. The manifest is the directory's \
                      cic-manifest.json, or one made of its files."
    )]
    Push(PushArgs),
    /// Copy a deployment's model to the stores of regions before nodes there ask for it
    #[command(
        after_help = "The regional stores are the deployment's sources with {region} in them, such as s3://models-{region}/tiny; \
                      what is copied comes from its first store without."
    )]
    Prewarm(PrewarmArgs),
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The model's directory
    directory: PathBuf,
    /// Where to publish it: s3://, gs://, az:// or file:///
    url: String,
    #[command(flatten)]
    terms: TermArgs,
}

#[derive(Debug, Args)]
pub(super) struct PrewarmArgs {
    /// The deployment
    name: String,
    /// Such as eu-west-1,us-east-1
    #[arg(long, value_name = "REGION", value_delimiter = ',', required = true)]
    regions: Vec<String>,
    #[command(flatten)]
    terms: TermArgs,
}

#[derive(Debug, Args)]
struct TermArgs {
    /// Take away another model that is published under the same URL
    #[arg(long)]
    replace: bool,
    /// How long a cache before the store may keep the files
    #[arg(long, value_name = "SECONDS", default_value = EDGE_TTL_S)]
    edge_ttl: u64,
}

impl From<&TermArgs> for Terms {
    fn from(args: &TermArgs) -> Self {
        Self { replaces: args.replace, edge_ttl: Duration::from_secs(args.edge_ttl) }
    }
}

pub(super) async fn push(args: &PushArgs) -> Result<(), Failure> {
    let directory = &args.directory;
    if !directory.is_dir() {
        return Err(Failure::mistakes(vec![format!("{} is no directory", directory.display())]));
    }
    let to = store_at(&args.url)?;
    let bar = bar()?;
    bar.set_message("hashing");
    let progress = |done, all| show(&bar, done, all);
    let manifest = manifest_of_directory(directory, &progress).await;
    let manifest = manifest.map_err(|error| Failure::new(format!("{error:#}")))?;
    send(&Origin::Directory(directory.clone()), &manifest, &to, &(&args.terms).into(), &bar).await
}

pub(super) async fn prewarm(client: &Client, args: &PrewarmArgs) -> Result<(), Failure> {
    let shown = Shown::fetch(client).await?;
    let row = shown.view.deployments.iter().find(|row| row.deployment.name.as_str() == args.name);
    let Some(row) = row else {
        let known: Vec<&str> =
            shown.view.deployments.iter().map(|row| row.deployment.name.as_str()).collect();
        return Err(Failure::mistakes(vec![format!(
            "no deployment {}; there are: {}",
            args.name,
            known.join(", ")
        )]));
    };
    let stores: Vec<&str> = row.deployment.model.sources.iter().filter_map(store_of).collect();
    let (regional, central): (Vec<&str>, Vec<&str>) = stores.into_iter().partition(|url| is_regional(url));
    let lacks = |what: &str, such: &str| {
        let name = &args.name;
        Failure::mistakes(vec![format!("{name} has no store {what} among its model.sources, such as {such}")])
    };
    if regional.is_empty() {
        return Err(lacks("of regions", "s3://models-{region}/tiny"));
    }
    let from = central.first().ok_or_else(|| lacks("to copy from", "s3://models/tiny"))?;
    let from = store_at(from)?;
    let manifest = manifest_in(&from).await.map_err(|error| Failure::new(format!("{error:#}")))?;
    let manifest = manifest.ok_or_else(|| {
        Failure::new(format!("{} holds no model yet: `cic model push DIR URL` publishes one", from.name))
    })?;
    let origin = Origin::Store(from);
    for region in &args.regions {
        for url in &regional {
            let Source::Store(url) = Source::Store((*url).to_owned()).in_region(region) else { continue };
            send(&origin, &manifest, &store_at(&url)?, &(&args.terms).into(), &bar()?).await?;
        }
    }
    Ok(())
}

async fn send(
    origin: &Origin,
    manifest: &Manifest,
    to: &Store,
    terms: &Terms,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    bar.reset();
    bar.set_message(to.name.to_string());
    let clock = Clock::start();
    let began = clock.now();
    let published = publish(origin, manifest, to, terms, &|done, all| show(bar, done, all)).await;
    bar.finish_and_clear();
    let Published { files, bytes, sent_bytes } =
        published.map_err(|error| Failure::new(format!("{error:#}")))?;
    let whole = format!("{}: {files} files, {}", to.name, Bytes(bytes));
    if sent_bytes == 0 {
        println!("{whole}; all of it was there");
    } else {
        let took = clock.now().since(began).as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        let rate = sent_bytes as f64 / 1e9 / took.max(1e-9);
        println!("{whole}; {} sent in {took:.2} s, {rate:.2} GB/s", Bytes(sent_bytes));
    }
    Ok(())
}

fn store_of(source: &Source) -> Option<&str> {
    matches!(source, Source::Store(_)).then(|| source.as_str())
}

fn store_at(url: &str) -> Result<Store, Failure> {
    let opened = Stores::open([url]).map_err(|(_, error)| error.to_string());
    let store = opened.and_then(|mut stores| stores.all.pop().ok_or_else(|| "is no store".to_owned()));
    store.map_err(|why| Failure::mistakes(vec![format!("{} {why}", without_options(url))]))
}

fn bar() -> Result<ProgressBar, Failure> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(BAR).map_err(|error| Failure::new(error.to_string()))?;
    bar.set_style(style);
    Ok(bar)
}

fn show(bar: &ProgressBar, done: u64, all: u64) {
    bar.set_length(all);
    bar.set_position(done);
}
