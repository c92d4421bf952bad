//! The command line: that of `vllm serve`, and the stand-in's own switches.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command, FromArgMatches};

use crate::faults::Faults;

/// As `vllm serve` exits on a command line it cannot read (Python's argparse).
const EXIT_USAGE: u8 = 2;

/// Flags of vLLM 0.32 that take a value and mean nothing here.
const UNUSED_WITH_VALUE: &[&str] = &[
    "api-key",
    "block-size",
    "chat-template",
    "compilation-config",
    "config-format",
    "cpu-offload-gb",
    "data-parallel-size",
    "distributed-executor-backend",
    "download-dir",
    "generation-config",
    "gpu-memory-utilization",
    "hf-overrides",
    "kv-cache-dtype",
    "kv-transfer-config",
    "load-format",
    "max-log-len",
    "max-num-batched-tokens",
    "max-num-queued-tokens",
    "model-impl",
    "model-loader-extra-config",
    "pipeline-parallel-size",
    "quantization",
    "reasoning-parser",
    "revision",
    "root-path",
    "scheduling-policy",
    "seed",
    "speculative-config",
    "sse-keep-alive-interval",
    "tensor-parallel-size",
    "tokenizer",
    "tokenizer-mode",
    "tool-call-parser",
    "uvicorn-log-level",
];

/// Switches of vLLM 0.32 that mean nothing here; each exists as `--no-…` too.
const UNUSED_SWITCHES: &[&str] = &[
    "async-scheduling",
    "disable-log-stats",
    "disable-uvicorn-access-log",
    "enable-auto-tool-choice",
    "enable-chunked-prefill",
    "enable-expert-parallel",
    "enable-log-requests",
    "enable-prefix-caching",
    "enable-prompt-tokens-details",
    "enable-request-id-headers",
    "enable-scale-out",
    "enable-server-load-tracking",
    "enable-sleep-mode",
    "enforce-eager",
    "ray-workers-use-nsight",
    "trust-remote-code",
];

const DTYPES: [&str; 6] = ["auto", "bfloat16", "float", "float16", "float32", "half"];

const AFTER_HELP: &str = "\
Other flags of `vllm serve` 0.32 are accepted and do nothing; a flag that vLLM does not have is refused with exit code 2.
Tokens depend only on the tokens before them. Sampling, logprobs, echo, tools and guided decoding are not imitated.";

/// What the stand-in does with a command line of `vllm serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The model directory; it must exist, and hold every shard its index names
    #[arg(value_name = "DIR")]
    pub(crate) model: PathBuf,

    /// The name in the API; by default the directory as given
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(crate) served_model_name: Vec<String>,

    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) host: String,

    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,

    #[arg(long, default_value = "auto", value_parser = DTYPES)]
    pub(crate) dtype: String,

    /// Tokens of prompt and answer together; by default what the model's config.json says
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<usize>,

    /// Requests that generate at the same time; the others wait
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_num_seqs: usize,

    /// Requests that may wait; more are answered with 503
    #[arg(long, value_name = "N")]
    pub(crate) max_num_queued_reqs: Option<usize>,

    /// Seconds that running requests may go on after SIGTERM; 0 aborts them
    #[arg(long, value_name = "S", default_value = "0", value_parser = whole_seconds)]
    pub(crate) shutdown_timeout: Duration,

    #[command(flatten)]
    pub(crate) faults: Faults,
}

impl Options {
    /// # Errors
    /// The text to print and the exit code: 0 for --help and --version, 2 for a command line that is wrong.
    pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, (String, u8)> {
        let words: Vec<OsString> = words.collect();
        if words.iter().any(|word| word == "--help=all") {
            return Err((help_all(), 0));
        }
        let matches =
            command().try_get_matches_from(words.into_iter().map(in_one_spelling)).map_err(refusal)?;
        let serve = matches
            .subcommand_matches("serve")
            .ok_or_else(|| (usage_error("expected `serve`"), EXIT_USAGE))?;
        Self::from_arg_matches(serve).map_err(refusal)
    }

    /// The names that requests may use, the first of which answers carry.
    pub(crate) fn model_names(&self) -> Vec<String> {
        if let Some(name) = &self.faults.model_name {
            vec![name.clone()]
        } else if self.served_model_name.is_empty() {
            vec![self.model.to_string_lossy().into_owned()]
        } else {
            self.served_model_name.clone()
        }
    }
}

fn command() -> Command {
    let with_value =
        UNUSED_WITH_VALUE.iter().map(|name| Arg::new(*name).long(*name).action(ArgAction::Append));
    let switches = UNUSED_SWITCHES.iter().map(|name| Arg::new(*name).long(*name).action(ArgAction::Count));
    let unused = with_value.chain(switches).map(|arg| arg.hide(true));
    let serve =
        Options::augment_args(Command::new("serve")).about("Serve the OpenAI API").after_help(AFTER_HELP);
    Command::new("cic-standin-engine")
        .about("Stands in for vLLM 0.32 in tests: same command line, API and metrics, made-up tokens, faults on demand")
        .version(crate::reply::VERSION)
        .subcommand_required(true)
        .subcommand(serve.args(unused))
}

/// Every flag on a line of its own, as vLLM's `serve --help=all` begins them.
fn help_all() -> String {
    let command = command();
    let serve = command.get_subcommands().find(|one| one.get_name() == "serve");
    let mut text = "usage: vllm serve [model_tag] [options]\n\noptions:\n".to_owned();
    for arg in serve.into_iter().flat_map(Command::get_arguments) {
        let Some(name) = arg.get_long() else { continue };
        let value = name.to_uppercase().replace('-', "_");
        let header = match arg.get_action() {
            _ if name == "dtype" => format!("--{name} {{{}}}", DTYPES.join(",")),
            ArgAction::Set | ArgAction::Append => format!("--{name} {value}"),
            _ => format!("--{name}, --no-{name}"),
        };
        text.push_str(&format!("  {header}\n"));
    }
    text
}

/// vLLM takes `--max_model_len` for `--max-model-len`; and the `--no-` of a switch without meaning has none either.
fn in_one_spelling(word: OsString) -> OsString {
    let Some(text) = word.to_str().filter(|text| text.starts_with("--")) else { return word };
    let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    let flag = flag.replace('_', "-");
    match flag.strip_prefix("--no-") {
        Some(switch) if UNUSED_SWITCHES.contains(&switch) => format!("--{switch}{value}").into(),
        _ => (flag + value).into(),
    }
}

fn refusal(error: clap::Error) -> (String, u8) {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => (error.to_string(), 0),
        ErrorKind::UnknownArgument => {
            let flag = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(flag)) => flag.clone(),
                _ => "?".to_owned(),
            };
            (usage_error(&format!("unrecognized arguments: {flag}")), EXIT_USAGE)
        }
        _ => (usage_error(error.to_string().trim_start_matches("error: ").trim_end()), EXIT_USAGE),
    }
}

fn usage_error(message: &str) -> String {
    format!("usage: vllm [-h] [-v] {{serve}} ...\nvllm: error: {message}\n")
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "not a whole number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, (String, u8)> {
        Options::parse(
            std::iter::once("cic-standin-engine").chain(line.split_whitespace()).map(OsString::from),
        )
    }

    #[test]
    fn the_command_line_of_vllm_is_understood() {
        let options = parse(
            "serve /models/tiny --served-model-name tiny --enforce-eager --host 127.0.0.1 --port 8100 --dtype float32 \
             --max_model_len=2048 --shutdown-timeout 30 --load-format runai_streamer \
             --no-enable-log-requests --no-enforce-eager",
        )
        .expect("every flag is vLLM's");
        assert_eq!(options.model_names(), ["tiny"]);
        assert_eq!((options.port, options.max_model_len), (8100, Some(2048)));
        assert_eq!(options.shutdown_timeout, Duration::from_secs(30));
    }

    #[test]
    fn the_whole_help_names_every_flag_that_is_taken() {
        let (text, code) = parse("serve --help=all").expect_err("help");
        assert_eq!(code, 0);
        for name in UNUSED_WITH_VALUE.iter().chain(UNUSED_SWITCHES) {
            assert!(text.contains(&format!("\n  --{name}")), "{name}");
        }
        assert!(
            text.contains("  --dtype {auto,") && text.contains("  --shutdown-timeout SHUTDOWN_TIMEOUT\n")
        );
    }

    #[test]
    fn a_flag_that_vllm_lacks_is_named_and_exits_2() {
        let (text, code) = parse("serve DIR --engine-use-ray").expect_err("vLLM 0.32 has no such flag");
        assert_eq!(code, EXIT_USAGE);
        assert!(text.ends_with("vllm: error: unrecognized arguments: --engine-use-ray\n"), "{text}");
    }
}
