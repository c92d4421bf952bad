//! What `/metrics` shows, under vLLM's names and labels.

use std::fmt::Write;
use std::time::Duration;

use crate::generation::FinishReason;

/// The bounds of vLLM 0.32's histograms.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// The size of the pretended cache, in tokens: what vLLM gives the tiny model for 1 GiB.
const CACHE_TOKENS: f64 = 1_048_576.0;

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    tokens_held: u64,
    prompt_tokens: u64,
    generation_tokens: u64,
    finished: [u64; FinishReason::ALL.len()],
    rejected: u64,
    step_tokens: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    request: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            running: 0,
            waiting: 0,
            tokens_held: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            finished: [0; FinishReason::ALL.len()],
            rejected: 0,
            step_tokens: Histogram::new(STEP_TOKENS),
            first_token: Histogram::new(FIRST_TOKEN_SECONDS),
            inter_token: Histogram::new(INTER_TOKEN_SECONDS),
            request: Histogram::new(REQUEST_SECONDS),
        }
    }

    pub(crate) fn reject(&mut self) {
        self.rejected += 1;
    }

    pub(crate) fn first_token(&mut self, after: Duration, prompt_tokens: usize) {
        self.prompt_tokens += prompt_tokens as u64;
        self.tokens_held += prompt_tokens as u64;
        self.first_token.observe(after.as_secs_f64());
        self.step(prompt_tokens as u64);
    }

    pub(crate) fn next_token(&mut self, after: Duration) {
        self.inter_token.observe(after.as_secs_f64());
        self.step(0);
    }

    /// One engine step of one request: its share of the prompt, and one token.
    fn step(&mut self, prompt_tokens: u64) {
        self.generation_tokens += 1;
        self.tokens_held += 1;
        self.step_tokens.observe((prompt_tokens + 1) as f64);
    }

    pub(crate) fn release(&mut self, tokens: usize) {
        self.tokens_held = self.tokens_held.saturating_sub(tokens as u64);
    }

    pub(crate) fn finish(&mut self, reason: FinishReason, after: Duration) {
        self.finished[reason as usize] += 1;
        self.request.observe(after.as_secs_f64());
    }

    pub(crate) fn render(&self, model: &str) -> String {
        let mut page = Page { text: String::new(), labels: format!("engine=\"0\",model_name=\"{model}\"") };
        page.gauge("vllm:num_requests_running", self.running as f64);
        page.gauge("vllm:num_requests_waiting", self.waiting as f64);
        page.family("vllm:engine_sleep_state", "gauge");
        for (state, value) in [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)] {
            page.labelled("vllm:engine_sleep_state", "sleep_state", state, value);
        }
        page.gauge("vllm:kv_cache_usage_perc", self.tokens_held as f64 / CACHE_TOKENS);
        page.counter("vllm:prefix_cache_queries_total", self.prompt_tokens as f64);
        page.counter("vllm:prefix_cache_hits_total", 0.0);
        page.counter("vllm:num_preemptions_total", 0.0);
        page.counter("vllm:prompt_tokens_total", self.prompt_tokens as f64);
        page.counter("vllm:generation_tokens_total", self.generation_tokens as f64);
        page.family("vllm:request_success_total", "counter");
        for reason in FinishReason::ALL {
            let count = self.finished[reason as usize] as f64;
            page.labelled("vllm:request_success_total", "finished_reason", reason.name(), count);
        }
        page.family("vllm:admission_rejections_total", "counter");
        page.labelled(
            "vllm:admission_rejections_total",
            "reason",
            "max_num_queued_reqs",
            self.rejected as f64,
        );
        page.histogram("vllm:iteration_tokens_total", &self.step_tokens);
        page.histogram("vllm:time_to_first_token_seconds", &self.first_token);
        page.histogram("vllm:inter_token_latency_seconds", &self.inter_token);
        page.histogram("vllm:e2e_request_latency_seconds", &self.request);
        page.text
    }
}

#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last counts what is above them all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }
}

/// Text of the Prometheus exposition format.
struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, extra: &str, value: f64) {
        let _ = writeln!(self.text, "{name}{{{}{extra}}} {value:?}", self.labels);
    }

    fn labelled(&mut self, name: &str, label: &str, value: &str, count: f64) {
        self.sample(name, &format!(",{label}=\"{value}\""), count);
    }

    fn gauge(&mut self, name: &str, value: f64) {
        self.family(name, "gauge");
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, value: f64) {
        self.family(name, "counter");
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.family(name, "histogram");
        let mut below = 0;
        for (index, count) in histogram.counts.iter().enumerate() {
            below += count;
            let bound = histogram.bounds.get(index).map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
            self.labelled(&format!("{name}_bucket"), "le", &bound, below as f64);
        }
        self.sample(&format!("{name}_count"), "", below as f64);
        self.sample(&format!("{name}_sum"), "", histogram.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_upwards_to_all() {
        let mut metrics = Metrics::new();
        metrics.first_token(Duration::from_millis(7), 5);
        metrics.next_token(Duration::from_secs(1000));
        let text = metrics.render("tiny");
        for line in [
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"tiny\",le=\"0.005\"} 0.0",
            "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"tiny\",le=\"0.01\"} 1.0",
            "vllm:inter_token_latency_seconds_bucket{engine=\"0\",model_name=\"tiny\",le=\"+Inf\"} 1.0",
            "vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"tiny\"} 2.0",
            "vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 2.0",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in\n{text}");
        }
    }
}
