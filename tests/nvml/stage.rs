//! Where every call passes: it is logged, and it hangs or fails where the script says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST as GPU_IS_LOST,
    nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT, nvmlReturn_enum_NVML_SUCCESS as SUCCESS,
    nvmlReturn_t,
};

use crate::script::{Gpu, Script, Xid};

/// How often a call that hangs or waits looks at the script.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A return code other than success.
pub(crate) type Code = nvmlReturn_t;

#[derive(Default)]
struct Stage {
    /// The script as text, and what it says.
    script: Option<(String, Arc<Script>)>,
    /// Ids of XIDs that were delivered, or were over when this process initialised.
    delivered: BTreeSet<u64>,
    /// Numbers of the GPUs that each event set listens to.
    sets: BTreeMap<usize, BTreeSet<usize>>,
    set_count: usize,
}

static STAGE: Mutex<Option<Stage>> = Mutex::new(None);

fn on_stage<T>(act: impl FnOnce(&mut Stage) -> T) -> T {
    let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    act(stage.get_or_insert_default())
}

/// The script as it is now; the last one that made sense while it does not.
pub(crate) fn current() -> Arc<Script> {
    let text = std::env::var_os("CIC_NVML_SCRIPT").and_then(|path| std::fs::read_to_string(path).ok());
    on_stage(|stage| {
        let text = text.unwrap_or_else(|| "{}".to_owned());
        if let Some((known, script)) = &stage.script
            && *known == text
        {
            return Arc::clone(script);
        }
        match serde_json::from_str::<Script>(&text) {
            Ok(script) => {
                let script = Arc::new(script);
                stage.script = Some((text, Arc::clone(&script)));
                script
            }
            Err(error) => {
                eprintln!("nvml-mock: script: {error}");
                stage.script.as_ref().map(|(_, script)| Arc::clone(script)).unwrap_or_default()
            }
        }
    })
}

/// Answers a call that is about no GPU.
pub(crate) fn answer(function: &str, act: impl FnOnce(&Script) -> Result<(), Code>) -> nvmlReturn_t {
    answer_about(function, None, act)
}

/// Answers a call that names the GPU of this number and needs nothing of it.
pub(crate) fn answer_about(
    function: &str,
    number: Option<usize>,
    act: impl FnOnce(&Script) -> Result<(), Code>,
) -> nvmlReturn_t {
    code(enter(function, number).and_then(|script| act(&script)))
}

/// Answers a call about the GPU of this number.
pub(crate) fn answer_for(
    function: &str,
    number: usize,
    act: impl FnOnce(&Gpu) -> Result<(), Code>,
) -> nvmlReturn_t {
    let answer = || {
        let script = enter(function, Some(number))?;
        let gpu = script.gpu(number).ok_or(GPU_IS_LOST)?;
        if gpu.lost { Err(GPU_IS_LOST) } else { act(&gpu) }
    };
    code(answer())
}

fn code(result: Result<(), Code>) -> nvmlReturn_t {
    result.err().unwrap_or(SUCCESS)
}

/// Logs the call, hangs if it is to hang, and fails if it is to fail.
fn enter(function: &str, number: Option<usize>) -> Result<Arc<Script>, Code> {
    let precise = number.map(|number| format!("{function}:{number}"));
    let names = || std::iter::once(function).chain(precise.as_deref());
    let script = current();
    if let Some(path) = &script.log
        && let Ok(mut log) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = log.write_all(format!("{}\n", precise.as_deref().unwrap_or(function)).as_bytes());
    }
    wait_while(|| names().any(|name| current().is_hanging(name)));
    let script = current();
    match names().find_map(|name| script.error(name)) {
        Some(code) => Err(code),
        None => Ok(script),
    }
}

fn wait_while(mut is_so: impl FnMut() -> bool) {
    while is_so() {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What the script lists is over: events before the start are never delivered.
pub(crate) fn forget_xids(script: &Script) {
    on_stage(|stage| stage.delivered.extend(script.xids.iter().map(|xid| xid.id)));
}

pub(crate) fn create_set() -> usize {
    on_stage(|stage| {
        stage.set_count += 1;
        stage.sets.insert(stage.set_count, BTreeSet::new());
        stage.set_count
    })
}

pub(crate) fn free_set(set: usize) -> Result<(), Code> {
    on_stage(|stage| stage.sets.remove(&set)).map(|_| ()).ok_or(INVALID_ARGUMENT)
}

pub(crate) fn join_set(set: usize, number: usize) -> Result<(), Code> {
    on_stage(|stage| stage.sets.get_mut(&set).map(|numbers| numbers.insert(number)))
        .map(|_| ())
        .ok_or(INVALID_ARGUMENT)
}

/// The next XID of a GPU that the set listens to, waiting for it at most `within`.
pub(crate) fn wait_for_xid(set: usize, within: Duration) -> Option<Xid> {
    let began = Instant::now();
    loop {
        let script = current();
        let next = on_stage(|stage| {
            let numbers = stage.sets.get(&set)?;
            let mut xids = script.xids.iter();
            let next = xids.find(|xid| numbers.contains(&xid.gpu) && !stage.delivered.contains(&xid.id))?;
            stage.delivered.insert(next.id);
            Some(next.clone())
        });
        if next.is_some() || began.elapsed() >= within {
            return next;
        }
        std::thread::sleep(LOOK_EVERY.min(within)); // bounded wait: by `within`
    }
}
