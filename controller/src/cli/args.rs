//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use super::model::ModelCommand;
use super::span;

/// Operate a cic fleet: what is there, why, and what should be.
#[derive(Debug, Parser)]
#[command(name = "cic", version, max_term_width = 100)]
pub struct Cli {
    /// The controller's API, such as 127.0.0.1:7480; by default that of the running `cic dev`
    #[arg(long, global = true, env = "CIC_API", value_name = "URL")]
    pub(super) api: Option<String>,

    /// A file that holds the admin token, where the controller asks for one (its api.admin_token_file)
    #[arg(long, global = true, env = "CIC_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the nodes: phase, belief and why
    Nodes {
        /// Redraw each second until Ctrl-C
        #[arg(long)]
        watch: bool,
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// List the deployments and how they fare
    Deployments {
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// List what happened, oldest first
    Events {
        /// Only of this node
        #[arg(long)]
        node: Option<String>,
        /// Go on until Ctrl-C
        #[arg(long)]
        follow: bool,
        /// The newest so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show the evidence behind a node's last verdict, in order
    Why {
        /// A node, by any ending of its name that no other has, such as `node001`
        node: String,
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// List the VMs of this fleet that no row knows, or say what is to become of them
    Orphans {
        #[command(subcommand)]
        wish: Option<OrphansWish>,
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// List the recorded acts, newest first
    Operations {
        /// The newest so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// Compare what the providers list with what the store has
    Sync {
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// Show the control plane's own checks
    Health {
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// Set the deployments that a TOML file describes; others are left alone
    Apply {
        /// `[deployments.NAME]` tables with model, engine and replicas
        file: PathBuf,
    },
    /// Empty a node and give it back
    Drain {
        node: String,
        /// Kept in the event log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Put another node in a node's place, then give it back
    Replace {
        node: String,
        /// Kept in the event log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Say whether a model fits GPUs, by what arithmetic, and what would fit where it does not
    #[command(after_help = "Exit code: 0 it fits, 3 it does not, 78 something that was given is of no use.")]
    Plan(PlanArgs),
    /// Publish a model's files where nodes fetch them
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Show which controller leads, and what the one that was asked is
    Leader {
        /// Print the API's answer
        #[arg(long)]
        json: bool,
    },
    /// Let another controller lead: the present leader stores what it has decided, gives the lease up and stands back
    Failover,
    /// Make a single-use join token for a node
    Token {
        /// The node's full name
        node: String,
    },
    /// Print each decision of a recorded run again (`cic-controller serve --record FILE`)
    Replay { file: PathBuf },
    /// Break a node of provider `local`, to see what the fleet does about it
    Fault(FaultArgs),
    /// Run a whole fleet on this machine: real programs, real processes
    Dev(DevArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum OrphansWish {
    /// Take them in as nodes of a deployment
    Adopt {
        /// By any endings of their names that no others have
        #[arg(required_unless_present = "all")]
        nodes: Vec<String>,
        /// All that are listed
        #[arg(long, conflicts_with = "nodes")]
        all: bool,
        /// By default the one in whose cluster they are named, or the only one of their provider
        #[arg(long)]
        deployment: Option<String>,
    },
    /// Give them back, one after the other; those that serve are drained first
    Terminate {
        /// By any endings of their names that no others have
        #[arg(required_unless_present = "all")]
        nodes: Vec<String>,
        /// All that are listed
        #[arg(long, conflicts_with = "nodes")]
        all: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// A model's directory, its config.json, or a size such as 70B, of which only the weights are judged
    pub(super) model: String,
    /// One replica's GPUs, such as H100:8; above 8 in whole nodes of 8
    #[arg(long, value_name = "GPU:COUNT")]
    pub(super) gpu: String,
    /// Tokens of the longest sequence; by default all that the model knows, as vLLM takes them
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_model_len: Option<u64>,
    /// fp8, int8, int4, awq, gptq, mxfp4, nvfp4 or none; by default as the checkpoint is stored
    #[arg(long, value_name = "METHOD")]
    pub(super) quantization: Option<String>,
    /// auto, bfloat16, float16, fp8, fp8_e4m3 or fp8_e5m2
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub(super) kv_cache_dtype: String,
    /// Part of the memory that the engine may take
    #[arg(long, value_name = "PART", default_value_t = 0.9)]
    pub(super) gpu_memory_utilization: f64,
    /// Sequences of one step; by default what vLLM's server takes on such a GPU
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_num_seqs: Option<u64>,
    /// Tokens of one step, likewise
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_num_batched_tokens: Option<u64>,
    /// GPUs among which each layer is divided; by default chosen
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(super) tp: Option<u64>,
    /// Stages among which the layers are divided; by default chosen
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(super) pp: Option<u64>,
    /// Print all figures as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct FaultArgs {
    pub(super) node: String,
    pub(super) kind: FaultKind,
    /// notice: until the node is taken
    #[arg(long = "in", value_name = "SPAN", value_parser = span::parse, default_value = "30s")]
    pub(super) within: Duration,
    /// notice: by the metadata service of this cloud, which the node must play (`cic dev --cloud`); by default through the
    /// notice file
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(["aws", "gcp", "azure", "runpod"]))]
    pub(super) cloud: Option<String>,
    /// partition, freeze: mend or thaw after this
    #[arg(long = "for", value_name = "SPAN", value_parser = span::parse)]
    pub(super) lasting: Option<Duration>,
    /// The fleet's directory; by default that of the running `cic dev`
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FaultKind {
    /// The VM loses power: SIGKILL to all of it
    Kill,
    /// SIGSTOP to agent and engine
    Freeze,
    /// SIGCONT to agent and engine
    Thaw,
    /// SIGKILL to the agent; its engine stays
    KillAgent,
    /// Its network drops everything
    Partition,
    /// Its network works again
    Mend,
    /// The cloud says that it will take the node, and does
    Notice,
    /// The cloud takes its notice back
    Lift,
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct DevArgs {
    /// Which engine; by default vLLM where it is installed, else the stand-in
    #[arg(long)]
    pub(super) engine: Option<EngineKind>,
    /// Where `cargo xtask engine` installed vLLM
    #[arg(long, default_value = ".engine")]
    pub(super) engine_dir: PathBuf,
    /// Serve this model; by default the tiny one of the engine directory
    #[arg(long)]
    pub(super) model: Option<PathBuf>,
    /// More arguments for the engine, each given by itself
    #[arg(long = "engine-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(super) engine_args: Vec<String>,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) replicas: u16,
    /// Where users' requests are taken
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    pub(super) edge: SocketAddr,
    /// Whose machines the nodes play, with that cloud's metadata service
    #[arg(long, default_value = "aws", value_parser = clap::builder::PossibleValuesParser::new(["aws", "gcp", "azure", "runpod", "none"]))]
    pub(super) cloud: String,
    /// Where every node writes its checkpoints, as `s3://bucket/prefix`; by default a directory of the fleet's
    #[arg(long, value_name = "URL")]
    pub(super) checkpoints: Option<String>,
    /// A second place for them
    #[arg(long, value_name = "URL", requires = "checkpoints")]
    pub(super) checkpoints_second: Option<String>,
    /// Seconds between two of them; by default what the agents have
    #[arg(long, value_name = "SECONDS")]
    pub(super) checkpoint_every: Option<u64>,
    /// Keep everything in this directory; by default a temporary one, removed at the end
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
    /// Wait until every replica serves, send one request, print the answer and stop
    #[arg(long)]
    pub(super) once: bool,
    /// What --once asks
    #[arg(long, default_value = "Say something.")]
    pub(super) prompt: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineKind {
    Vllm,
    Standin,
}
