//! Provider `local` with real machines and a stand-in for the agent.

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::id::{DeploymentName, FleetName, NodeId, OperationId};
use cic_controller::core::{CloudFault, InstanceState};
use cic_controller::provision::LaunchOrder;
use cic_controller::provision::local::process::{self, Tag};
use cic_controller::provision::local::{Hardware, Home, Local, LocalSpec, MachineRecord};
use cic_controller::store::Database;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const SOON: Duration = Duration::from_secs(30);

/// An agent with an engine beside it; both would run for ever.
const LASTING: &str = "#!/bin/sh\nsleep 600 &\nexec sleep 600\n";

struct World {
    directory: tempfile::TempDir,
    store: Database,
    controller: SocketAddr,
}

impl World {
    async fn new(agent: &str) -> Self {
        Self::with_controller(agent, "127.0.0.1:9".parse().expect("valid")).await
    }

    async fn with_controller(agent: &str, controller: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let program = directory.path().join("agent");
        std::fs::write(&program, agent).expect("writes");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("sets");
        let store = Database::open_file(&directory.path().join("cic.db")).await.expect("opens");
        store.migrate().await.expect("migrates");
        Self { directory, store, controller }
    }

    /// A provider as a controller that has just started would make it.
    fn provider(&self) -> Local {
        self.provider_with(Path::new(env!("CARGO_BIN_EXE_cic-controller")))
    }

    fn provider_with(&self, machine_program: &Path) -> Local {
        self.make(self.directory.path(), machine_program)
    }

    fn provider_at(&self, directory: &Path) -> Local {
        self.make(directory, Path::new(env!("CARGO_BIN_EXE_cic-controller")))
    }

    fn make(&self, directory: &Path, machine_program: &Path) -> Local {
        self.make_of(FleetName::default(), directory, machine_program)
    }

    fn make_of(&self, fleet: FleetName, directory: &Path, machine_program: &Path) -> Local {
        let spec = LocalSpec {
            directory: directory.to_owned(),
            machine_program: machine_program.to_owned(),
            agent_program: self.directory.path().join("agent"),
            controller_addresses: vec![self.controller.to_string()],
            ca_pem: "a certificate".to_owned(),
            agent_timing: toml::Table::new(),
            hardware: Hardware::default(),
            fleet,
        };
        Local::new(spec, self.store.clone())
    }

    fn home(&self) -> Home {
        Home::of(self.directory.path(), &node())
    }

    fn tag(&self) -> Tag {
        self.home().tag(&node())
    }

    fn machine(&self) -> MachineRecord {
        self.home().machine().expect("reads").expect("written")
    }

    async fn launched(&self) -> MachineRecord {
        launch(&self.provider(), 7).await.expect("launches");
        self.machine()
    }

    /// The pid of an agent that is not `earlier`, once its process runs what it was told to.
    async fn agent(&self, earlier: Option<u32>) -> u32 {
        let mut found = None;
        until(|| {
            found = self
                .home()
                .agent_pid()
                .filter(|pid| Some(*pid) != earlier && process::start_time(*pid).is_some());
            found.is_some()
        })
        .await;
        found.expect("found")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        while self.tag().signal_all(Signal::SIGKILL) > 0 {
            std::thread::yield_now();
        }
    }
}

fn node() -> NodeId {
    NodeId::new("n1").expect("valid")
}

async fn launch(provider: &Local, operation: u64) -> Result<(), CloudFault> {
    let deployment = DeploymentName::new("chat").expect("valid");
    let (operation, zone) = (OperationId(operation), "here".to_owned());
    let order = LaunchOrder { operation, node: node(), deployment, zone, price_limit: None };
    provider.launch(&order).await
}

async fn state(provider: &Local) -> Option<InstanceState> {
    let listed = provider.list().await.expect("lists");
    assert!(listed.len() <= 1);
    listed.first().map(|instance| instance.state)
}

async fn until(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("in time")
}

#[tokio::test]
async fn a_launch_repeated_after_a_crash_finds_the_same_machine() {
    let world = World::new(LASTING).await;
    let first = world.launched().await;
    let again = world.launched().await;
    assert_eq!(first, again);
    assert_eq!(state(&world.provider()).await, Some(InstanceState::Running));
    let other = launch(&world.provider(), 8).await;
    assert!(matches!(other, Err(CloudFault::Refused(_))), "{other:?}");
}

#[tokio::test]
async fn another_fleets_machine_is_listed_under_its_name_and_neither_taken_nor_ended() {
    let world = World::new(LASTING).await;
    let machine = world.launched().await;
    let other = FleetName::new("other").expect("valid");
    let program = Path::new(env!("CARGO_BIN_EXE_cic-controller"));
    let theirs = world.make_of(other, world.directory.path(), program);
    let listed = theirs.list().await.expect("lists");
    assert_eq!(listed.iter().map(|it| it.fleet.as_str()).collect::<Vec<_>>(), ["cic"]);
    let taken = launch(&theirs, 7).await;
    assert!(matches!(taken, Err(CloudFault::Refused(_))), "{taken:?}");
    theirs.terminate(&node()).await.expect("theirs is absent");
    assert!(machine.is_running());
}

#[tokio::test]
async fn an_intent_without_a_machine_is_finished_by_the_next_try() {
    let world = World::new(LASTING).await;
    let crashed = launch(&world.provider_with(Path::new("/bin/false")), 7).await;
    assert!(matches!(crashed, Err(CloudFault::NoAnswer(_))), "{crashed:?}");
    assert_eq!(world.home().launch().expect("reads").expect("kept").operation, OperationId(7));
    assert_eq!(state(&world.provider()).await, None);
    world.launched().await;
    assert_eq!(state(&world.provider()).await, Some(InstanceState::Running));
}

#[tokio::test]
async fn a_second_machine_in_the_same_home_goes_away() {
    let world = World::new(LASTING).await;
    let first = world.launched().await;
    let mut second = tokio::process::Command::new(env!("CARGO_BIN_EXE_cic-controller"))
        .args(["machine", "--dir"])
        .arg(world.home().path())
        .spawn()
        .expect("spawns");
    assert_eq!(soon(second.wait()).await.expect("ends").code(), Some(1));
    assert_eq!(world.machine(), first);
}

#[tokio::test]
async fn a_machine_that_was_killed_is_listed_as_stopped_until_it_is_given_back() {
    let world = World::new(LASTING).await;
    let machine = world.launched().await;
    world.agent(None).await;
    process::send(machine.pid, Signal::SIGKILL);
    until(|| !machine.is_running()).await;
    let provider = world.provider();
    assert_eq!(state(&provider).await, Some(InstanceState::Stopped));
    launch(&provider, 7).await.expect("a launch that was made once is done");
    assert_eq!(state(&provider).await, Some(InstanceState::Stopped));
    provider.terminate(&node()).await.expect("terminates");
    assert_eq!(state(&provider).await, None);
    assert!(world.tag().processes().is_empty());
}

#[tokio::test]
async fn giving_back_a_machine_whose_processes_are_stopped_leaves_none() {
    let world = World::new(LASTING).await;
    world.launched().await;
    world.agent(None).await;
    until(|| world.tag().processes().len() == 3).await;
    world.tag().signal_all(Signal::SIGSTOP);
    let provider = world.provider();
    provider.terminate(&node()).await.expect("terminates");
    assert!(world.tag().processes().is_empty());
    assert!(!world.home().path().exists());
    assert!(world.directory.path().join("graveyard/n1/machine.log").is_file());
    provider.terminate(&node()).await.expect("absent counts as done");
}

#[tokio::test]
async fn a_machine_is_given_back_by_whatever_path_its_directory_is_reached() {
    let world = World::new(LASTING).await;
    world.launched().await;
    until(|| world.tag().processes().len() == 3).await;
    let link = world.directory.path().join("link");
    std::os::unix::fs::symlink(world.directory.path(), &link).expect("links");
    world.provider_at(&link).terminate(&node()).await.expect("terminates");
    assert_eq!(state(&world.provider()).await, None);
    let tag = Tag::new(node(), &world.directory.path().join("nodes/n1"));
    assert!(tag.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_its_agent_powers_off_is_listed_as_stopped_and_leaves_no_process() {
    // Runs the command that its configuration gives it for that, as the dead-man switch does.
    let off = "#!/bin/sh\nsleep 600 &\nsed -n 's/^command = \\[\"touch\", \"\\(.*\\)\"\\]$/\\1/p' \"$3\" | xargs touch\n\
               exec sleep 600\n";
    let world = World::new(off).await;
    let machine = world.launched().await;
    until(|| !machine.is_running()).await;
    until(|| world.tag().processes().is_empty()).await;
    assert_eq!(state(&world.provider()).await, Some(InstanceState::Stopped));
    assert_eq!(soon(world.provider().terminate(&node())).await, Ok(()));
    assert_eq!(state(&world.provider()).await, None);
}

#[tokio::test]
async fn an_agent_that_was_killed_is_started_again_and_its_engine_lives_on() {
    let world = World::new(LASTING).await;
    let machine = world.launched().await;
    let first = world.agent(None).await;
    until(|| world.tag().processes().len() == 3).await;
    let engine =
        |processes: Vec<u32>| processes.into_iter().filter(|pid| ![first, machine.pid].contains(pid)).min();
    let engine = engine(world.tag().processes()).expect("an engine runs");
    process::send(first, Signal::SIGKILL);
    world.agent(Some(first)).await;
    assert!(world.tag().processes().contains(&engine));
    world.provider().terminate(&node()).await.expect("terminates");
    assert!(world.tag().processes().is_empty());
}

#[tokio::test]
async fn an_agent_with_a_bad_configuration_is_not_started_again() {
    let world = World::new("#!/bin/sh\necho start >> \"$(dirname \"$3\")/starts\"\nexit 78\n").await;
    let machine = world.launched().await;
    until(|| {
        std::fs::read_to_string(world.home().file("machine.log"))
            .is_ok_and(|log| log.contains("exit code 78"))
    })
    .await;
    // Longer than the first wait before a restart.
    // bounded wait: nothing is to happen in this time, so there is no condition to wait for
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(std::fs::read_to_string(world.home().file("starts")).expect("started"), "start\n");
    assert!(machine.is_running(), "the VM stays up");
}

#[tokio::test]
async fn the_agent_gets_its_configuration_and_secrets_and_nothing_else() {
    let world = World::new("#!/bin/sh\nenv > \"$(dirname \"$3\")/environment\"\nexec sleep 600\n").await;
    let machine = world.launched().await;
    let home = world.home();
    until(|| std::fs::read_to_string(home.file("environment")).is_ok_and(|text| text.contains("CIC_NODE")))
        .await;
    let text = std::fs::read_to_string(home.file("agent.toml")).expect("written");
    let config: toml::Table = text.parse().expect("TOML");
    assert_eq!(config["node"]["id"].as_str(), Some("n1"));
    assert_eq!(config["controller"]["addresses"][0].as_str(), Some(&machine.cable.controllers[0][..]));
    assert_eq!(config["peer"]["advertise"].as_str(), Some(&machine.cable.peer[..]));
    for (file, mode) in [("join-token", 0o600), ("agent.toml", 0o600)] {
        let permissions = std::fs::metadata(home.file(file)).expect("there").permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{file}");
    }
    let token = std::fs::read_to_string(home.file("join-token")).expect("written");
    let hash = cic_common::tls::JoinToken::parse(&token).expect("a token").hash();
    world.store.consume_join_token(&hash, &node()).await.expect("good for this node");
}

#[tokio::test]
async fn a_cut_cable_loses_datagrams_and_carries_them_again_when_mended() {
    let controller = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let world = World::with_controller(LASTING, controller.local_addr().expect("bound")).await;
    let machine = world.launched().await;
    let agent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    agent.connect(&machine.cable.controllers[0]).await.expect("connects");
    let mut buffer = [0; 64];

    agent.send(b"one").await.expect("sends");
    let (length, flow) = soon(controller.recv_from(&mut buffer)).await.expect("receives");
    assert_eq!(&buffer[..length], b"one");
    controller.send_to(b"two", flow).await.expect("sends");
    let length = soon(agent.recv(&mut buffer)).await.expect("receives");
    assert_eq!(&buffer[..length], b"two");

    switch(&world, &machine, Signal::SIGUSR1, "cable cut").await;
    agent.send(b"lost").await.expect("sends");
    controller.send_to(b"lost", flow).await.expect("sends");
    let deaf = tokio::time::timeout(Duration::from_millis(200), agent.recv(&mut buffer)).await;
    assert!(deaf.is_err(), "a datagram passed the cut");
    switch(&world, &machine, Signal::SIGUSR2, "cable mended").await;
    agent.send(b"three").await.expect("sends");
    let (length, _) = soon(controller.recv_from(&mut buffer)).await.expect("receives");
    assert_eq!(&buffer[..length], b"three");
}

#[tokio::test]
async fn a_cut_cable_stalls_connections_and_lets_them_go_on_when_mended() {
    let world = World::new(LASTING).await;
    let machine = world.launched().await;
    let peer = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let ports = format!("{{\"peer\":{},\"edge\":1,\"metrics\":2}}", peer.local_addr().expect("bound").port());
    std::fs::write(world.home().state().join("ports.json"), ports).expect("writes");
    let mut buffer = [0; 5];

    let mut client = TcpStream::connect(&machine.cable.peer).await.expect("connects");
    let (mut agent, _) = soon(peer.accept()).await.expect("accepts");
    client.write_all(b"hello").await.expect("writes");
    soon(agent.read_exact(&mut buffer)).await.expect("reads");

    switch(&world, &machine, Signal::SIGUSR1, "cable cut").await;
    client.write_all(b"later").await.expect("the kernel takes it");
    let mut second = TcpStream::connect(&machine.cable.peer).await.expect("accepted and left hanging");
    second.write_all(b"again").await.expect("the kernel takes it");
    let stalled = tokio::time::timeout(Duration::from_millis(200), agent.read(&mut buffer)).await;
    assert!(stalled.is_err(), "bytes passed the cut");
    switch(&world, &machine, Signal::SIGUSR2, "cable mended").await;
    soon(agent.read_exact(&mut buffer)).await.expect("reads");
    assert_eq!(&buffer, b"later");
    let (mut newer, _) = soon(peer.accept()).await.expect("accepts");
    soon(newer.read_exact(&mut buffer)).await.expect("reads");
    assert_eq!(&buffer, b"again");

    drop(agent);
    assert_eq!(soon(client.read(&mut buffer)).await.expect("the end is passed on"), 0);
}

#[tokio::test]
async fn a_visitor_of_an_agent_that_does_not_listen_is_sent_away() {
    let world = World::new(LASTING).await;
    let machine = world.launched().await;
    let mut client = TcpStream::connect(&machine.cable.peer).await.expect("connects");
    let error = soon(client.read(&mut [0; 1])).await.expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Signals the machine and waits until it says that it obeyed.
async fn switch(world: &World, machine: &MachineRecord, signal: Signal, said: &str) {
    process::send(machine.pid, signal);
    let log: PathBuf = world.home().file("machine.log");
    until(|| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(said))).await;
}
