//! Answers as server-sent events, in the order and shape of vLLM.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{SelectAll, Stream, StreamExt, unfold};
use serde_json::Value;

use crate::generation::{Generation, Piece, Step};
use crate::reply::{ApiError, Envelope, Usage};
use crate::request::Job;
use crate::tokens::Token;

/// The events of one streamed request. Dropping the stream drops its generations, which aborts them.
pub(crate) fn events(job: &Job, generations: Vec<Generation>) -> impl Stream<Item = Bytes> + Send + use<> {
    unfold(Events::new(job, generations), |mut events| async {
        events.next().await.map(|event| (event, events))
    })
}

struct Events {
    envelope: Envelope,
    is_chat: bool,
    with_usage: bool,
    steps: SelectAll<Pin<Box<dyn Stream<Item = Step> + Send>>>,
    prompts: Vec<Vec<Token>>,
    begun: BTreeSet<usize>,
    usage: Usage,
    ready: VecDeque<Bytes>,
    is_over: bool,
}

impl Events {
    fn new(job: &Job, generations: Vec<Generation>) -> Self {
        let prompts = generations.iter().map(|generation| generation.prompt().to_vec()).collect();
        let steps = generations.into_iter().map(|generation| {
            let steps = unfold(generation, |mut generation| async {
                generation.next().await.map(|step| (step, generation))
            });
            Box::pin(steps) as Pin<Box<dyn Stream<Item = Step> + Send>>
        });
        Self {
            envelope: Envelope::new(job),
            is_chat: job.is_chat,
            with_usage: job.with_usage,
            steps: steps.collect(),
            prompts,
            begun: BTreeSet::new(),
            usage: Usage { prompt_tokens: job.prompts.iter().map(Vec::len).sum(), completion_tokens: 0 },
            ready: VecDeque::new(),
            is_over: false,
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.steps.next().await {
                Some(Step::Piece(piece)) => self.add(&piece),
                Some(Step::CoreDied) => self.end(Some(ApiError::core_is_dead().body())),
                None => {
                    let usage = self.with_usage.then(|| self.envelope.usage(self.usage));
                    self.end(usage);
                }
            }
        }
    }

    fn add(&mut self, piece: &Piece) {
        let is_first = self.begun.insert(piece.index);
        let prompt = &self.prompts[piece.index];
        if is_first && self.is_chat {
            self.ready.push_back(data(&self.envelope.role(piece.index, prompt, self.usage)));
        }
        self.usage.completion_tokens += piece.tokens.len();
        let prompt = (is_first && !self.is_chat).then_some(prompt.as_slice());
        self.ready.push_back(data(&self.envelope.piece(piece, prompt, self.usage)));
    }

    fn end(&mut self, last: Option<Value>) {
        self.ready.extend(last.as_ref().map(data));
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.is_over = true;
    }
}

fn data(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}
