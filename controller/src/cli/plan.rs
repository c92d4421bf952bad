//! `cic plan`: whether a model fits GPUs, before anybody pays for them.

use std::path::Path;
use std::process::ExitCode;

use cic_common::fit::config::CONFIG_NAME;
use cic_common::fit::directory::{architecture, found};
use cic_common::fit::{
    Judgement, PlanFault, Quantization, Rack, Subject, Verdict, Wanted, judge, size, weights,
};
use serde::Serialize;

use super::args::PlanArgs;
use super::failure::Failure;
use super::style::{Style, Tone};
use super::table::{Cell, Table};

/// The answer is no. Neither a failure (1) nor a mistake in what was given (78).
const EXIT_DOES_NOT_FIT: u8 = 3;

/// A judgement and what it is of.
#[derive(Debug, Serialize)]
struct Answer {
    model: String,
    #[serde(flatten)]
    judgement: Judgement,
}

/// A model that was read.
struct Model {
    name: String,
    subject: Subject,
    /// Why its files were not counted, where they were not.
    note: Option<String>,
}

pub(super) fn plan(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let answer = answer(args)?;
    if args.json {
        let whole = serde_json::to_string_pretty(&answer)
            .map_err(|error| Failure::new(format!("the answer cannot be written: {error}")))?;
        println!("{whole}");
    } else {
        for line in lines(&answer, &Style::of_stdout()) {
            println!("{line}");
        }
    }
    Ok(if answer.judgement.fits() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DOES_NOT_FIT) })
}

fn answer(args: &PlanArgs) -> Result<Answer, Failure> {
    let mistake = |flag: &str, why: &dyn std::fmt::Display| Failure::mistakes(vec![format!("{flag}: {why}")]);
    let rack = Rack::parse(&args.gpu).map_err(|fault| mistake("--gpu", &fault))?;
    let wanted = Wanted {
        tensor_parallel: args.tp,
        pipeline_parallel: args.pp,
        length: args.max_model_len,
        kv: args.kv_cache_dtype.parse().map_err(|fault| mistake("--kv-cache-dtype", &fault))?,
        utilization: args.gpu_memory_utilization,
        sequences: args.max_num_seqs,
        step_tokens: args.max_num_batched_tokens,
        is_eager: false,
    };
    let Model { name, subject, note } = Model::read(&args.model)?;
    let subject = match &args.quantization {
        Some(word) => subject.under(word).map_err(|fault| mistake("--quantization", &fault))?,
        None => subject,
    };
    let mut judgement = judge(&subject, &rack, &wanted).map_err(|fault| match fault {
        PlanFault::Utilization(_) => mistake("--gpu-memory-utilization", &fault),
        PlanFault::Long { .. } => mistake("--max-model-len", &fault),
        fault => mistake(&args.model, &fault),
    })?;
    judgement.notes.extend(note);
    Ok(Answer { model: name, judgement })
}

impl Model {
    /// A directory, a config.json, or a size.
    fn read(model: &str) -> Result<Self, Failure> {
        let mistake = |why: String| Failure::mistakes(vec![why]);
        let path = Path::new(model);
        if path.is_dir() {
            let config = path.join(CONFIG_NAME);
            if !config.is_file() {
                let way_out = "give a model's directory, its config.json, or a size such as 70B";
                return Err(mistake(format!("{model} holds no {CONFIG_NAME}; {way_out}")));
            }
            let architecture = architecture(&config).map_err(mistake)?;
            let (found, note) = match found(path, &architecture) {
                Ok(found) => (found, None),
                Err(why) => (None, Some(format!("{why}; the weights are counted from {CONFIG_NAME}"))),
            };
            return Ok(Self { name: name(path), subject: Subject::Model { architecture, found }, note });
        }
        if path.is_file() {
            let architecture = architecture(path).map_err(mistake)?;
            return Ok(Self {
                name: name(path),
                subject: Subject::Model { architecture, found: None },
                note: None,
            });
        }
        let Some(parameters) = size::parameters(model) else {
            return Err(mistake(format!("{model} is no directory, no config.json and no size such as 70B")));
        };
        let subject = Subject::Size { parameters, quantization: Quantization::Plain };
        Ok(Self { name: model.to_owned(), subject, note: None })
    }
}

/// What people call it: the directory's name, or that of a file that has one of its own.
fn name(path: &Path) -> String {
    let is_config = path.file_name().is_some_and(|name| name == CONFIG_NAME);
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let named = if is_config { whole.parent().map(Path::to_path_buf).unwrap_or(whole) } else { whole };
    let stem = if named.is_dir() { named.file_name() } else { named.file_stem() };
    stem.map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}

fn lines(Answer { model, judgement }: &Answer, style: &Style) -> Vec<String> {
    let mut lines = vec![style.paint(&verdict(model, judgement), tone(judgement.verdict)), String::new()];
    lines.push(format!(
        "{:.1} billion parameters, {}: {:.1} GiB of weights, {}",
        judgement.parameters as f64 / 1e9,
        judgement.quantization,
        gib(judgement.weights_bytes),
        match judgement.weights_from {
            weights::Source::Headers => "by the headers of their files",
            weights::Source::Config => "counted from config.json",
            weights::Source::Size => "by the number of parameters alone",
        }
    ));
    lines.push(String::new());
    lines.extend(arithmetic(judgement));
    if let Some(context) = &judgement.context {
        lines.push(String::new());
        lines.push(format!(
            "A token takes {:.1} KiB of KV cache on each GPU ({}), a sequence of {} tokens {:.2} GiB.",
            context.bytes_per_token_per_gpu as f64 / 1024.0,
            judgement.kv.text(),
            context.length,
            gib(context.sequence_bytes_per_gpu)
        ));
        let known = context.positions.map(|positions| format!(" (the model knows {positions})"));
        lines.push(match context.length_max {
            0 => "No room is left for any.".to_owned(),
            length_max => format!(
                "Room for {} such sequences at once; the longest that fits alone has {length_max} tokens{}.",
                context.sequences,
                known.unwrap_or_default()
            ),
        });
    }
    if !judgement.fits() {
        lines.push(String::new());
        lines.extend(nearest(judgement, style));
    }
    if !judgement.notes.is_empty() {
        lines.push(String::new());
        lines.extend(judgement.notes.iter().map(|note| format!("note: {note}")));
    }
    lines
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Fits => Tone::Good,
        Verdict::Tight => Tone::Odd,
        Verdict::DoesNotFit => Tone::Bad,
    }
}

fn verdict(model: &str, judgement: &Judgement) -> String {
    if judgement.context.is_none() {
        return verdict_on(&format!("a model of {model}, by its weights alone,"), judgement);
    }
    verdict_on(model, judgement)
}

fn verdict_on(model: &str, judgement: &Judgement) -> String {
    let gpus = format!("{} x {}", judgement.gpus, judgement.gpu);
    let taken = judgement.layout.gpus();
    let layout = if taken < judgement.gpus {
        format!("{}, {taken} of {}", judgement.layout.text(), judgement.gpus)
    } else {
        judgement.layout.text()
    };
    match judgement.verdict {
        Verdict::Fits => format!("{model} fits on {gpus} ({layout})"),
        Verdict::Tight => format!(
            "{model} does not surely fit on {gpus} ({layout}): only if the engine keeps less for itself than below"
        ),
        Verdict::DoesNotFit => format!("{model} does not fit on {gpus} ({layout})"),
    }
}

/// From the memory that a GPU has to what is left for the KV cache.
fn arithmetic(judgement: &Judgement) -> Vec<String> {
    let per_gpu = &judgement.per_gpu;
    let usable = per_gpu.memory_bytes.saturating_sub(per_gpu.driver_bytes);
    let row = |sign: &str, what: &str, bytes: u64, why: String| {
        let line = format!("  {sign} {what:<24}{:>8.2}  {why}", gib(bytes));
        line.trim_end().to_owned()
    };
    let plain = |sign: &str, what: &str, bytes: u64| row(sign, what, bytes, String::new());
    let mut rows = vec![
        "GiB on each GPU".to_owned(),
        plain(" ", "memory", per_gpu.memory_bytes),
        plain("-", "driver", per_gpu.driver_bytes),
        row(
            "-",
            "left out",
            usable.saturating_sub(per_gpu.budget_bytes),
            format!("gpu-memory-utilization {}", judgement.utilization),
        ),
        row("-", "weights", per_gpu.weights_bytes, judgement.layout.text()),
    ];
    let step = match judgement.context {
        Some(_) => {
            format!("{} tokens and {} sequences a step", judgement.step_tokens, judgement.step_sequences)
        }
        None => "as most models take".to_owned(),
    };
    rows.push(row("-", "activations", per_gpu.activation_bytes, step));
    if per_gpu.window_step_bytes > 0 {
        let why = "a step's tokens beyond the windows of layers".to_owned();
        rows.push(row("-", "windows", per_gpu.window_step_bytes, why));
    }
    rows.push(plain("-", "CUDA graphs", per_gpu.graph_bytes));
    let runtime = if judgement.layout.gpus() > 1 { "context, NCCL" } else { "context" };
    rows.push(plain("-", runtime, per_gpu.runtime_bytes));
    rows.push(if per_gpu.short_bytes > 0 {
        plain("=", "missing", per_gpu.short_bytes)
    } else {
        plain("=", "for the KV cache", per_gpu.kv_bytes)
    });
    rows
}

fn nearest(judgement: &Judgement, style: &Style) -> Vec<String> {
    if judgement.nearest.is_empty() {
        return vec![
            "Nothing was found that fits: neither more of these GPUs, nor larger ones, nor smaller weights, \
             nor a shorter context."
                .to_owned(),
        ];
    }
    let mut table = Table::new(["WHAT FITS", "SEQUENCES", "LAYOUT"]);
    for alternative in &judgement.nearest {
        let sequences = alternative.sequences.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let change = Cell::new(&alternative.change, Tone::Good);
        table.row([change, sequences.into(), alternative.layout.text().into()]);
    }
    table.lines(style)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Cli, Command};
    use super::*;

    fn fixture(name: &str) -> String {
        format!("{}/../common/src/fit/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"))
    }

    fn asked(line: &[&str]) -> Result<Answer, Failure> {
        let cli = Cli::try_parse_from(["cic", "plan"].iter().chain(line)).expect("parses");
        let Command::Plan(args) = cli.command else { panic!("another command") };
        answer(&args)
    }

    fn shown(line: &[&str]) -> String {
        lines(&asked(line).expect("judged"), &Style::PLAIN).join("\n")
    }

    #[test]
    fn a_refusal_shows_the_arithmetic_and_what_fits() {
        let text = shown(&[&fixture("deepseek-v3"), "--gpu", "H100:8"]);
        assert!(text.starts_with("deepseek-v3 does not fit on 8 x H100 (tensor parallel 8)\n"), "{text}");
        for wanted in ["684.5 billion parameters", "= missing", "--gpu H200:8", "--gpu H100:16", "weights"] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }

    #[test]
    fn what_fits_says_how_much_it_holds() {
        let text = shown(&[&fixture("llama-3.1-8b"), "--gpu", "L4", "--max-model-len", "8192"]);
        for wanted in
            ["llama-3.1-8b fits on 1 x L4 (one GPU)", "= for the KV cache", "128.0 KiB", "Room for 1 "]
        {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("WHAT FITS"), "{text}");
        let text = shown(&[&fixture("llama-3.1-70b"), "--gpu", "H100:8"]);
        assert!(text.contains("(tensor parallel 4, 4 of 8)"), "{text}");
    }

    #[test]
    fn a_size_is_judged_by_its_weights() {
        let text = shown(&["70B", "--gpu", "H100:4"]);
        assert!(text.contains("note: only the weights are judged"), "{text}");
        let text = shown(&["685B", "--gpu", "H100:8", "--quantization", "fp8"]);
        assert!(text.contains("--gpu H200:8") && text.contains("--gpu H100:16"), "{text}");
    }

    #[test]
    fn the_answer_for_programs_has_all_figures() {
        let answer = asked(&[&fixture("deepseek-v3"), "--gpu", "H100:8"]).expect("judged");
        let json = serde_json::to_value(&answer).expect("writes");
        assert_eq!(json["model"], "deepseek-v3");
        assert_eq!(json["verdict"], "does_not_fit");
        assert_eq!(json["context"]["bytes_per_token"], 70_272);
        assert_eq!(json["layout"]["tensor_parallel"], 8);
        assert!(json["per_gpu"]["short_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn bad_input_is_one_line_that_names_it_and_the_way_out() {
        let empty = tempfile::tempdir().expect("a directory");
        let place = empty.path().display().to_string();
        let broken = empty.path().join("broken.json");
        std::fs::write(&broken, r#"{"hidden_size":8}"#).expect("writes");
        let broken = broken.display().to_string();
        let llama = fixture("llama-3.1-8b");
        for (line, said) in [
            (vec!["8B", "--gpu", "H101:8"], "--gpu: \"H101\" is no GPU that is known here; known are A10G"),
            (vec![&*place, "--gpu", "H100"], "holds no config.json; give a model's directory"),
            (vec!["nowhere", "--gpu", "H100"], "no size such as 70B"),
            (vec![&*broken, "--gpu", "H100"], "broken.json has no key \"num_hidden_layers\""),
            (vec!["8B", "--gpu", "H100", "--quantization", "int3"], "--quantization: \"int3\""),
            (vec!["8B", "--gpu", "H100", "--kv-cache-dtype", "int3"], "--kv-cache-dtype: \"int3\""),
            (vec![&*llama, "--gpu", "H100", "--max-model-len", "200000"], "131072 positions"),
            (vec![&*llama, "--gpu", "H100:8", "--tp", "3"], "1, 2, 4, 8 would do"),
        ] {
            let text = asked(&line).expect_err(said).to_string();
            assert!(text.contains(said) && text.lines().count() == 1, "{text}");
        }
    }

    #[test]
    fn weights_that_are_there_are_counted_by_their_headers() {
        let place = tempfile::tempdir().expect("a directory");
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(place.path().join(name), bytes).expect("writes");
        let config = r#"{"model_type":"llama","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
            "intermediate_size":8,"vocab_size":8,"max_position_embeddings":64}"#;
        write("config.json", config.as_bytes());
        let json = r#"{"model.embed_tokens.weight":{"dtype":"BF16","shape":[500],"data_offsets":[0,1000]}}"#;
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.extend([0; 1000]);
        write("model.safetensors", &file);
        let model = place.path().display().to_string();
        let judged = || asked(&[&model, "--gpu", "L4"]).expect("judged").judgement;
        assert_eq!((judged().weights_bytes, judged().weights_from), (1000, weights::Source::Headers));
        write("model.safetensors", &file[..file.len() - 1]);
        let cut = judged();
        assert_eq!(cut.weights_from, weights::Source::Config);
        assert!(cut.notes.iter().any(|note| note.contains("cut off")), "{:?}", cut.notes);
    }
}
