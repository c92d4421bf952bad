//! A real PostgreSQL server on loopback, in a directory that goes with it.
//!
//! ```text
//! test --stdin--> guardian (sh) -> postgres
//! ```
//! The guardian is there for the test that is killed: when its stdin ends it stops the server and removes the directory.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cic_common::ports::lasting_port;
use cic_common::process::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

const LOOK: Duration = Duration::from_millis(5);

/// A server opens its port in 0.1 s here; after a crash it reads its log first.
const OPENS_WITHIN: Duration = Duration::from_secs(20);

/// Of an immediate shutdown.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Ports tried: another program may take one between the choice and the server's bind.
const TRIES_MAX: u32 = 5;

/// Debian keeps the server's programs out of the path, in a folder for each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Its only user, who may do everything.
const USER: &str = "cic";
const PASSWORD: &str = "not a secret, but with a % and an &";

/// Says "stop" and keeps the directory, or ends and does not. A stopped process cannot be told to end, so all are told
/// to go on first.
const GUARDIAN: &str = r#"
"$1/postgres" -D "$2/data" -p "$3" -h 127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB \
    -c log_line_prefix='%m %a ' </dev/null >>"$2/log" 2>&1 &
server=$!
read -r word; is_kept=$?
kill -CONT $server
for stat in /proc/[0-9]*/stat; do
    read -r pid _ _ parent _ <"$stat" && [ "$parent" = $server ] && kill -CONT "$pid"
done 2>/dev/null
kill -QUIT $server
wait $server
[ $is_kept = 0 ] || rm -rf "$2"
"#;

/// A running server. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    place: tempfile::TempDir,
    account: Option<(u32, u32)>,
    port: u16,
    /// None while it is stopped.
    guardian: Option<Guardian>,
}

#[derive(Debug)]
struct Guardian {
    child: Child,
    stdin: ChildStdin,
}

impl Postgres {
    /// Starts a server; none, with a word, where PostgreSQL is not installed.
    ///
    /// # Panics
    /// When it does not start, or is not installed and CIC_REQUIRE_POSTGRES=1 says that it has to be.
    #[must_use]
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let is_required = std::env::var("CIC_REQUIRE_POSTGRES").is_ok_and(|value| value == "1");
            let lack = "no PostgreSQL server here; `apt-get install postgresql` brings it";
            assert!(!is_required, "CIC_REQUIRE_POSTGRES=1, but {lack}");
            eprintln!("skipped: {lack}");
            return None;
        };
        Some(Self::lay(programs).expect("a PostgreSQL server"))
    }

    fn lay(programs: PathBuf) -> anyhow::Result<Self> {
        let place = tempfile::tempdir()?;
        let account = account()?;
        let password = place.path().join("password");
        fs::write(&password, PASSWORD)?;
        if let Some((user, group)) = account {
            chown(place.path(), Some(user), Some(group))?;
            chown(&password, Some(user), Some(group))?;
        }
        let mut server = Self { programs, place, account, port: 0, guardian: None };
        let output = server
            .command(&server.programs.join("initdb"))
            .arg("--pgdata")
            .arg(server.place.path().join("data"))
            .args(["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=scram-sha-256"])
            .args(["--username", USER, "--pwfile"])
            .arg(&password)
            .output()
            .context("start initdb")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        for _ in 0..TRIES_MAX {
            server.port = lasting_port()?;
            if server.open()? {
                return Ok(server);
            }
        }
        bail!("no port in {TRIES_MAX} tries:\n{}", server.log())
    }

    /// Makes an empty database, and tells its url.
    ///
    /// # Errors
    /// When there is one of that name, or the server does not run.
    pub fn database(&self, name: &str) -> anyhow::Result<String> {
        let output = self
            .command(&self.programs.join("createdb"))
            .args(["--host=127.0.0.1", "--no-password", "--username", USER])
            .arg(format!("--port={}", self.port))
            .arg(name)
            .env("PGPASSWORD", PASSWORD)
            .output()
            .context("start createdb")?;
        ensure!(output.status.success(), "createdb: {}", String::from_utf8_lossy(&output.stderr));
        Ok(self.url(name))
    }

    /// Url of the database `name`, without the password.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{name}", self.port)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    #[must_use]
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// A file that holds nothing but the password.
    #[must_use]
    pub fn password_file(&self) -> PathBuf {
        self.place.path().join("password")
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }

    /// Stops it as a crash would. Its data stay.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut guardian) = self.guardian.take() else { return Ok(()) };
        guardian.stdin.write_all(b"stop\n")?;
        guardian.wait_end()
    }

    /// Starts it again after [`Self::stop`], on the same port.
    ///
    /// # Errors
    /// When it does not open its port.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.open()?, "the port is gone:\n{}", self.log());
        Ok(())
    }

    /// Stops every process of it in its tracks: connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Self::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// First the one that starts all others.
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let server = self.pid().context("it does not run")?;
        kill(Pid::from_raw(server.cast_signed()), signal)?;
        for process in Process::all()?.iter().filter(|process| process.parent == server) {
            kill(Pid::from_raw(process.pid.cast_signed()), signal)?;
        }
        Ok(())
    }

    fn pid(&self) -> Option<u32> {
        self.state()?.lines().next()?.parse().ok()
    }

    /// What the server writes down of itself while it runs.
    fn state(&self) -> Option<String> {
        fs::read_to_string(self.place.path().join("data/postmaster.pid")).ok()
    }

    /// Starts the guardian and the server. False when the server ended before it was ready.
    fn open(&mut self) -> anyhow::Result<bool> {
        let mut child = self
            .command(Path::new("sh"))
            .args(["-c", GUARDIAN, "guardian"])
            .arg(&self.programs)
            .arg(self.place.path())
            .arg(self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Whatever ends the test's group leaves the guardian to clean up.
            .process_group(0)
            .spawn()
            .context("start sh")?;
        let stdin = child.stdin.take().context("it is piped")?;
        self.guardian = Some(Guardian { child, stdin });
        if self.wait_ready()? {
            return Ok(true);
        }
        self.stop()?;
        Ok(false)
    }

    /// False when it ended before.
    fn wait_ready(&self) -> anyhow::Result<bool> {
        let began = Instant::now();
        let mut was_seen = false;
        loop {
            let state = self.state();
            // Line 8 of the file, see the server's source, `src/include/utils/pidfile.h`.
            if state.as_ref().and_then(|text| text.lines().nth(7)).is_some_and(|line| line.trim() == "ready")
            {
                return Ok(true);
            }
            let has_ended =
                (was_seen && state.is_none()) || self.log().contains("FATAL:  could not create any");
            if has_ended {
                return Ok(false);
            }
            was_seen |= state.is_some();
            ensure!(began.elapsed() < OPENS_WITHIN, "not ready within {OPENS_WITHIN:?}:\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// One of its programs, as the user it runs as.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.place.path());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(guardian) = self.guardian.take()
            && let Err(error) = guardian.end()
        {
            eprintln!("PostgreSQL does not end: {error:#}");
        }
    }
}

impl Guardian {
    /// The end of its stdin: it stops the server and removes the directory.
    fn end(self) -> anyhow::Result<()> {
        let Self { child, stdin } = self;
        drop(stdin);
        wait_end(child)
    }

    fn wait_end(self) -> anyhow::Result<()> {
        // Its stdin is open until then.
        wait_end(self.child)
    }
}

fn wait_end(mut child: Child) -> anyhow::Result<()> {
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        ensure!(began.elapsed() < ENDS_WITHIN, "not within {ENDS_WITHIN:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Folder of the programs, of the newest version that is there.
fn programs() -> Option<PathBuf> {
    let told = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok();
    let told = told.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut versions: Vec<_> = versions.collect();
    versions.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let versions = versions.into_iter().rev().map(|path| path.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = told.into_iter().chain(versions).chain(std::env::split_paths(&path));
    all.find(|folder| ["initdb", "postgres", "createdb"].iter().all(|name| folder.join(name).is_file()))
}

/// User and group to run it as: it refuses to run as root.
fn account() -> anyhow::Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
        }
    }
    bail!("neither user postgres nor nobody")
}
