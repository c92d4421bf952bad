//! The probe at work: rounds at their times until it is told to end.

use std::io;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;

use cic_common::gpu::{ProbeFault, ProbeMessage};
use cic_common::time::Clock;
use nvml_wrapper::Nvml;

use crate::args::Args;
use crate::events::{Watch, register};
use crate::lock::Lock;
use crate::nvml;
use crate::round::{Gpus, RoundError};
use crate::voice::Voice;
use crate::wish::{Wish, Wishes};

/// Runs until the agent or a signal asks for the end. It ends well whatever the driver does: what is wrong is said.
pub(crate) fn run(args: &Args) -> ExitCode {
    match speak(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cic-gpu-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn speak(args: &Args) -> io::Result<()> {
    let wishes = Wishes::listen()?;
    Voice.say(&ProbeMessage::Started { version: env!("CARGO_PKG_VERSION").to_owned() })?;
    let fault = match begin(args)? {
        Ok((nvml, _lock)) => {
            let fault = attend(args, &nvml, &wishes);
            // Nothing of the driver is in use any more; what it answers changes nothing.
            let _ = nvml.shutdown();
            fault?
        }
        Err(fault) => Some(fault),
    };
    match fault {
        Some(fault) => Voice.say(&ProbeMessage::Failed { fault }),
        None => Ok(()),
    }
}

fn begin(args: &Args) -> io::Result<Result<(Nvml, Option<Lock>), ProbeFault>> {
    let lock = match args.lock.as_deref().map(Lock::take).transpose() {
        Ok(lock) => lock,
        Err(fault) => return Ok(Err(fault)),
    };
    Voice.calling("nvmlInit")?;
    let nvml = match nvml::open() {
        Ok(nvml) => nvml,
        Err(fault) => return Ok(Err(fault)),
    };
    Voice.say(&ProbeMessage::Ready { inventory: nvml::inventory(&nvml) })?;
    Ok(Ok((nvml, lock)))
}

/// Samples and tells of XIDs until the end is wished for, or the driver is of no more use.
fn attend(args: &Args, nvml: &Nvml, wishes: &Wishes) -> io::Result<Option<ProbeFault>> {
    nvml::open_gpus(nvml, Voice)?;
    Voice.calling("register for XIDs")?;
    let registered = register(nvml);
    let (go_on, stop) = channel();
    let watch = Watch::new(nvml, Voice, stop);
    thread::scope(|threads| {
        threads.spawn(move || watch.run(registered));
        let ended = sample(args, nvml, wishes);
        drop(go_on);
        ended
    })
}

fn sample(args: &Args, nvml: &Nvml, wishes: &Wishes) -> io::Result<Option<ProbeFault>> {
    let clock = Clock::start();
    let mut gpus = Gpus::default();
    let mut full_due = clock.now();
    let mut is_full = true;
    loop {
        match gpus.sample(nvml, is_full, Some(Voice)) {
            Ok(sampled) => Voice.say(&sampled)?,
            Err(RoundError::Driver(fault)) => return Ok(Some(fault)),
            Err(RoundError::Deaf(error)) => return Err(error),
        }
        let now = clock.now();
        if is_full {
            full_due = now + args.full_every();
        }
        // From the end of a round: a slow driver is asked less often, not without a pause.
        is_full = match wishes.next_within(args.cheap_every()) {
            Some(Wish::End) => return Ok(None),
            Some(Wish::Sample) => false,
            None => clock.now() >= full_due,
        };
    }
}
