//! `cic-bench agents …`: many simulated agents in one process, and how the benchmark starts such a process.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cic_common::id::DeploymentName;
use cic_common::time::unix_ms;
use cic_common::tls::{CertificateAuthority, Identity, Peer, PendingKey};
use fleet_tests::process::binary;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use quinn::{Endpoint, EndpointConfig};
use tokio::sync::Semaphore;

use super::agent::Agent;
use super::answers;
use super::site::{ZONES, node, zone};

/// The first word of the command line that makes this program a swarm of agents.
pub(crate) const COMMAND: &str = "agents";

const CERTIFICATE_SPAN: Duration = Duration::from_secs(24 * 3600);

/// Handshakes that this process has under way.
const DIALS_MAX: usize = 48;

/// Agents of a process that dial in a second. Each of a real fleet has a processor of its own for that; here all that they take is taken
/// from the controller.
const DIALS_A_SECOND: u32 = 400;

/// Sockets that the agents share: a thousand connections each.
const PER_ENDPOINT: usize = 1000;

/// A thousand agents have more room together than Linux gives one socket.
const RECEIVE_BYTES: usize = 4 << 20;

/// Descriptors beside one for each agent.
const SPARE_DESCRIPTORS: u64 = 1000;

/// Serves as agents `FIRST` to `FIRST + NUMBER` of `COUNT` until its input ends:
/// `agents TLS_DIR FIRST NUMBER COUNT`. Says `ready` when it can, takes the controller's address as one line, and answers each
/// further line with how many are connected, how many have routes, and how many connections were lost.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [dir, first, number, count] = &words[..] else { anyhow::bail!("agents TLS_DIR FIRST NUMBER COUNT") };
    let (first, number, count): (usize, usize, usize) = (first.parse()?, number.parse()?, count.parse()?);
    raise_descriptors(number)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let (listener, address) = answers::bind()?;
    let authority = CertificateAuthority::open(Path::new(dir), unix_ms())?;
    let trust = authority.trust()?;
    let agents = make(&authority, &address, first..first + number, count)?;
    runtime.spawn(answers::serve(listener, agents.clone(), trust.clone()));

    println!("ready");
    let mut lines = std::io::stdin().lines();
    let controller: SocketAddr = lines.next().context("an address")??.parse()?;
    let endpoints =
        (0..number.div_ceil(PER_ENDPOINT)).map(|_| endpoint()).collect::<anyhow::Result<Vec<_>>>()?;
    let (turns, began) = (Arc::new(Semaphore::new(DIALS_MAX)), Instant::now());
    for (place, agent) in agents.iter().enumerate() {
        let (agent, turns, trust) = (Arc::clone(agent), Arc::clone(&turns), trust.clone());
        let endpoint = endpoints[place / PER_ENDPOINT].clone();
        // Spread evenly over the second.
        let phase = began + Duration::from_secs(1) * u32::try_from(place)? / u32::try_from(number)?;
        let dial_at = began + Duration::from_secs(1) * u32::try_from(place)? / DIALS_A_SECOND;
        runtime.spawn(async move {
            tokio::time::sleep_until(dial_at.into()).await; // bounded wait: 25 s for ten thousand
            agent.live(&endpoint, controller, &trust, &turns, phase).await;
        });
    }
    for line in lines {
        line?;
        let of = |is: fn(&Agent) -> bool| agents.iter().filter(|agent| is(agent)).count();
        let redials: u64 = agents.iter().map(|agent| agent.redial_count()).sum();
        println!("{} {} {redials}", of(Agent::is_connected), of(Agent::has_routes));
    }
    // Nobody is told of the end.
    std::process::exit(0);
}

/// A socket for many, with room for what comes to many.
fn endpoint() -> anyhow::Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BYTES)?;
    Ok(Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?)
}

/// All share one key, which costs nobody who measures the controller anything.
fn make(
    authority: &CertificateAuthority,
    address: &str,
    places: std::ops::Range<usize>,
    count: usize,
) -> anyhow::Result<Vec<Arc<Agent>>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("identity.pem");
    let key = PendingKey::generate()?;
    let csr = key.csr_der()?;
    let mut key_pem = None;
    let mut agents = Vec::new();
    for place in places {
        let id = node(place, count)?;
        let peer = Peer::Node(id.clone());
        let chain = authority.sign(&csr, &peer, CERTIFICATE_SPAN, unix_ms())?.chain_pem;
        let identity = match &key_pem {
            None => {
                let identity = Identity::adopt(&path, &key, &chain)?;
                let whole = std::fs::read_to_string(&path)?;
                key_pem = Some(whole.strip_suffix(chain.as_str()).context("a key")?.to_owned());
                identity
            }
            Some(key_pem) => {
                std::fs::write(&path, format!("{key_pem}{chain}"))?;
                Identity::load(&path)?.context("an identity")?
            }
        };
        let deployment = DeploymentName::new(zone(place * ZONES / count))?;
        agents.push(Arc::new(Agent::new(id, identity, address.to_owned(), deployment)));
    }
    Ok(agents)
}

/// As many descriptors as the machine allows, for this process and those it starts.
pub(super) fn raise_descriptors(agents: usize) -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = agents as u64 + SPARE_DESCRIPTORS;
    ensure!(hard >= needed, "{needed} open files are needed and the limit is {hard}: raise `ulimit -Hn`");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// A process of agents, ended with this.
pub(super) struct Swarm {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What the agents of a swarm have come to.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Condition {
    pub(super) connected: usize,
    pub(super) routed: usize,
    pub(super) redials: usize,
}

impl std::ops::Add for Condition {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            connected: self.connected + other.connected,
            routed: self.routed + other.routed,
            redials: self.redials + other.redials,
        }
    }
}

impl Swarm {
    /// Starts the agents of `places` among `count`; they wait for the controller's address.
    pub(super) fn start(
        site: &Path,
        tls: &Path,
        places: std::ops::Range<usize>,
        count: usize,
    ) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(site.join("agents.log"))?;
        let mut child = Command::new(binary("cic-bench")?)
            .arg(COMMAND)
            .arg(tls)
            .args([places.start, places.len(), count].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start the agents")?;
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, input, output })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its agents are made.
    pub(super) fn wait_ready(&mut self) -> anyhow::Result<()> {
        let line = self.line()?;
        ensure!(line == "ready", "the agents say {line:?}");
        Ok(())
    }

    pub(super) fn dial(&mut self, controller: SocketAddr) -> anyhow::Result<()> {
        Ok(writeln!(self.input, "{controller}")?)
    }

    pub(super) fn condition(&mut self) -> anyhow::Result<Condition> {
        writeln!(self.input, "?")?;
        let line = self.line()?;
        let numbers: Vec<usize> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [connected, routed, redials] = numbers[..] else { anyhow::bail!("the agents say {line:?}") };
        Ok(Condition { connected, routed, redials })
    }

    /// As a machine without power: nothing is closed and nothing is answered.
    pub(super) fn stop_silently(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGSTOP)?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the agents ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
