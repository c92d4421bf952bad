//! One look at one thing that the control plane needs, each with a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::tally::Severity;
use crate::backup::Backup;
use crate::store::Database;
use crate::views::Views;

/// What any of these may take: half the interval between two rounds. Also what connecting to the database may.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What is looked at.
#[derive(Debug, Clone)]
pub enum Target {
    /// `SELECT 1`.
    Database(Database),
    /// The outcome of the newest listing of each provider.
    Providers(Views),
    /// GET, 2xx is good.
    Http(Uri),
    /// PING over plain TCP, `HOST:PORT`.
    Redis(String),
    /// The object store answers, and the newest snapshot is not older than this.
    Snapshots { backup: Box<Backup>, age_max: Duration },
}

/// A target with its name and what it means when it fails.
#[derive(Debug, Clone)]
pub struct Check {
    pub name: &'static str,
    pub severity: Severity,
    pub target: Target,
}

impl Check {
    /// The API of this very controller, over the loopback where it listens on every address.
    ///
    /// # Errors
    /// When the address makes no URL.
    pub fn own_api(listen: SocketAddr) -> Result<Self, hyper::http::Error> {
        let mut address = listen;
        if address.ip().is_unspecified() {
            let loopback = match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
        }
        let uri = Uri::builder()
            .scheme("http")
            .authority(address.to_string())
            .path_and_query("/healthz")
            .build()?;
        Ok(Self { name: "own_api", severity: Severity::Critical, target: Target::Http(uri) })
    }

    /// Looks once.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) async fn look(&self) -> Result<(), String> {
        let looked = tokio::time::timeout(ANSWER_WITHIN, self.target.look()).await;
        looked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
    }
}

impl Target {
    async fn look(&self) -> Result<(), String> {
        match self {
            Self::Database(database) => database.ping().await.map_err(|error| with_causes(&error)),
            Self::Providers(views) => match views.last().view.blind_providers.as_slice() {
                [] => Ok(()),
                blind => Err(format!("cannot list {}", blind.join(", "))),
            },
            Self::Http(uri) => http(uri).await,
            Self::Redis(address) => redis(address).await,
            Self::Snapshots { backup, age_max } => backup.look(*age_max).await,
        }
    }
}

async fn http(uri: &Uri) -> Result<(), String> {
    // A fresh connection each time: that of the last round may be the only one that still works.
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.get(uri.clone()).await.map_err(|error| with_causes(&error))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("answered {status}")),
    }
}

async fn redis(address: &str) -> Result<(), String> {
    const PONG: &[u8] = b"+PONG\r\n";
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.write_all(b"PING\r\n").await.map_err(|error| error.to_string())?;
    let mut answer = [0; PONG.len()];
    let read = stream.read_exact(&mut answer).await;
    match read {
        Ok(_) if answer == PONG => Ok(()),
        Ok(_) => Err(format!("answered {:?}", String::from_utf8_lossy(&answer))),
        Err(error) => Err(error.to_string()),
    }
}

/// The causes say most.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use cic_common::supervise::{Kind, Supervisor};
    use cic_common::time::Clock;
    use tokio::net::TcpListener;

    use super::*;
    use crate::views::{Gallery, Published};

    /// What a listener does with whoever connects.
    #[derive(Clone, Copy)]
    enum Manner {
        Says(&'static str),
        Hangs,
    }

    async fn listener(tasks: &Supervisor, manner: Manner) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        tasks.spawn("listener", Kind::Passing, move |token| async move {
            let mut held = Vec::new();
            while let Some(Ok((mut stream, _))) = token.run_until_cancelled(listener.accept()).await {
                if let Manner::Says(text) = manner {
                    let mut asked = [0; 6];
                    stream.read_exact(&mut asked).await?;
                    stream.write_all(text.as_bytes()).await?;
                }
                held.push(stream);
            }
            Ok(())
        });
        address
    }

    async fn refusing() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        listener.local_addr().expect("bound")
    }

    fn check(target: Target) -> Check {
        Check { name: "test", severity: Severity::Warning, target }
    }

    fn page(address: SocketAddr) -> Target {
        Target::Http(format!("http://{address}/-/ready").parse().expect("a url"))
    }

    #[tokio::test]
    async fn each_manner_of_failing_is_told_apart() {
        const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        const BAD: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
        let tasks = Supervisor::new();
        let up = listener(&tasks, Manner::Says(OK)).await;
        let broken = listener(&tasks, Manner::Says(BAD)).await;
        let pong = listener(&tasks, Manner::Says("+PONG\r\n")).await;
        let locked = listener(&tasks, Manner::Says("-NOAUTH Authentication required.\r\n")).await;
        let hanging = listener(&tasks, Manner::Hangs).await;
        let gone = refusing().await;
        let redis = |address: SocketAddr| Target::Redis(address.to_string());
        let looks = [
            (page(up), ""),
            (page(broken), "answered 500"),
            (page(gone), "refused"),
            (page(hanging), "no answer within 5 s"),
            (redis(pong), ""),
            (redis(locked), "answered \"-NOAUTH"),
            (redis(gone), "refused"),
            (redis(hanging), "no answer within 5 s"),
        ];
        let looks = looks.map(|(target, cause)| async move {
            let said = check(target.clone()).look().await;
            match (cause, said) {
                ("", said) => assert_eq!(said, Ok(()), "{target:?}"),
                (cause, Err(said)) => assert!(said.contains(cause), "{said} for {target:?}"),
                (cause, Ok(())) => panic!("not {cause}: {target:?}"),
            }
        });
        futures_util::future::join_all(looks).await;
        tasks.stop(Duration::from_secs(20)).await.expect("stops");
    }

    #[tokio::test]
    async fn a_provider_that_cannot_be_listed_and_a_closed_database_fail() {
        let clock = Clock::start();
        let (mut gallery, views) = Gallery::new(clock);
        let providers = check(Target::Providers(views));
        assert_eq!(providers.look().await, Ok(()));
        let mut blind = Published::default();
        blind.view.blind_providers = vec!["local".to_owned()];
        gallery.show(blind, clock.now(), clock.now());
        assert_eq!(providers.look().await, Err("cannot list local".to_owned()));

        let directory = tempfile::tempdir().expect("directory");
        let database = Database::open_file(&directory.path().join("cic.db")).await.expect("opens");
        let stored = check(Target::Database(database.clone()));
        assert_eq!(stored.look().await, Ok(()));
        database.close().await;
        assert!(stored.look().await.is_err());
    }

    #[test]
    fn the_own_api_is_asked_over_the_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:7480", "http://127.0.0.1:7480/healthz"),
            ("[::]:7480", "http://[::1]:7480/healthz"),
            ("10.0.0.1:80", "http://10.0.0.1:80/healthz"),
        ] {
            let check = Check::own_api(listen.parse().expect("an address")).expect("a url");
            let Target::Http(uri) = check.target else { panic!("{check:?}") };
            assert_eq!(uri.to_string(), expected);
        }
    }
}
