//! Published models: what is counted against what was published.

use super::config::{Architecture, Mlp};
use super::gpu::Rack;
use super::kv::{KvDtype, token_bytes};
use super::plan::{Judgement, PlanFault, Verdict, Wanted, judge, judge_engine};
use super::quantization::Quantization;
use super::subject::Subject;

/// Part of the published size by which a count may be off: 2 % would do to plan by; some sizes are sums of files, with
/// their headers.
const TOLERANCE: f64 = 0.001;

struct Published {
    name: &'static str,
    config: &'static [u8],
    bytes: u64,
    /// Where the bytes come from: `metadata.total_size` of the index, the sum of the files, or a number of parameters.
    by: &'static str,
    kv_bytes_per_token: u64,
}

macro_rules! published {
    ($name:literal, $bytes:expr, $by:literal, $kv:expr) => {
        Published {
            name: $name,
            config: include_bytes!(concat!("fixtures/", $name, ".json")),
            bytes: $bytes,
            by: $by,
            kv_bytes_per_token: $kv,
        }
    };
}

/// The last column is the published formula with its numbers: 2 x layers x key-value heads x head size x 2 bytes, and for
/// latent attention layers x (rank + rotary part) x 2 bytes.
const PUBLISHED: [Published; 17] = [
    published!("llama-3.1-8b", 16_060_522_496, "total_size", 2 * 32 * 8 * 128 * 2),
    published!("llama-3.1-70b", 141_107_412_992, "total_size", 2 * 80 * 8 * 128 * 2),
    published!("llama-3.1-70b-awq", 39_767_785_472, "total_size", 2 * 80 * 8 * 128 * 2),
    published!("llama-3.1-405b", 2 * 405_853_388_800, "parameters x 2", 2 * 126 * 8 * 128 * 2),
    published!("llama-3.1-405b-fp8", 410_100_000_000, "the hub's cache: 410.1G", 2 * 126 * 8 * 128 * 2),
    published!("qwen2.5-7b", 15_231_233_024, "total_size", 2 * 28 * 4 * 128 * 2),
    published!("qwen2.5-72b", 145_412_407_296, "total_size", 2 * 80 * 8 * 128 * 2),
    published!("qwen3-30b-a3b", 61_064_245_248, "total_size", 2 * 48 * 4 * 128 * 2),
    published!("mixtral-8x7b", 93_405_585_408, "total_size", 2 * 32 * 8 * 128 * 2),
    published!("mistral-7b-v0.1", 14_483_464_192, "total_size", 2 * 32 * 8 * 128 * 2),
    published!("deepseek-v3", 688_586_727_753, "sum of the files", 61 * (512 + 64) * 2),
    published!("deepseek-v2-lite", 31_412_968_448, "total_size", 27 * (512 + 64) * 2),
    published!("gemma-2-27b", 2 * 27_227_128_320, "parameters x 2", 2 * 46 * 16 * 128 * 2),
    published!("gemma-3-27b", 54_864_980_440, "sum of the files", 2 * 62 * 16 * 128 * 2),
    published!(
        "falcon-7b",
        2 * (7_217_189_760 - 65_024 * 4544),
        "parameters x 2, without the second copy of the embedding",
        2 * 32 * 64 * 2
    ),
    published!("phi-3-mini-4k", 7_642_159_104, "total_size", 2 * 32 * 32 * 96 * 2),
    published!("gpt-oss-120b", 65_248_815_744, "total_size", 2 * 36 * 8 * 64 * 2),
];

fn architecture(name: &str) -> Architecture {
    let found = PUBLISHED.iter().find(|published| published.name == name).expect(name);
    Architecture::parse(found.config).expect(name)
}

fn subject(name: &str) -> Subject {
    Subject::Model { architecture: architecture(name), found: None }
}

fn judged(subject: &Subject, rack: &str, wanted: &Wanted) -> Judgement {
    judge(subject, &Rack::parse(rack).expect(rack), wanted).expect(rack)
}

fn of_length(length: u64) -> Wanted {
    Wanted { length: Some(length), ..Wanted::default() }
}

fn changes(judgement: &Judgement) -> Vec<&str> {
    judgement.nearest.iter().map(|alternative| alternative.change.as_str()).collect()
}

#[test]
fn what_is_counted_is_what_was_published() {
    for Published { name, bytes, by, kv_bytes_per_token, .. } in &PUBLISHED {
        let architecture = architecture(name);
        assert!(architecture.is_known_family, "{name}");
        let counted = subject(name).weights().total_bytes();
        let off = counted as f64 / *bytes as f64 - 1.0;
        println!("{name:20} {counted:>15} {bytes:>15} {:+.4} % ({by})", off * 100.0);
        assert!(off.abs() < TOLERANCE, "{name}: counted {counted}, published {bytes} ({by})");
        assert_eq!(token_bytes(&architecture, KvDtype::Auto), *kv_bytes_per_token, "{name}");
        assert_eq!(token_bytes(&architecture, KvDtype::Fp8), kv_bytes_per_token / 2, "{name}");
    }
}

#[test]
fn deepseek_v3_is_refused_on_eight_h100_and_told_what_works() {
    let judgement = judged(&subject("deepseek-v3"), "H100:8", &Wanted::default());
    assert_eq!(judgement.verdict, Verdict::DoesNotFit);
    assert_eq!((judgement.layout.tensor_parallel, judgement.layout.pipeline_parallel), (8, 1));
    assert!(judgement.parameters / 1_000_000_000 == 684, "{}", judgement.parameters);
    assert!(judgement.per_gpu.short_bytes > 15 << 30, "{judgement:?}");
    let changes = changes(&judgement);
    assert!(changes.contains(&"--gpu H200:8") && changes.contains(&"--gpu H100:16"), "{changes:?}");
    for (rack, tensor, pipeline) in [("H200:8", 8, 1), ("H100:16", 8, 2), ("B200:8", 8, 1)] {
        let judgement = judged(&subject("deepseek-v3"), rack, &Wanted::default());
        let Judgement { layout, verdict, .. } = judgement;
        assert_eq!(
            (verdict, layout.tensor_parallel, layout.pipeline_parallel),
            (Verdict::Fits, tensor, pipeline)
        );
    }
}

#[test]
fn a_model_takes_the_layout_of_its_class() {
    for (name, rack, length, verdict, tensor, pipeline) in [
        ("llama-3.1-8b", "H100:8", 131_072, Verdict::Fits, 1, 1),
        ("llama-3.1-8b", "L4:1", 8192, Verdict::Fits, 1, 1),
        ("llama-3.1-8b", "L4:4", 32_768, Verdict::Fits, 2, 1),
        ("qwen2.5-7b", "L4:8", 32_768, Verdict::Fits, 1, 1),
        ("mixtral-8x7b", "A100-80:8", 32_768, Verdict::Fits, 2, 1),
        ("llama-3.1-70b", "H100:8", 131_072, Verdict::Fits, 4, 1),
        ("llama-3.1-70b", "H200:8", 131_072, Verdict::Fits, 2, 1),
        ("llama-3.1-70b", "H100:2", 8192, Verdict::Tight, 2, 1),
        ("llama-3.1-70b", "H100:2", 131_072, Verdict::DoesNotFit, 2, 1),
        ("llama-3.1-70b-awq", "H100:1", 32_768, Verdict::Fits, 1, 1),
        ("gpt-oss-120b", "H100:1", 65_536, Verdict::Fits, 1, 1),
        ("llama-3.1-405b", "H100:16", 32_768, Verdict::Fits, 8, 2),
        ("llama-3.1-405b-fp8", "H100:8", 131_072, Verdict::Fits, 8, 1),
    ] {
        let Judgement { layout, verdict: judged, .. } = judged(&subject(name), rack, &of_length(length));
        let found = (judged, layout.tensor_parallel, layout.pipeline_parallel);
        assert_eq!(found, (verdict, tensor, pipeline), "{name} on {rack}");
    }
}

#[test]
fn latent_attention_keeps_as_much_on_eight_gpus_as_on_one() {
    let on = |rack| {
        let wanted = Wanted { length: Some(4096), ..Wanted::default() };
        judged(&subject("deepseek-v2-lite"), rack, &Wanted { tensor_parallel: Some(8), ..wanted }).context
    };
    let context = on("H100:8").expect("described");
    assert_eq!(context.bytes_per_token_per_gpu, context.bytes_per_token);
}

#[test]
fn the_longest_context_fits_and_one_block_more_does_not() {
    let gpt = subject("gpt-oss-120b");
    let longest = judged(&gpt, "H100:1", &Wanted::default()).context.expect("described").length_max;
    assert!((65_536..131_072).contains(&longest), "{longest}");
    assert!(judged(&gpt, "H100:1", &of_length(longest)).fits());
    assert!(!judged(&gpt, "H100:1", &of_length(longest + 16)).fits());
    let said = judged(&gpt, "H100:1", &Wanted::default());
    let changes = changes(&said);
    assert!(changes.contains(&"--kv-cache-dtype fp8"), "{changes:?}");
    assert!(changes.iter().any(|change| change.starts_with("--max-model-len ")), "{changes:?}");
}

#[test]
fn every_alternative_that_is_named_fits() {
    for Published { name, .. } in &PUBLISHED {
        for rack in ["L4:1", "A100-40:2", "H100:1", "H100:8"] {
            let judgement = judged(&subject(name), rack, &Wanted::default());
            assert!(!judgement.fits() || judgement.nearest.is_empty(), "{name} on {rack}");
            for gpus in changes(&judgement).iter().filter_map(|change| change.strip_prefix("--gpu ")) {
                assert!(judged(&subject(name), gpus, &Wanted::default()).fits(), "{name} on {gpus}");
            }
        }
    }
}

#[test]
fn more_memory_and_more_gpus_never_fit_less() {
    for Published { name, .. } in &PUBLISHED {
        let verdict = |rack| judged(&subject(name), rack, &of_length(2048)).verdict;
        for racks in [["L4:1", "H100:1", "H200:1", "B200:1"], ["H100:1", "H100:2", "H100:4", "H100:8"]] {
            let verdicts = racks.map(verdict);
            assert!(verdicts.is_sorted(), "{name} on {racks:?}: {verdicts:?}");
        }
    }
}

#[test]
fn a_size_alone_is_judged_by_its_weights() {
    let size = |parameters, word: &str| Subject::Size { parameters, quantization: word.parse().expect(word) };
    for (parameters, word, rack, fits) in [
        (70_000_000_000, "none", "H100:1", false),
        (70_000_000_000, "none", "H100:2", false),
        (70_000_000_000, "none", "H100:4", true),
        (70_000_000_000, "int4", "H100:1", true),
        (685_000_000_000, "none", "H200:8", false),
        (685_000_000_000, "fp8", "H200:8", true),
        (685_000_000_000, "fp8", "H100:8", false),
    ] {
        let judgement = judged(&size(parameters, word), rack, &Wanted::default());
        assert_eq!(judgement.fits(), fits, "{parameters} {word} {rack}");
        assert_eq!(judgement.context, None);
        assert!(judgement.notes[0].contains("only the weights"), "{:?}", judgement.notes);
    }
}

#[test]
fn what_contradicts_the_model_is_refused_by_its_name() {
    let fault = |name: &str, rack: &str, wanted: &Wanted| {
        let rack = Rack::parse(rack).expect(rack);
        judge(&subject(name), &rack, wanted).expect_err(name).to_string()
    };
    let tensor = |parts| Wanted { tensor_parallel: Some(parts), ..Wanted::default() };
    for (said, fault) in [
        ("32768 positions", fault("qwen2.5-7b", "H100:1", &of_length(32_769))),
        ("28 attention heads; 1, 2, 4 would do", fault("qwen2.5-7b", "H100:8", &tensor(8))),
        ("3 does not divide", fault("llama-3.1-70b", "H100:8", &tensor(3))),
        ("takes 16 GPUs, of 8", fault("llama-3.1-70b", "H100:8", &tensor(16))),
        ("spans nodes of 8", fault("llama-3.1-70b", "H100:16", &tensor(16))),
        ("at most 1", fault("qwen2.5-7b", "H100:1", &Wanted { utilization: 1.5, ..Wanted::default() })),
        ("at most 1", fault("qwen2.5-7b", "H100:1", &Wanted { utilization: f64::NAN, ..Wanted::default() })),
    ] {
        assert!(fault.contains(said), "{fault}");
    }
}

#[test]
fn experts_in_fp8_blocks_are_not_divided_within_a_block() {
    let blocks = Quantization::Fp8 { block: Some((128, 128)) };
    let subject = subject("qwen3-30b-a3b").requantized(blocks);
    let wanted = Wanted { tensor_parallel: Some(4), ..Wanted::default() };
    let fault =
        judge(&subject, &Rack::parse("H100:8").expect("known"), &wanted).expect_err("768 / 4 is no block");
    assert!(fault.to_string().contains("768 into whole blocks of 128; 1, 2 would do"), "{fault}");
}

#[test]
fn an_engine_is_judged_by_its_own_flags_on_the_memory_that_is_there() {
    let judged = |name: &str, memory_mib: &[u64], line: &str| {
        let memory: Vec<u64> = memory_mib.iter().map(|mib| mib << 20).collect();
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        judge_engine(&architecture(name), None, "NVIDIA H100 80GB HBM3", &memory, &args)
    };
    let h100 = [81_559; 8];
    for (name, memory, line, verdict) in [
        ("llama-3.1-8b", &h100[..1], "", Verdict::Fits),
        ("llama-3.1-8b", &[37_000][..], "", Verdict::Tight),
        ("llama-3.1-8b", &[24_000], "", Verdict::DoesNotFit),
        ("llama-3.1-8b", &[24_000], "--max-model-len 8k --enforce-eager", Verdict::Fits),
        ("llama-3.1-70b", &h100, "", Verdict::DoesNotFit),
        ("llama-3.1-70b", &h100, "--tensor-parallel-size 4", Verdict::Fits),
        ("llama-3.1-70b", &h100[..2], "-tp 2 --quantization fp8 --max-model-len 32768", Verdict::Fits),
        ("deepseek-v3", &h100, "-tp 8 --gpu-memory-utilization 0.99", Verdict::DoesNotFit),
        ("deepseek-v3", &h100, "-tp 8 -pp 2", Verdict::Fits),
    ] {
        let judgement = judged(name, memory, line).expect(line);
        assert_eq!(judgement.verdict, verdict, "{name} {line}: {judgement:?}");
    }
    assert!(matches!(judged("llama-3.1-8b", &[], ""), Err(PlanFault::NoGpu)));
    assert!(matches!(judged("llama-3.1-8b", &h100[..1], "-tp 2"), Err(PlanFault::Layout(_))));
}

#[test]
fn a_config_that_lacks_something_says_what() {
    let fault = |text: &str| Architecture::parse(text.as_bytes()).expect_err(text).to_string();
    let most = r#""model_type":"llama","num_hidden_layers":2,"num_attention_heads":4,"vocab_size":9"#;
    for (said, text) in [
        ("no JSON object", "[]".to_owned()),
        ("no key \"hidden_size\"", "{}".to_owned()),
        ("no key \"intermediate_size\"", format!(r#"{{{most},"hidden_size":8}}"#)),
        ("no key \"num_hidden_layers\"", r#"{"hidden_size":8}"#.to_owned()),
        ("\"8\" for \"hidden_size\"", format!(r#"{{{most},"hidden_size":"8"}}"#)),
        ("up to 1048576", format!(r#"{{{most},"hidden_size":1000000000000}}"#)),
        (
            "an entry for each of 2 layers",
            format!(r#"{{{most},"hidden_size":8,"layer_types":["full_attention"]}}"#),
        ),
        (
            "layers of the kind \"mamba\"",
            format!(r#"{{{most},"hidden_size":8,"intermediate_size":8,"layer_types":["mamba","mamba"]}}"#),
        ),
        ("linear attention", format!(r#"{{{most},"hidden_size":8,"full_attention_interval":4}}"#)),
        ("no known key (\"moe_num_experts\")", format!(r#"{{{most},"hidden_size":8,"moe_num_experts":64}}"#)),
        (
            "the quantization \"aqlm\"",
            format!(
                r#"{{{most},"hidden_size":8,"intermediate_size":8,"quantization_config":{{"quant_method":"aqlm"}}}}"#
            ),
        ),
    ] {
        assert!(fault(&text).contains(said), "{}", fault(&text));
    }
}

#[test]
fn numbers_at_their_bounds_do_not_overflow() {
    let most = 1 << 20;
    let config = format!(
        r#"{{"hidden_size":{most},"num_hidden_layers":1000,"num_attention_heads":4096,"head_dim":4096,
        "num_local_experts":4096,"n_shared_experts":4096,"intermediate_size":{most},"vocab_size":{most},
        "num_experts_per_tok":4096,"max_position_embeddings":1073741824,"num_nextn_predict_layers":1000}}"#
    );
    let architecture = Architecture::parse(config.as_bytes()).expect("within bounds");
    let subject = Subject::Model { architecture, found: None };
    let judgement = judged(&subject, "H100:64", &Wanted::default());
    assert_eq!(judgement.verdict, Verdict::DoesNotFit);
    assert!(judgement.notes[0].contains("counted as a Llama"), "{:?}", judgement.notes);
}

#[test]
fn models_of_several_modalities_and_of_mixed_layers_are_read_too() {
    let scout = r#"{"model_type":"llama4","text_config":{"model_type":"llama4_text","hidden_size":5120,
        "num_hidden_layers":48,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"intermediate_size":8192,
        "intermediate_size_mlp":16384,"num_local_experts":16,"num_experts_per_tok":1,"interleave_moe_layer_step":1,
        "attention_chunk_size":8192,"max_position_embeddings":10485760,"vocab_size":202048,
        "tie_word_embeddings":false},
        "vision_config":{"hidden_size":1408,"intermediate_size":5632,"num_hidden_layers":34}}"#;
    let architecture = Architecture::parse(scout.as_bytes()).expect("reads");
    let windows = architecture.layers.iter().filter(|layer| layer.window == Some(8192)).count();
    assert_eq!(windows, 36);
    // The sum of the files of Llama 4 Scout.
    let counted = Subject::Model { architecture, found: None }.weights().total_bytes() as f64;
    assert!((counted / 217_283_738_720.0 - 1.0).abs() < 0.005, "{counted}");
}

#[test]
fn a_window_is_of_those_layers_that_the_config_means() {
    let windows = |model_type: &str, more: &str| {
        let text = format!(
            r#"{{"model_type":"{model_type}","hidden_size":64,"num_hidden_layers":8,"num_attention_heads":4,
            "intermediate_size":8,"vocab_size":9,"sliding_window":32{more}}}"#
        );
        let layers = Architecture::parse(text.as_bytes()).expect("reads").layers;
        layers.iter().map(|layer| if layer.window.is_some() { 'w' } else { '-' }).collect::<String>()
    };
    for (model_type, more, wanted) in [
        ("mistral", "", "wwwwwwww"),
        ("gemma2", "", "w-w-w-w-"),
        ("gemma3_text", "", "wwwww-ww"),
        ("cohere2", "", "www-www-"),
        ("gemma3_text", r#","sliding_window_pattern":4"#, "www-www-"),
        ("qwen2", r#","use_sliding_window":false,"max_window_layers":6"#, "--------"),
        ("qwen2", r#","use_sliding_window":true,"max_window_layers":6"#, "------ww"),
        ("somebody_elses", "", "--------"),
    ] {
        assert_eq!(windows(model_type, more), wanted, "{model_type} {more}");
    }
}

#[test]
fn experts_are_in_those_layers_that_the_config_means() {
    let layers = |more: &str| {
        let text = format!(
            r#"{{"model_type":"qwen3_moe","hidden_size":64,"num_hidden_layers":6,"num_attention_heads":4,
            "intermediate_size":8,"moe_intermediate_size":4,"vocab_size":9,"num_experts":4{more}}}"#
        );
        let layers = Architecture::parse(text.as_bytes()).expect("reads").layers;
        layers.iter().map(|layer| if layer.mlp == Mlp::Experts { 'e' } else { '-' }).collect::<String>()
    };
    for (more, wanted) in [
        ("", "eeeeee"),
        (r#","first_k_dense_replace":2"#, "--eeee"),
        (r#","moe_layer_freq":2"#, "e-e-e-"),
        (r#","moe_layer_freq":[0,1,1,0,1,1]"#, "-ee-ee"),
        (r#","decoder_sparse_step":2"#, "-e-e-e"),
        (r#","mlp_only_layers":[1,4]"#, "e-ee-e"),
        (r#","mlp_layer_types":["dense","sparse","sparse","sparse","sparse","dense"]"#, "-eeee-"),
    ] {
        assert_eq!(layers(more), wanted, "{more}");
    }
}
