//! The process: start, connections, signals, end.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::core;
use crate::engine::{Engine, Mode};
use crate::faults::{CORE_DEATH_LASTS, StopWith};
use crate::options::Options;
use crate::routes;

/// What vLLM takes for a model that does not say otherwise.
const MODEL_LEN_DEFAULT: usize = 4096;
/// For the last events to reach their clients; vLLM is gone within 0.7 s.
const FAREWELL: Duration = Duration::from_millis(500);
/// How often a drain looks whether the last request has ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// After a failed accept (no descriptors left), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) async fn run(options: Options) -> ExitCode {
    let Ok(mut signals) = Signals::listen(options.faults.ignore_sigterm) else {
        return failure("cannot listen to signals");
    };
    options.faults.start_log_flood();
    tokio::select! {
        // Cancel-safe: nothing has begun.
        () = sleep(options.faults.start_after) => {}
        // Cancel-safe: the process ends.
        () = signals.stop() => return ExitCode::SUCCESS,
    }
    if let Some(code) = options.faults.exit_at_start {
        eprintln!("ERROR: Engine core initialization failed (--standin-exit-at-start {code})");
        return ExitCode::from(code);
    }
    let max_model_len = match examine_model(&options.model) {
        Ok(declared) => options.max_model_len.or(declared).unwrap_or(MODEL_LEN_DEFAULT),
        Err(reason) => return failure(&reason),
    };
    let mut core = match core::start(&options.model) {
        Ok(core) => core,
        Err(error) => return failure(&format!("cannot start the engine core: {error}")),
    };
    let listener = match TcpListener::bind((options.host.as_str(), options.port)).await {
        Ok(listener) => listener,
        Err(error) => return failure(&format!("cannot bind {}:{}: {error}", options.host, options.port)),
    };
    if let Ok(address) = listener.local_addr() {
        println!("INFO:     Application startup complete: http://{address}");
    }
    let engine = Engine::new(options, max_model_len);
    let connections = GracefulShutdown::new();
    tokio::select! {
        // Cancel-safe: a connection not yet accepted is reset with the listener.
        () = accept(&engine, &listener, &connections) => {}
        // Cancel-safe: it is the only one to decide on the end.
        () = until_stopped(&engine, &mut signals, &mut core) => {}
    }
    drop(listener);
    let _ = timeout(FAREWELL, connections.shutdown()).await;
    ExitCode::SUCCESS
}

async fn accept(engine: &Arc<Engine>, listener: &TcpListener, connections: &GracefulShutdown) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let engine = engine.clone();
        let service = service_fn(move |request| routes::answer(engine.clone(), request));
        let connection =
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        let watched = connections.watch(connection);
        tokio::spawn(async move {
            // A client that goes away is no news.
            let _ = watched.await;
        });
    }
}

/// Returns when the process may end; the modes it enters on the way tell the requests what to do.
async fn until_stopped(engine: &Engine, signals: &mut Signals, core: &mut Child) {
    let mut mode = engine.watch_mode();
    loop {
        tokio::select! {
            // Cancel-safe: signals and modes are kept until they are read.
            asked = signals.next() => match (asked, engine.mode()) {
                (Asked::Stop, _) => break,
                (Asked::Stall, Mode::Stalled) => engine.enter(Mode::Serving),
                (Asked::Stall, _) => engine.enter(Mode::Stalled),
            },
            _ = mode.wait_for(|mode| *mode == Mode::Dead) => return sleep(CORE_DEATH_LASTS).await,
            // Cancel-safe: the end of a process is told as often as it is asked for.
            _ = core.wait() => engine.enter(Mode::Dead),
        }
    }
    let options = &engine.options;
    if !options.shutdown_timeout.is_zero() {
        engine.enter(Mode::Draining);
        if timeout(options.shutdown_timeout, drained(engine)).await.is_err() {
            return hang(engine).await;
        }
    }
    if !is_idle(engine) && options.faults.stop_with == StopWith::Hang {
        return hang(engine).await;
    }
    engine.enter(Mode::Stopping(options.faults.stop_with));
}

async fn hang(engine: &Engine) {
    engine.enter(Mode::Stuck);
    std::future::pending().await
}

async fn drained(engine: &Engine) {
    while !is_idle(engine) {
        sleep(DRAIN_POLL).await;
    }
}

fn is_idle(engine: &Engine) -> bool {
    let metrics = engine.metrics();
    metrics.running + metrics.waiting == 0
}

enum Asked {
    Stop,
    Stall,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    stall: Signal,
    ignores_stop: bool,
}

impl Signals {
    fn listen(ignores_stop: bool) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            stall: signal(SignalKind::user_defined1())?,
            ignores_stop,
        })
    }

    /// Cancel-safe, as `recv` loses no signal.
    async fn next(&mut self) -> Asked {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.stall.recv() => return Asked::Stall,
            }
            if !self.ignores_stop {
                return Asked::Stop;
            }
        }
    }

    async fn stop(&mut self) {
        while matches!(self.next().await, Asked::Stall) {}
    }
}

/// The context that the model declares, if it does.
///
/// # Errors
/// The directory or a shard that its index names is missing.
fn examine_model(directory: &Path) -> Result<Option<usize>, String> {
    if !directory.is_dir() {
        return Err(format!("no such model directory: {}", directory.display()));
    }
    let json = |name: &str| -> Option<Value> {
        serde_json::from_slice(&std::fs::read(directory.join(name)).ok()?).ok()
    };
    let index = json("model.safetensors.index.json").unwrap_or_default();
    let shards =
        index["weight_map"].as_object().into_iter().flat_map(|map| map.values()).filter_map(Value::as_str);
    if let Some(missing) = shards.into_iter().find(|shard| !directory.join(shard).is_file()) {
        return Err(format!(
            "Engine core initialization failed: {} names {missing}, which is missing",
            directory.display()
        ));
    }
    let declared = json("config.json").and_then(|config| config["max_position_embeddings"].as_u64());
    Ok(declared.and_then(|length| usize::try_from(length).ok()))
}

fn failure(reason: &str) -> ExitCode {
    eprintln!("ERROR: {reason}");
    ExitCode::FAILURE
}
