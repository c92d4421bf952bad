//! All that may happen, and what must hold whatever happens.

use cic_common::id::Term;
use cic_controller::ha::{LeaseEvent, LeaseTiming, Request};
use stateright::{Model, Property};

use super::database::Database;
use super::process::Machine;

/// Names of the properties.
pub(crate) const ONE_ACTS: &str = "no two may act at one moment";
const NO_LATE_ACT: &str =
    "no act of a term comes after a higher term was recorded, but one in hand at a pause";
const FENCED: &str = "nothing is recorded under a term that is over";
const FORWARD: &str = "terms only rise";
const SOON: &str = "when the database answers, somebody leads soon";
const AFTER_CRASH: &str = "another leads after the leader died";
const AFTER_HAND_OVER: &str = "another leads after a hand-over";
const BACK: &str = "one that was cut off for longer than its lease renews it when nobody took it";
const IN_HAND: &str = "an act that was in hand at a pause comes late";

/// How much of each is tried.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) ticks_max: u8,
    pub(crate) crashes_max: u8,
    pub(crate) hand_overs_max: u8,
    /// Requests and answers that those who asked do not wait for.
    pub(crate) given_up_max: u8,
    /// Pauses between the check of the lease and the act.
    pub(crate) pauses_max: u8,
}

/// The model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fleet {
    pub(crate) controllers: usize,
    pub(crate) timing: LeaseTiming,
    pub(crate) bounds: Bounds,
    /// Time passes only when nobody has anything to do, and nothing is lost.
    pub(crate) is_prompt: bool,
    /// Whether the controllers' clocks differ from the database's by what the margin allows.
    pub(crate) is_skewed: bool,
}

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    database: Database,
    machines: Vec<Machine>,
    /// Requests that nobody waits for any more. They are applied at some time, or never.
    strays: Vec<(usize, Request)>,
    given_up: u8,
    crashes: u8,
    hand_overs: u8,
    pauses: u8,
    /// Whether the last who led died, or gave it up, and what its term was.
    gone: Option<(Gone, usize)>,
    /// When somebody last could act, or nobody was there, or something was done to them.
    well_at: u8,
    was_out_of_time: bool,
    came_back: bool,
    is_late_in_hand: bool,
    broken: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gone {
    Died,
    HandedOver,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A tick of the database; by how many each controller's clock moves meanwhile.
    Pass(Vec<u8>),
    /// A controller notices the time.
    Notice(usize),
    /// The database applies its request.
    Apply(usize),
    Answer(usize),
    GiveUp(usize),
    ApplyStray(usize),
    /// It asks the store to record an act.
    Record(usize),
    /// It looks at its lease and acts.
    Act(usize),
    /// It looks at its lease and is paused.
    Pause(usize),
    /// It goes on with what it was about to do.
    Resume(usize),
    Die(usize),
    Start(usize),
    HandOver(usize),
}

impl Fleet {
    fn passes(&self, state: &State) -> Vec<Step> {
        let mut passes = vec![Vec::new()];
        for machine in &state.machines {
            // A clock that is ahead by one may stand still, one that is not may run twice as fast.
            let moves: &[u8] = match (self.is_skewed, machine.ahead) {
                (false, _) => &[1],
                (true, 0) => &[1, 2],
                (true, _) => &[0, 1],
            };
            passes = passes
                .into_iter()
                .flat_map(|pass| {
                    moves.iter().map(move |moved| {
                        let mut pass: Vec<u8> = pass.clone();
                        pass.push(*moved);
                        pass
                    })
                })
                .collect();
        }
        passes.into_iter().map(Step::Pass).collect()
    }

    fn own_steps(&self, state: &State, number: usize, steps: &mut Vec<Step>) {
        let (machine, now) = (&state.machines[number], state.database.now);
        let Some(process) = &machine.process else {
            steps.push(Step::Start(number));
            return;
        };
        if machine.is_due(now) {
            steps.push(Step::Notice(number));
        }
        if let Some(way) = &process.way {
            match way.answer {
                None => steps.push(Step::Apply(number)),
                Some(_) => steps.push(Step::Answer(number)),
            }
            if state.given_up < self.bounds.given_up_max {
                steps.push(Step::GiveUp(number));
            }
        }
    }

    fn acts(&self, state: &State, number: usize, steps: &mut Vec<Step>) {
        let (machine, now) = (&state.machines[number], state.database.now);
        let Some(process) = &machine.process else { return };
        if let Some(term) = process.leads
            && state.database.recorded < term
        {
            steps.push(Step::Record(number));
        }
        if process.hand.is_some() {
            steps.push(Step::Resume(number));
        } else if machine.acts(now).is_some() {
            steps.push(Step::Act(number));
            if state.pauses < self.bounds.pauses_max {
                steps.push(Step::Pause(number));
            }
        }
        if state.crashes < self.bounds.crashes_max {
            steps.push(Step::Die(number));
        }
        if state.hand_overs < self.bounds.hand_overs_max && process.leads.is_some() {
            steps.push(Step::HandOver(number));
        }
    }
}

impl State {
    fn hear(&mut self, number: usize, event: LeaseEvent) {
        let is_forward = self.machines[number].hear(self.database.now, event);
        self.forward(is_forward);
    }

    fn forward(&mut self, is_forward: bool) {
        if !is_forward {
            self.broken = Some(FORWARD);
        }
    }

    fn apply(&mut self, from: usize, request: Request, timing: &LeaseTiming) -> cic_controller::ha::Answer {
        let before = self.database.term();
        let answer = self.database.apply(from, request, timing);
        self.forward(self.database.term() >= before);
        answer
    }

    fn acting(&self) -> impl Iterator<Item = (usize, Term)> {
        let now = self.database.now;
        self.machines
            .iter()
            .enumerate()
            .filter_map(move |(number, machine)| Some((number, machine.acts(now)?)))
    }

    fn take(&mut self, step: &Step, fleet: &Fleet) {
        let now = self.database.now;
        match *step {
            Step::Pass(ref moves) => {
                self.database.pass();
                if fleet.is_prompt {
                    // A prompt database has taken what a dead controller had sent, or it was never sent.
                    self.strays.clear();
                }
                for (machine, moved) in self.machines.iter_mut().zip(moves) {
                    machine.ahead = machine.ahead + moved - 1;
                }
            }
            Step::Notice(number) => self.hear(number, LeaseEvent::Tick),
            Step::Apply(number) => {
                let request = self.machines[number].process.as_ref().and_then(|it| it.way.as_ref());
                let Some(request) = request.map(|way| way.request) else { return };
                let answer = self.apply(number, request, &fleet.timing);
                if let Some(way) = self.machines[number].process.as_mut().and_then(|it| it.way.as_mut()) {
                    way.answer = Some(answer);
                }
            }
            Step::Answer(number) => {
                let (is_forward, _) = self.machines[number].answered(now, false);
                self.forward(is_forward);
            }
            Step::GiveUp(number) => {
                let (is_forward, stray) = self.machines[number].answered(now, true);
                self.forward(is_forward);
                self.given_up += 1;
                self.strays.extend(stray.map(|request| (number, request)));
            }
            Step::ApplyStray(index) => {
                let (from, request) = self.strays.remove(index);
                self.apply(from, request, &fleet.timing);
            }
            Step::Record(number) => self.record(number),
            Step::Act(number) => {
                // Whatever it acts on was recorded before.
                if self.machines[number].acts(now).is_some_and(|term| term < self.database.recorded) {
                    self.broken = Some(NO_LATE_ACT);
                }
            }
            Step::Pause(number) => {
                let term = self.machines[number].acts(now);
                if let Some(process) = &mut self.machines[number].process {
                    process.hand = term;
                }
                self.pauses += 1;
            }
            Step::Resume(number) => {
                let hand = self.machines[number].process.as_mut().and_then(|process| process.hand.take());
                self.is_late_in_hand |= hand.is_some_and(|term| term < self.database.recorded);
            }
            Step::Die(number) => {
                let machine = &mut self.machines[number];
                let Some(process) = machine.process.take() else { return };
                let on_its_way = process.way.filter(|way| way.answer.is_none()).map(|way| way.request);
                self.strays.extend(on_its_way.map(|request| (number, request)));
                self.crashes += 1;
                if process.leads.is_some() {
                    self.gone = Some((Gone::Died, number));
                }
                self.well_at = now;
            }
            Step::Start(number) => self.machines[number].start(now, fleet.timing),
            Step::HandOver(number) => {
                self.hand_overs += 1;
                self.gone = Some((Gone::HandedOver, number));
                self.hear(number, LeaseEvent::HandOver);
                self.well_at = now;
            }
        }
    }

    fn record(&mut self, number: usize) {
        let Some(term) = self.machines[number].process.as_ref().and_then(|process| process.leads) else {
            return;
        };
        let newest = self.database.term();
        if !self.database.record(term) {
            self.hear(number, LeaseEvent::Fenced { term });
        } else if term < newest {
            self.broken = Some(FENCED);
        }
    }

    /// What the properties ask for is written down once it happened.
    fn observe(&mut self, fleet: &Fleet) {
        let acting: Vec<(usize, Term)> = self.acting().collect();
        let is_all_dead = self.machines.iter().all(|machine| machine.process.is_none());
        if is_all_dead || !acting.is_empty() {
            self.well_at = self.database.now;
        }
        if !fleet.is_prompt {
            // Of no meaning there, and each value of it another state.
            self.well_at = 0;
        }
        if !acting.is_empty() {
            self.came_back |= self.was_out_of_time && acting.iter().any(|(_, term)| *term == Term(1));
        }
        let is_out = |machine: &Machine| {
            let leads = machine.process.as_ref().and_then(|process| process.leads);
            leads == Some(Term(1)) && machine.acts(self.database.now).is_none()
        };
        self.was_out_of_time |= self.machines.iter().any(is_out);
    }

    fn is_followed(&self, gone: Gone) -> bool {
        self.gone.is_some_and(|(how, who)| how == gone && self.acting().any(|(number, _)| number != who))
    }
}

impl Model for Fleet {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            database: Database::new(),
            machines: (0..self.controllers).map(|_| Machine::new(0, self.timing)).collect(),
            strays: Vec::new(),
            given_up: 0,
            crashes: 0,
            hand_overs: 0,
            pauses: 0,
            gone: None,
            well_at: 0,
            was_out_of_time: false,
            came_back: false,
            is_late_in_hand: false,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for number in 0..self.controllers {
            self.own_steps(state, number, steps);
        }
        let is_idle = steps.iter().all(|step| matches!(step, Step::Start(_)));
        for number in 0..self.controllers {
            self.acts(state, number, steps);
        }
        steps.extend((0..state.strays.len()).map(Step::ApplyStray));
        if state.database.now < self.bounds.ticks_max && (is_idle || !self.is_prompt) {
            steps.extend(self.passes(state));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut next = last.clone();
        next.take(&step, self);
        next.observe(self);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_ACTS, |_, state: &State| state.acting().count() <= 1),
            Property::always(NO_LATE_ACT, |_, state: &State| state.broken != Some(NO_LATE_ACT)),
            Property::always(FENCED, |_, state: &State| state.broken != Some(FENCED)),
            Property::always(FORWARD, |_, state: &State| state.broken != Some(FORWARD)),
        ];
        // What shall be seen at least once, where it can be.
        if self.bounds.crashes_max > 0 {
            properties
                .push(Property::sometimes(AFTER_CRASH, |_, state: &State| state.is_followed(Gone::Died)));
        }
        if self.bounds.hand_overs_max > 0 {
            let is_followed = |_: &Self, state: &State| state.is_followed(Gone::HandedOver);
            properties.push(Property::sometimes(AFTER_HAND_OVER, is_followed));
        }
        if self.bounds.pauses_max > 0 {
            properties.push(Property::sometimes(IN_HAND, |_, state: &State| state.is_late_in_hand));
        }
        if self.is_prompt {
            properties.push(Property::always(SOON, |fleet: &Self, state: &State| {
                // The span of who is gone, a look at it, and the ticks at which those are noticed.
                let within = fleet.timing.span + fleet.timing.look_every + fleet.timing.look_every;
                u64::from(state.database.now - state.well_at) <= within.as_secs()
            }));
        } else {
            properties.push(Property::sometimes(BACK, |_, state: &State| state.came_back));
        }
        properties
    }
}
