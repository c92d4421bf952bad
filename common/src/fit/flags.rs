//! What the flags of `vllm serve` say of memory.

use std::str::FromStr;

use super::plan::Wanted;

/// Flags with a value that is read here.
pub const READ: [&str; 11] = [
    "--tensor-parallel-size",
    "-tp",
    "--pipeline-parallel-size",
    "-pp",
    "--max-model-len",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--quantization",
    "-q",
];

/// The default of vLLM 0.32; that of versions before was 0.9.
const UTILIZATION: f64 = 0.92;

/// What an engine was told.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineFlags {
    pub wanted: Wanted,
    /// `--quantization`, as it stands there.
    pub quantization: Option<String>,
}

/// A flag whose value says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value:?}: {wanted}")]
pub struct FlagFault {
    flag: String,
    value: String,
    wanted: String,
}

impl EngineFlags {
    /// Reads the flags that matter among `args`, as `--flag value` or `--flag=value`, with dashes or underscores. Others are
    /// passed over; the last of several counts.
    ///
    /// # Errors
    /// Which flag has a value that cannot be read.
    pub fn parse(args: &[String]) -> Result<Self, FlagFault> {
        let mut flags = Self { wanted: Wanted::default(), quantization: None };
        // Where vLLM is told nothing, it divides nothing.
        flags.wanted.tensor_parallel = Some(1);
        flags.wanted.pipeline_parallel = Some(1);
        flags.wanted.utilization = UTILIZATION;
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let (name, attached) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg.as_str(), None),
            };
            let name = name.replace('_', "-");
            if name == "--enforce-eager" {
                flags.wanted.is_eager = true;
            } else if is_read(&name) {
                // The next one belongs to this flag, whatever it looks like.
                let value = attached.or_else(|| rest.next().map(String::as_str)).unwrap_or("");
                flags.take(&name, value)?;
            }
        }
        Ok(flags)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), FlagFault> {
        let wanted = &mut self.wanted;
        match name {
            "--tensor-parallel-size" | "-tp" => wanted.tensor_parallel = Some(read(name, value, "a number")?),
            "--pipeline-parallel-size" | "-pp" => {
                wanted.pipeline_parallel = Some(read(name, value, "a number")?)
            }
            // As much as fits: a token would do.
            "--max-model-len" if matches!(value, "auto" | "-1") => wanted.length = Some(1),
            "--max-model-len" => wanted.length = Some(tokens(name, value)?),
            "--max-num-batched-tokens" => wanted.step_tokens = Some(tokens(name, value)?),
            "--max-num-seqs" => wanted.sequences = Some(tokens(name, value)?),
            "--gpu-memory-utilization" => wanted.utilization = read(name, value, "a part, such as 0.9")?,
            "--kv-cache-dtype" => {
                wanted.kv = value.parse().map_err(|error: super::kv::NoKvDtype| FlagFault {
                    flag: name.to_owned(),
                    value: value.to_owned(),
                    wanted: error.to_string(),
                })?;
            }
            _ => self.quantization = Some(value.to_owned()),
        }
        Ok(())
    }
}

fn is_read(name: &str) -> bool {
    READ.contains(&name)
}

fn read<T: FromStr>(flag: &str, value: &str, wanted: &str) -> Result<T, FlagFault> {
    let fault =
        || FlagFault { flag: flag.to_owned(), value: value.to_owned(), wanted: format!("give {wanted}") };
    value.parse().map_err(|_| fault())
}

/// A number as vLLM reads it: `32768`, `32k` (thousands), `32K` (1024 each), with a fraction before a letter.
fn tokens(flag: &str, value: &str) -> Result<u64, FlagFault> {
    let unit = match value.chars().last() {
        Some('k') => 1e3,
        Some('K') => 1024.0,
        Some('m') => 1e6,
        Some('M') => 1_048_576.0,
        _ => return read(flag, value, "a number, such as 32768 or 32K"),
    };
    let number: f64 = read(flag, &value[..value.len() - 1], "a number, such as 32768 or 32K")?;
    Ok((number * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::kv::KvDtype;

    fn parse(line: &str) -> Result<EngineFlags, FlagFault> {
        EngineFlags::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_in_all_their_spellings() {
        let flags = parse(
            "--tensor-parallel-size 8 -pp=2 --max_model_len 32K --seed 7 --gpu-memory-utilization=0.85 --kv-cache-dtype \
             fp8_e4m3 -q fp8 --max-num-seqs 64 --enforce-eager --max-num-batched-tokens 4k",
        )
        .expect("reads");
        let wanted = Wanted {
            tensor_parallel: Some(8),
            pipeline_parallel: Some(2),
            length: Some(32_768),
            kv: KvDtype::Fp8,
            utilization: 0.85,
            sequences: Some(64),
            step_tokens: Some(4000),
            is_eager: true,
        };
        assert_eq!(flags, EngineFlags { wanted, quantization: Some("fp8".to_owned()) });
    }

    #[test]
    fn an_engine_that_is_told_nothing_divides_nothing() {
        let wanted = parse("--seed 7").expect("reads").wanted;
        assert_eq!(
            (wanted.tensor_parallel, wanted.pipeline_parallel, wanted.length),
            (Some(1), Some(1), None)
        );
    }

    #[test]
    fn a_value_that_says_nothing_is_named_with_its_flag() {
        for line in ["-tp many", "--max-model-len 8Q", "--max-model-len", "--kv-cache-dtype int3", "-tp -1"] {
            let fault = parse(line).expect_err(line).to_string();
            assert!(fault.starts_with(line.split(' ').next().expect("one")), "{fault}");
        }
    }
}
