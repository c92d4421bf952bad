//! The flags of the installed vLLM, as its `serve --help=all` lists them.

use std::collections::{BTreeMap, BTreeSet};

use cic_common::config::unknown;
use serde::{Deserialize, Serialize};

/// A help text with fewer flags is that of another program. vLLM 0.32 has about 380.
pub(super) const FLAGS_MIN: usize = 20;

/// Flags that vLLM once had, each with what is to be written now. The flags of well-known recipes that newer versions
/// refuse; vLLM's release notes and engine arguments, 0.4 to 0.32.
const REPLACED: [(&str, &str); 13] = [
    ("--device", "leave it out: the device is what the installed vLLM was built for"),
    ("--disable-log-requests", "leave it out: --no-enable-log-requests is the default"),
    ("--engine-use-ray", "use --distributed-executor-backend ray"),
    ("--guided-decoding-backend", "use --structured-outputs-config"),
    ("--max-context-len-to-capture", "use --compilation-config"),
    ("--max-seq-len-to-capture", "use --compilation-config"),
    ("--multi-step-stream-outputs", "leave it out: multi-step scheduling is gone"),
    ("--num-scheduler-steps", "leave it out: multi-step scheduling is gone"),
    ("--preemption-mode", "leave it out: preempted requests are always computed anew"),
    ("--swap-space", "leave it out: nothing is swapped; --cpu-offload-gb offloads weights"),
    ("--task", "use --runner and --convert"),
    ("--use-v2-block-manager", "leave it out: it is the only block manager"),
    ("--worker-use-ray", "use --distributed-executor-backend ray"),
];

/// What one flag takes.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Flag {
    /// The only values it takes; empty when any will do.
    choices: BTreeSet<String>,
}

/// The flags of one installed vLLM.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flags {
    flags: BTreeMap<String, Flag>,
}

impl Flags {
    /// Reads the output of argparse: a line of two spaces and a flag begins an option, and `{a,b}` on it are its values.
    pub(super) fn parse(help: &str) -> Self {
        let mut flags: BTreeMap<String, Flag> = BTreeMap::new();
        for line in help.lines() {
            let Some(header) = line.strip_prefix("  ").filter(|rest| rest.starts_with('-')) else { continue };
            // Two spaces end the header where the description stands on the same line.
            let header = header.split("  ").next().unwrap_or(header);
            let choices: BTreeSet<String> = header
                .split_once('{')
                .and_then(|(_, rest)| rest.split_once('}'))
                .map(|(list, _)| list.split(',').map(|choice| choice.trim().to_owned()).collect())
                .unwrap_or_default();
            // A value's name is in capitals or in braces, so that what begins with a dash is a flag.
            let names =
                header.split([' ', ',', '[', ']']).filter(|word| word.starts_with('-') && word.len() > 1);
            for name in names {
                flags.entry(name.to_owned()).or_default().choices.extend(choices.iter().cloned());
            }
        }
        Self { flags }
    }

    pub(super) fn count(&self) -> usize {
        self.flags.len()
    }

    /// Every flag of `args` that this vLLM refuses, each with the way out.
    pub(super) fn mistakes(&self, args: &[String]) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut args = args.iter().peekable();
        while let Some(arg) = args.next() {
            if !arg.starts_with("--") || arg == "--" {
                continue;
            }
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (
                    arg.as_str(),
                    args.peek().map(|next| next.as_str()).filter(|next| !next.starts_with('-')),
                ),
            };
            match self.find(name) {
                Some((known, flag)) => {
                    let is_wrong = |value: &&str| !flag.choices.is_empty() && !flag.choices.contains(*value);
                    if let Some(value) = value.filter(is_wrong) {
                        let choices: Vec<&str> = flag.choices.iter().map(String::as_str).collect();
                        mistakes.push(format!("{known} {value}: it takes {}", choices.join(", ")));
                    }
                }
                None => mistakes.push(self.refusal(name)),
            }
        }
        mistakes
    }

    /// vLLM takes `_` for `-`, `--config.key` for a key of a JSON value, and an unambiguous beginning of a flag.
    fn find(&self, name: &str) -> Option<(&str, &Flag)> {
        let dashed = dashed(name);
        let whole = dashed.split('.').next().unwrap_or_default();
        if let Some((known, flag)) = self.flags.get_key_value(whole) {
            return Some((known, flag));
        }
        let mut longer =
            self.flags.range(whole.to_owned()..).take_while(|(known, _)| known.starts_with(whole));
        match (longer.next(), longer.next()) {
            (Some((known, flag)), None) => Some((known, flag)),
            (_, _) => None,
        }
    }

    fn refusal(&self, name: &str) -> String {
        let name = dashed(name);
        match REPLACED.iter().find(|(gone, _)| *gone == name) {
            Some((_, way_out)) => format!("{name} is no flag of this vLLM any more: {way_out}"),
            None => format!("{name}: {}", unknown("flag", &name, self.flags.keys().map(String::as_str))),
        }
    }
}

fn dashed(name: &str) -> String {
    name.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `vllm serve --help=all` of vLLM 0.32.0, option lines only.
    const HELP: &str = include_str!("../../../tests/fixtures/vllm-0.32.0-cpu/help-all.txt");

    fn mistakes(line: &str) -> Vec<String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Flags::parse(HELP).mistakes(&args)
    }

    #[test]
    fn the_flags_of_the_real_help_are_all_read() {
        let flags = Flags::parse(HELP);
        assert!(flags.count() > 350, "{}", flags.count());
        for name in
            ["--shutdown-timeout", "--no-enable-log-requests", "-tp", "--tensor-parallel-size", "--grpc"]
        {
            assert!(flags.flags.contains_key(name), "{name}");
        }
        assert!(!flags.flags.contains_key("--help=Frontend"));
    }

    #[test]
    fn a_command_line_that_vllm_takes_is_taken() {
        let good = "--tensor-parallel-size 8 --max_model_len=8192 --gpu-memory-utilization 0.92 --enforce-eager \
                    --dtype float16 --no-enable-log-requests --load-format runai_streamer --shutdown-timeout 30 \
                    --compilation-config.mode 3 -tp 2 --kv-cache-dtype auto --max-num-seq 4";
        assert_eq!(mistakes(good), [""; 0]);
    }

    #[test]
    fn each_flag_that_is_gone_is_named_with_its_replacement() {
        let found = mistakes(
            "--disable-log-requests --engine-use-ray --worker-use-ray --swap-space 16 --task generate",
        );
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[0].contains("--no-enable-log-requests is the default"), "{}", found[0]);
        assert!(found[1].contains("--distributed-executor-backend ray"), "{}", found[1]);
    }

    #[test]
    fn a_slip_is_answered_with_the_flag_that_was_meant() {
        let found = mistakes("--tensor-paralel-size 8 --frobnicate-everything");
        assert!(found[0].ends_with("unknown flag; did you mean --tensor-parallel-size?"), "{}", found[0]);
        assert!(found[1].ends_with("unknown flag"), "{}", found[1]);
    }

    #[test]
    fn a_value_that_is_none_of_the_choices_is_refused() {
        let found = mistakes("--dtype float99");
        assert!(found[0].starts_with("--dtype float99: it takes auto, bfloat16"), "{found:?}");
    }

    #[test]
    fn no_replacement_is_offered_that_this_vllm_refuses_too() {
        let flags = Flags::parse(HELP);
        for (gone, way_out) in REPLACED {
            for word in way_out.split([' ', ',', ';', ':']).filter(|word| word.starts_with("--")) {
                assert!(flags.find(word).is_some(), "{gone}: {word}");
            }
        }
    }
}
