//! Finds another replica for a stream that was cut, and has it go on.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cic_common::id::NodeId;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::keeper::{Keeper, Seam};
use super::rule::COMPLETIONS;
use super::stream::{Part, Ticket};
use crate::serve::edge::attempt::is_event_stream;
use crate::serve::edge::errand::{Errand, Found};
use crate::serve::edge::front::Edge;
use crate::serve::edge::request::Buffered;

/// vLLM's decoder, and what stands at the end of its text while a character is not whole.
const DETOKENIZE: &str = "/detokenize";
const NOT_WHOLE: char = '\u{FFFD}';

/// One replica has so long for the first event of a continuation. Its prompt is processed anew, tens of thousands of
/// tokens in seconds; an engine that hangs must not keep the stream while another could go on.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Tokens decoded to find the characters that were held back for stop strings, beyond one token for each of them.
const PROOF_TOKENS: usize = 64;

/// Distinct tokens that are decoded one by one, a millisecond or two each.
const SPELLED_MAX: usize = 160;

/// How it went on, if it did.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) keeper: Box<Keeper>,
    /// What the client gets at once.
    pub(super) out: BytesMut,
    /// `None` when nothing is left to generate.
    pub(super) next: Result<Option<Part>, Lost>,
}

/// Why a stream could not go on.
#[derive(Debug)]
pub(super) enum Lost {
    /// It would not have been exact.
    NotExact(String),
    /// No replica took it.
    NoReplica(String),
}

/// Has another replica than `lost` go on with the stream.
pub(super) async fn go_on(edge: Edge, ticket: Ticket, mut keeper: Box<Keeper>, lost: NodeId) -> Outcome {
    let mut out = BytesMut::new();
    let next = resume(&edge, &ticket, &mut keeper, lost, &mut out).await;
    Outcome { keeper, out, next }
}

async fn resume(
    edge: &Edge,
    ticket: &Ticket,
    keeper: &mut Keeper,
    lost: NodeId,
    out: &mut BytesMut,
) -> Result<Option<Part>, Lost> {
    let asker = Asker { edge, ticket, lost };
    if let Some(why) = keeper.unkeepable() {
        return Err(Lost::NotExact(why.to_owned()));
    }
    if keeper.is_fresh() || keeper.begins_anew() {
        return asker.stream(ticket.request.clone()).await.map(Some);
    }
    let seam = match keeper.seam() {
        Seam::At(seam) => seam,
        Seam::Within { clean, from, to } => {
            asker.last_whole(&keeper.emitted[clean..to], to - from).await? + clean
        }
    };
    let held = match keeper.held_chars() {
        0 => String::new(),
        chars => {
            let begin = seam.saturating_sub(chars + PROOF_TOKENS);
            let tokens = &keeper.emitted[begin..seam];
            match keeper.held_in(&asker.decoded(tokens).await?) {
                Ok(held) => held,
                // The decoder spells special tokens out, which answers leave out.
                Err(_) => {
                    let spoken = asker.without_special(tokens).await?;
                    keeper.held_in(&asker.decoded(&spoken).await?).map_err(Lost::NotExact)?
                }
            }
        }
    };
    let is_stop_engines = keeper.turn(seam, held).map_err(Lost::NotExact)?;
    let tokens_max = match keeper.tokens_left(seam) {
        Some(0) => {
            keeper.finish_by_length(out);
            return Ok(None);
        }
        Some(left) => left,
        None => asker.context_left(keeper.prompt.len() + seam).await?,
    };
    let body = keeper.terms.resumed(&keeper.prompt, &keeper.emitted, tokens_max, is_stop_engines);
    asker.stream(ticket.request.derived(COMPLETIONS, Some(body))).await.map(Some)
}

/// Asks replicas for what a continuation needs.
struct Asker<'a> {
    edge: &'a Edge,
    ticket: &'a Ticket,
    lost: NodeId,
}

#[derive(Deserialize)]
struct Decoded {
    prompt: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<u32>,
}

impl Asker<'_> {
    async fn found(&self, request: Buffered) -> Result<Found, Lost> {
        let errand = Errand::new(self.ticket.model.clone(), request, self.edge.now());
        let mut errand = errand.passing(self.lost.clone()).answered_within(ANSWER_WITHIN);
        let Ok(found) = self.edge.find(&mut errand).await else {
            return Err(Lost::NoReplica(errand.last_why));
        };
        let status = found.held.head.status;
        if status == StatusCode::OK {
            return Ok(found);
        }
        Err(Lost::NotExact(format!("{} answered {status} to its continuation", found.node)))
    }

    async fn stream(&self, request: Buffered) -> Result<Part, Lost> {
        let found = self.found(request).await?;
        if is_event_stream(&found.held.head.headers) {
            return Ok(Part::new(found));
        }
        Err(Lost::NotExact(format!("{} did not stream its continuation", found.node)))
    }

    async fn json<T: for<'de> Deserialize<'de>>(&self, path: &str, body: Option<Bytes>) -> Result<T, Lost> {
        let found = self.found(self.ticket.request.derived(path, body)).await?;
        let whole = found.held.whole();
        serde_json::from_slice(&whole)
            .map_err(|error| Lost::NotExact(format!("{} answered {path} with {error}", found.node)))
    }

    async fn decoded(&self, tokens: &[u32]) -> Result<String, Lost> {
        let body = json!({"model": self.ticket.model, "tokens": tokens}).to_string();
        let decoded: Decoded = self.json(DETOKENIZE, Some(body.into())).await?;
        Ok(decoded.prompt)
    }

    /// `tokens` less those that are spelled as special tokens are: `<|im_end|>`, `</s>`, `[INST]`. What is made of them is
    /// compared with what the client has.
    async fn without_special(&self, tokens: &[u32]) -> Result<Vec<u32>, Lost> {
        let distinct: BTreeSet<u32> = tokens.iter().copied().collect();
        if distinct.len() > SPELLED_MAX {
            return Err(Lost::NotExact("its stop strings cannot be followed across the cut".to_owned()));
        }
        let mut special = BTreeSet::new();
        for token in distinct {
            let text = self.decoded(&[token]).await?;
            if text.len() > 2 && text.starts_with(['<', '[']) && text.ends_with(['>', ']']) {
                special.insert(token);
            }
        }
        Ok(tokens.iter().copied().filter(|token| !special.contains(token)).collect())
    }

    /// How many of `tokens`, of which the last `doubtful` came in one event with text, end in a whole character.
    async fn last_whole(&self, tokens: &[u32], doubtful: usize) -> Result<usize, Lost> {
        let (mut count, at_least) = (tokens.len(), tokens.len() - doubtful + 1);
        while count > at_least && self.decoded(&tokens[..count]).await?.ends_with(NOT_WHOLE) {
            count -= 1;
        }
        Ok(count)
    }

    async fn context_left(&self, used: usize) -> Result<u32, Lost> {
        let models: Models = self.json("/v1/models", None).await?;
        let is_ours = |model: &&Model| model.id == self.ticket.model;
        let model = models.data.iter().find(is_ours).or(models.data.first());
        let context = model.and_then(|model| model.max_model_len);
        let context =
            context.ok_or_else(|| Lost::NotExact("the engine tells no context length".to_owned()))?;
        Ok(context.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)).max(1))
    }
}
