//! `cic dev` from its first check to its last process.

use std::time::Duration;

use cic_common::time::Clock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::args::DevArgs;
use super::super::failure::Failure;
use super::super::screen::Screen;
use super::super::shown::Shown;
use super::super::style::Style;
use super::completion;
use super::fleet::Fleet;
use super::live::{Live, Readiness, readiness};
use super::place::{self, Place};
use super::plan::Plan;

/// Between two looks at the fleet.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// `--once` gives up after this: two vLLM on two loaded cores took 5 minutes.
const READY_WITHIN: Duration = Duration::from_secs(900);

/// `api`: what `--api` or `CIC_API` says.
pub(in crate::cli) async fn run(args: &DevArgs, api: Option<&str>) -> Result<(), Failure> {
    let clock = Clock::start();
    // CIC_API tells other commands where to look; it need not be an address of this machine.
    let from_environment = std::env::var("CIC_API").ok();
    let api = api.filter(|api| from_environment.as_deref() != Some(api));
    let program =
        std::env::current_exe().map_err(|error| Failure::new(format!("cannot find itself: {error}")))?;
    let beside = program.parent().unwrap_or(&program);
    // What a killed fleet left may hold the ports that this one wants.
    place::bury_the_dead(args.dir.as_deref()).await?;
    let plan = Plan::check(args, api, beside).map_err(Failure::mistakes)?;
    let mut stop = Stop::listen()?;
    let place = Place::take(args.dir.as_deref()).await?;
    let mut fleet = Fleet::new(plan, place, clock);
    let mut live = Live::new(Screen::new(Style::of_stdout()));
    for remark in fleet.plan.remarks.clone() {
        live.say(&fleet, &remark);
    }
    let outcome = serve(&mut fleet, &mut live, &mut stop, args).await;
    live.screen.clear();
    live.say(&fleet, "stopping everything");
    let (dir, is_temporary) = (fleet.place.dir.clone(), fleet.place.is_temporary);
    let ended = fleet.end().await;
    if ended.is_ok() {
        let kept = if is_temporary { String::new() } else { format!("; files stay in {}", dir.display()) };
        println!("stopped: no process of this fleet is left{kept}");
    }
    outcome.and(ended.map(drop))
}

/// `--once` promises an answer; without it a person ends the fleet when they like.
fn interrupted(args: &DevArgs) -> Result<(), Failure> {
    if args.once { Err(Failure::new("interrupted")) } else { Ok(()) }
}

async fn serve(fleet: &mut Fleet, live: &mut Live, stop: &mut Stop, args: &DevArgs) -> Result<(), Failure> {
    live.say(fleet, &format!("starting a fleet in {}", fleet.place.dir.display()));
    // Cancel safe: a start cut short is ended like any other.
    tokio::select! {
        started = fleet.start() => started?,
        () = stop.asked() => return interrupted(args),
    }
    let engine = fleet.plan.engine.program.clone();
    live.say(
        fleet,
        &format!("controller http://{}, {} replicas of {engine}", fleet.plan.api, fleet.plan.replicas),
    );
    let mut is_ready = false;
    loop {
        // Cancel safe: a look cut short is taken again.
        let shown = tokio::select! {
            shown = look(fleet) => shown,
            () = stop.asked() => return interrupted(args),
        };
        match shown {
            Ok(shown) => match (readiness(fleet, &shown), is_ready) {
                (Readiness::Ready, false) => {
                    is_ready = true;
                    live.show(fleet, &shown, &Readiness::Ready);
                    announce(fleet, live);
                    if args.once {
                        return tokio::select! {
                            asked = ask_once(fleet, live, &args.prompt) => asked,
                            () = stop.asked() => Err(Failure::new("interrupted")),
                        };
                    }
                }
                (Readiness::Failed { what, log }, false) => {
                    return Err(Failure::new(format!("{what}; the end of its log:")).with(log));
                }
                (readiness, _) => live.show(fleet, &shown, &readiness),
            },
            // Its way out is for other commands: here the controller is started again.
            Err(failure) => {
                let text = failure.to_string();
                live.show_silence(fleet, text.split("; ").next().unwrap_or(&text));
            }
        }
        if args.once && !is_ready && fleet.clock.now().since(fleet.began) > READY_WITHIN {
            return Err(Failure::new(format!("not ready within {} min", READY_WITHIN.as_secs() / 60)));
        }
        // Cancel safe: every arm only waits.
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            turn = fleet.turn(is_ready) => live.say(fleet, &turn?),
            () = stop.asked() => return interrupted(args),
        }
    }
}

async fn look(fleet: &Fleet) -> Result<Shown, Failure> {
    Shown::fetch(&fleet.client).await
}

fn announce(fleet: &Fleet, live: &mut Live) {
    let (edge, model) = (fleet.plan.edge, &fleet.plan.model_name);
    live.say(
        fleet,
        &format!("{} replicas serve {model:?}; OpenAI API at http://{edge}/v1", fleet.plan.replicas),
    );
}

async fn ask_once(fleet: &Fleet, live: &mut Live, prompt: &str) -> Result<(), Failure> {
    let ready = fleet.clock.now().since(fleet.began);
    let asked_at = fleet.clock.now();
    let answer = completion::ask(&fleet.plan, prompt).await?;
    let took = fleet.clock.now().since(asked_at);
    live.say(fleet, &format!("asked {prompt:?}, answered in {:.2} s: {answer:?}", took.as_secs_f64()));
    live.say(fleet, &format!("time to ready: {:.1} s", ready.as_secs_f64()));
    Ok(())
}

/// Ctrl-C, SIGTERM, or a terminal that was closed.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}")));
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self { signals: [listen(interrupt)?, listen(terminate)?, listen(hangup)?] })
    }

    /// Cancel safe.
    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
