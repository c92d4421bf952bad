use super::*;

fn reading(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigMistakes> {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("controller.toml");
    std::fs::write(&path, text).expect("writes");
    let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Config::read(&path, environment)
}

#[test]
fn a_state_directory_is_enough() {
    let config = reading("[controller]\nstate_dir = '/var/lib/cic'\n", &[]).expect("right");
    assert_eq!(config.store_url, "sqlite:/var/lib/cic/controller.db");
    assert_eq!(config.tls_dir, Path::new("/var/lib/cic/tls"));
    assert_eq!(config.quic_listen.port(), 7443);
    assert_eq!(config.api_listen.to_string(), "127.0.0.1:7480");
    assert_eq!((config.timing, config.brake, config.local), (Timing::default(), BrakeRules::default(), None));
}

#[test]
fn overrides_reach_the_core() {
    let text = "[controller]\nstate_dir = '/s'\nfleet = 'eu-prod'\n[timing]\nsettle_ms = 5\norphan_grace_ms = 61000\n[brake]\nsilent_share = 0.5\n";
    let config = reading(text, &[("CIC_TIMING_DRAIN_MS", "7")]).expect("right");
    assert_eq!(config.timing.settle, Duration::from_millis(5));
    assert_eq!(config.timing.orphan_grace, Duration::from_secs(61));
    assert_eq!(config.fleet.as_str(), "eu-prod");
    assert_eq!(config.timing.drain, Duration::from_millis(7));
    assert!((config.brake.silent_share - 0.5).abs() < f32::EPSILON);
}

#[test]
fn the_password_of_the_store_comes_as_a_file_and_goes_to_postgres_only() {
    let directory = tempfile::tempdir().expect("directory");
    let (file, empty) = (directory.path().join("password"), directory.path().join("empty"));
    std::fs::write(&file, "secret\n").expect("writes");
    std::fs::write(&empty, "\n").expect("writes");
    let with = |url: &str, file: &Path| {
        let text = format!("[controller]\nid = 'a'\nstate_dir = '/s'\n[store]\nurl = '{url}'\n");
        reading(&text, &[("CIC_STORE_PASSWORD_FILE", &file.display().to_string())])
    };
    let config = with("postgres://cic@db.example/cic", &file).expect("right");
    assert_eq!(config.store_password.as_deref(), Some("secret"));
    for (url, file, mistake) in [
        (
            "sqlite:/s/controller.db",
            &file,
            "[store] password_file: sqlite:/s/controller.db takes no password",
        ),
        (
            "postgres://cic:secret@db.example/cic",
            &file,
            "[store] url: holds a password; secrets come as files",
        ),
        ("postgres://cic@db.example/cic", &empty, "empty is empty"),
        ("postgres://cic@db.example/cic", &directory.path().join("none"), "none cannot be read"),
    ] {
        let mistakes = with(url, file).expect_err("wrong");
        assert!(mistakes.lines().len() == 1 && mistakes.to_string().contains(mistake), "{mistakes}");
    }
}

#[test]
fn every_mistake_is_listed_at_once() {
    let text = "[controller]\nid = 'A'\nfleet = 'B_'\nstate_dir = 'here'\nstate = 1\n\
                [api]\nlisten = '0.0.0.0:7480'\n[quic]\nlisten = 'x'\n[store]\nurl = 'mysql:x'\n\
                [local]\ndir = '/l'\nagent_program = '/no/such/agent'\n[brake]\nsilent_share = 3\n\
                [timing]\norphan_grace_ms = 60000\n[log]\nformat = 'xml'\n";
    let mistakes = reading(text, &[]).expect_err("wrong");
    let mut keys: Vec<_> =
        mistakes.lines().iter().filter_map(|line| line.split("toml: ").nth(1)?.split(':').next()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "[api] admin_token_file",
            "[brake] silent_share",
            "[controller] fleet",
            "[controller] id",
            "[controller] state",
            "[controller] state_dir",
            "[local] agent_program",
            "[log] format",
            "[quic] listen",
            "[store] url",
            "[timing] orphan_grace_ms",
        ]
    );
}
