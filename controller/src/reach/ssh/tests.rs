use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::net::TcpListener;
use tokio::process::Child;

use super::*;
use crate::provision::local::process::start_time;

const SSHD: &str = "/usr/sbin/sshd";

const WHOLE: Duration = Duration::from_secs(20);

/// A real sshd on the loopback with one authorised key, whose forced command writes down what was asked for. Each
/// connection gets an sshd of its own (`-i`), so that no port has to be chosen beforehand.
struct Node {
    place: tempfile::TempDir,
    listener: TcpListener,
    sessions: Vec<Child>,
}

/// `None` where no sshd is installed.
///
/// # Panics
/// When there is none and CIC_REQUIRE_SSHD=1 says that there has to be.
async fn node() -> Option<Node> {
    if !Path::new(SSHD).exists() {
        let is_required = std::env::var("CIC_REQUIRE_SSHD").is_ok_and(|value| value == "1");
        assert!(!is_required, "CIC_REQUIRE_SSHD=1, but there is no {SSHD}");
        eprintln!("skipped: there is no {SSHD}");
        return None;
    }
    // Where sshd, run by root, shuts its unprivileged half in. Init makes it where sshd is a service.
    let _ = std::fs::create_dir_all("/run/sshd");
    let place = tempfile::tempdir().unwrap();
    for key in ["host_key", "other_host_key", "key", "stranger"] {
        keygen(&place.path().join(key)).await;
    }
    let at = |name: &str| place.path().join(name).display().to_string();
    let public = std::fs::read_to_string(at("key.pub")).unwrap();
    let forced = format!("echo \\\"$SSH_ORIGINAL_COMMAND\\\" >> {}; echo done >&2", at("asked"));
    std::fs::write(at("authorized_keys"), format!("restrict,command=\"{forced}\" {public}")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Some(Node { place, listener, sessions: Vec::new() })
}

async fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.await.unwrap().success());
}

impl Node {
    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn spec(&self) -> SshSpec {
        SshSpec {
            program: "ssh".into(),
            user: nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name,
            key_file: self.at("key"),
            host_keys: HostKeys::FirstSeen(self.at("known_hosts")),
            command: "systemctl restart cic-agent".to_owned(),
        }
    }

    fn asked(&self) -> String {
        std::fs::read_to_string(self.at("asked")).unwrap_or_default()
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Runs `spec` for node `name` while sshd shows `host_key`.
    async fn restart(&mut self, spec: &SshSpec, name: &str, host_key: &str) -> Result<(), RestartError> {
        let (port, host) = (self.port(), Host::of_address("127.0.0.1:7444").unwrap());
        let name = NodeId::new(name).unwrap();
        let restart = run(spec, &name, &host, port);
        tokio::pin!(restart);
        loop {
            tokio::select! {
                result = &mut restart => return result,
                accepted = self.listener.accept() => {
                    let stream = accepted.unwrap().0.into_std().unwrap();
                    stream.set_nonblocking(false).unwrap();
                    let session = self.sshd(OwnedFd::from(stream), host_key);
                    self.sessions.push(session);
                }
            }
        }
    }

    fn sshd(&self, connection: OwnedFd, host_key: &str) -> Child {
        let authorized = format!("AuthorizedKeysFile={}", self.at("authorized_keys").display());
        let mut command = Command::new(SSHD);
        command.args(["-i", "-f", "/dev/null", "-E"]).arg(self.at("sshd.log"));
        command.arg("-h").arg(self.at(host_key));
        for option in [authorized.as_str(), "StrictModes=no", "UsePAM=no", "PermitRootLogin=yes"] {
            command.args(["-o", option]);
        }
        command.stdin(connection.try_clone().unwrap()).stdout(connection).stderr(Stdio::null());
        command.kill_on_drop(true).spawn().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("sshd.log")).unwrap_or_default()
    }
}

#[tokio::test]
async fn a_real_sshd_is_asked_for_the_configured_command_and_nothing_else() {
    let Some(mut node) = node().await else { return };
    let spec = node.spec();
    let restarted = tokio::time::timeout(WHOLE, node.restart(&spec, "n1", "host_key")).await.unwrap();
    assert!(restarted.is_ok(), "{}: {}", restarted.unwrap_err(), node.log());
    assert_eq!(node.asked(), "systemctl restart cic-agent\n");
    let known = std::fs::read_to_string(node.at("known_hosts")).unwrap();
    assert!(known.starts_with("n1 ssh-ed25519 "), "{known}");
}

#[tokio::test]
async fn a_node_that_shows_another_host_key_is_refused_and_another_node_at_its_address_is_not() {
    let Some(mut node) = node().await else { return };
    let spec = node.spec();
    assert!(node.restart(&spec, "n1", "host_key").await.is_ok(), "{}", node.log());
    let error = node.restart(&spec, "n1", "other_host_key").await.unwrap_err().to_string();
    assert!(error.contains("exit status: 255") && error.contains("Host key verification failed"), "{error}");
    assert!(node.restart(&spec, "n2", "other_host_key").await.is_ok(), "{}", node.log());
    assert_eq!(node.asked().lines().count(), 2);
}

#[tokio::test]
async fn with_a_file_of_known_hosts_only_those_in_it_are_believed() {
    let Some(mut node) = node().await else { return };
    let (known, port) = (node.at("operators_hosts"), node.port());
    std::fs::write(&known, "").unwrap();
    let spec = SshSpec { host_keys: HostKeys::Listed(known.clone()), ..node.spec() };
    assert!(node.restart(&spec, "n1", "host_key").await.is_err());
    let key = std::fs::read_to_string(node.at("host_key.pub")).unwrap();
    std::fs::write(&known, format!("[127.0.0.1]:{port} {key}")).unwrap();
    assert!(node.restart(&spec, "n1", "host_key").await.is_ok(), "{}", node.log());
    assert_eq!(node.asked().lines().count(), 1);
}

#[tokio::test]
async fn a_key_that_the_node_does_not_know_is_an_error_and_no_question() {
    let Some(mut node) = node().await else { return };
    let spec = SshSpec { key_file: node.at("stranger"), ..node.spec() };
    let error = tokio::time::timeout(WHOLE, node.restart(&spec, "n1", "host_key")).await.unwrap();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("Permission denied"), "{error}");
    assert_eq!(node.asked(), "");
}

#[tokio::test]
async fn at_the_deadline_the_program_and_all_it_started_are_killed() {
    let place = tempfile::tempdir().unwrap();
    let (program, pid) = (place.path().join("ssh"), place.path().join("pid"));
    let script = format!(
        "#!/bin/sh\nsleep 600 &\necho $! > {0}.tmp; mv {0}.tmp {0}\necho held up >&2\nwait\n",
        pid.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let host_keys = HostKeys::FirstSeen(place.path().join("known_hosts"));
    let key_file = place.path().join("key");
    let spec = SshSpec { program, user: "u".to_owned(), key_file, host_keys, command: "x".to_owned() };
    let (name, host) = (NodeId::new("n1").unwrap(), Host::of_address("h:1").unwrap());
    let error = run_within(Duration::from_secs(1), &spec, &name, &host, 22).await.unwrap_err();
    assert!(matches!(&error, RestartError::Late { .. }), "{error}");
    assert!(error.to_string().ends_with(": held up"), "{error}");
    let pid: u32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    let is_gone = async {
        while start_time(pid).is_some() {
            // bounded wait: the kernel ends a killed process in its own time.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WHOLE, is_gone).await.expect("what it started is killed too");

    let spec = SshSpec { program: "/no/such/ssh".into(), ..spec };
    let error = run(&spec, &name, &host, 22).await.unwrap_err();
    assert!(matches!(error, RestartError::Start { .. }), "{error}");
}

#[test]
fn the_host_comes_after_the_options_and_the_command_is_one_argument() {
    let spec = SshSpec {
        program: "ssh".into(),
        user: "cic".to_owned(),
        key_file: "/k".into(),
        host_keys: HostKeys::FirstSeen("/known".into()),
        command: "sudo -n systemctl restart cic-agent".to_owned(),
    };
    let host = Host::of_address("gpu-7:7444").unwrap();
    let arguments = arguments(&spec, &NodeId::new("n1").unwrap(), &host, 2222);
    let end: Vec<_> = arguments[arguments.len() - 9..].iter().map(|one| one.to_str().unwrap()).collect();
    let command = "sudo -n systemctl restart cic-agent";
    assert_eq!(end, ["-i", "/k", "-p", "2222", "-l", "cic", "--", "gpu-7", command]);
    for option in ["BatchMode=yes", "StrictHostKeyChecking=accept-new", "HostKeyAlias=n1"] {
        assert!(arguments.iter().any(|one| one == option), "{option}");
    }
}

#[tokio::test]
async fn only_the_end_of_what_was_written_is_kept() {
    let mut tail = Vec::new();
    let written = [b"x".repeat(5000), b"\nthe\x07 end\n".to_vec()].concat();
    keep_tail(Some(written.as_slice()), &mut tail).await;
    assert_eq!(tail.len(), TAIL_BYTES_MAX);
    let text = Tail::of(&tail, b"").to_string();
    assert!(text.starts_with(": xxx") && text.ends_with("x the? end"), "{text}");
    assert_eq!(Tail::of(b" \n", b"").to_string(), "");
}
