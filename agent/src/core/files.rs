//! The model's files: found, fetched or compared, place by place.

use cic_common::report::{ModelProgress, Phase};
use cic_common::source::without_options;
use cic_common::time::Mono;

use super::Action;
use super::agent::Agent;
use super::bringup::heal_of;
use super::event::ModelFault;
use super::search::Place;
use super::stage::Stage;

impl Agent {
    /// Looks at one place of the search.
    pub(super) fn look(&mut self, now: Mono, place: Place, why: &str, out: &mut Vec<Action>) {
        let attempt = self.attempt;
        match place {
            Place::Directory(model) => {
                out.push(Action::MountModel { attempt, model });
                self.enter(now, Stage::Mounting { attempt }, why, out);
            }
            Place::Mount { url, at: model } => {
                let reason = format!("{why}; mounting {}", without_options(&url));
                out.push(Action::AttachModel { attempt, url, model });
                self.enter(now, Stage::Mounting { attempt }, &reason, out);
            }
            Place::Store { url, into: model } => {
                let reason = format!("{why}; fetching from {}", without_options(&url));
                out.push(Action::FetchModel { attempt, url, model });
                self.enter(now, Stage::Fetching { attempt }, &reason, out);
            }
        }
    }

    pub(super) fn mounted(
        &mut self,
        now: Mono,
        attempt: u32,
        result: Result<(), ModelFault>,
        out: &mut Vec<Action>,
    ) {
        if self.stage == (Stage::Mounting { attempt }) {
            self.there(now, Phase::Mounting, result, "model directory is there", out);
        }
    }

    pub(super) fn fetched(
        &mut self,
        now: Mono,
        attempt: u32,
        result: Result<(), ModelFault>,
        out: &mut Vec<Action>,
    ) {
        if self.stage == (Stage::Fetching { attempt }) {
            self.there(now, Phase::Mounting, result, "model is fetched", out);
        }
    }

    /// The directory is there and is verified, or the next place is looked at.
    fn there(
        &mut self,
        now: Mono,
        phase: Phase,
        result: Result<(), ModelFault>,
        why: &str,
        out: &mut Vec<Action>,
    ) {
        let Some(search) = &mut self.search else { return };
        match result {
            Ok(()) => {
                search.step_over();
                let attempt = self.attempt;
                out.push(Action::VerifyModel { attempt, model: search.directory() });
                self.enter(now, Stage::Verifying { attempt }, why, out);
            }
            Err(fault) => self.pass_over(now, phase, fault, out),
        }
    }

    /// Goes on to the next place, or fails when there is none.
    fn pass_over(&mut self, now: Mono, phase: Phase, fault: ModelFault, out: &mut Vec<Action>) {
        let Some(search) = &mut self.search else { return };
        match search.pass(fault) {
            Some(place) => {
                let why = format!("ModelNotCached: {}", search.tried());
                self.look(now, place, &why, out);
            }
            None => {
                let (reason, may_heal) = search.verdict();
                self.fail(now, phase, reason, heal_of(may_heal), out);
            }
        }
    }

    pub(super) fn verified(
        &mut self,
        now: Mono,
        attempt: u32,
        result: Result<(), ModelFault>,
        out: &mut Vec<Action>,
    ) {
        if self.stage != (Stage::Verifying { attempt }) {
            return;
        }
        if let Err(fault) = result {
            return self.pass_over(now, Phase::Verifying, fault, out);
        }
        let Some(search) = &mut self.search else { return };
        search.step_over();
        let (model, tried) = (search.directory(), search.tried());
        let mut why = "every shard is there; checking flags, memory and driver".to_owned();
        if !tried.is_empty() {
            why.push_str(&format!("; found at {}, passed over: {tried}", model.path));
        }
        // Without the first word on the GPUs their baseline would be lost, and a check of memory be a guess.
        let until = now + self.spec.timing.gpu_wait;
        self.enter(now, Stage::Checking { attempt, is_asked: self.gpus_heard, until }, &why, out);
        out.push(Action::WarmModel { model: model.clone() });
        if self.spec.has_store {
            out.push(Action::NameModel { attempt, model });
        }
        if self.gpus_heard {
            self.ask_for_check(attempt, out);
        }
    }

    /// How far a step of the search has come.
    pub(super) fn model_moved(&mut self, now: Mono, attempt: u32, done_bytes: u64, all_bytes: u64) {
        // Nothing of nothing: it waits for another process.
        if self.stage.is_on_files()
            && self.attempt == attempt
            && all_bytes > 0
            && let Some(search) = &mut self.search
        {
            search.heard(now, done_bytes, all_bytes);
        }
    }

    pub(super) fn model_progress(&self) -> Option<ModelProgress> {
        self.search.as_ref().filter(|_| self.stage.is_on_files())?.progress()
    }

    /// Where the model of the current attempt was found.
    pub(super) fn model_directory(&self) -> Option<String> {
        Some(self.search.as_ref()?.directory().path)
    }
}
