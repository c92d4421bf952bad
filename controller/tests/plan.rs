//! `cic plan`, as it is typed.

use std::path::Path;
use std::process::{Command, Output};

/// It does not fit.
const EXIT_NO: i32 = 3;

/// What was given is of no use.
const EXIT_CONFIG: i32 = 78;

fn fixture(name: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/src/fit/fixtures");
    fixtures.join(format!("{name}.json")).display().to_string()
}

fn planned(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cic")).arg("plan").args(args).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn deepseek_v3_on_eight_h100_is_refused_with_what_works() {
    let output = planned(&[&fixture("deepseek-v3"), "--gpu", "H100:8"]);
    let said = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(EXIT_NO), String::new()), "{said}");
    for wanted in ["does not fit on 8 x H100", "= missing", "--gpu H200:8", "--gpu H100:16"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    for gpu in ["H200:8", "H100:16"] {
        let output = planned(&[&fixture("deepseek-v3"), "--gpu", gpu]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    }
}

#[test]
fn a_models_directory_is_read_and_answered_in_json() {
    let directory = tempfile::tempdir().expect("a directory");
    let model = directory.path().join("llama-3.1-8b");
    std::fs::create_dir(&model).expect("creates");
    std::fs::copy(fixture("llama-3.1-8b"), model.join("config.json")).expect("copies");
    let model = model.display().to_string();
    let output = planned(&[&model, "--gpu", "H100", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(output.status.code(), Some(0), "{answer}");
    assert_eq!(answer["model"], "llama-3.1-8b");
    assert_eq!(answer["weights_bytes"], 16_060_522_496_u64);
    assert_eq!(answer["context"]["bytes_per_token"], 131_072);
}

#[test]
fn a_mistake_is_one_line_and_another_code() {
    for (args, said) in [
        (["8B", "--gpu", "H101:8"], "known are A10G, L4"),
        (["nowhere", "--gpu", "H100:8"], "no size such as 70B"),
    ] {
        let output = planned(&args);
        let errors = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(EXIT_CONFIG), String::new()));
        assert!(errors.contains(said) && errors.lines().count() == 1, "{errors}");
    }
}
