//! Who gets in: TLS, HTTP/2 and 1.1 on one port, keys, and how many connections.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::stand::{Stand, error_code, post, rest, statuses};

const COMPLETION: &str = r#"{"model":"tiny","prompt":"one","max_tokens":1}"#;

/// Writes a new pair for `edge.test` and returns the certificate.
fn write_pair(directory: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

/// Asks over TLS with one protocol offered. Returns the status, and the protocol that was agreed on.
fn ask_tls(
    stand: &Stand,
    trusted: &CertificateDer<'static>,
    protocol: &str,
) -> anyhow::Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone())?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(stand.edge).await?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("edge.test")?, stream).await?;
        let agreed = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
        let request = hyper::Request::post("https://edge.test/v1/completions").header("host", "edge.test");
        let request = request.body(Full::<bytes::Bytes>::from(COMPLETION))?;
        let response = if protocol == "h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok((status, String::from_utf8(agreed)?))
    })
}

#[test]
fn tls_serves_both_protocols_and_a_renewed_certificate_without_a_restart() {
    let files = tempfile::tempdir().unwrap();
    let first = write_pair(files.path());
    let path = |name: &str| files.path().join(name).display().to_string();
    let stand = Stand::start(|options| {
        options
            .with("CIC_EDGE_TLS_CERT_FILE", path("cert.pem"))
            .with("CIC_EDGE_TLS_KEY_FILE", path("key.pem"))
    });
    for protocol in ["h2", "http/1.1"] {
        assert_eq!(ask_tls(&stand, &first, protocol).unwrap(), (200, protocol.to_owned()));
    }
    assert!(ask_tls(&stand, &first, "http/0.9").is_err());

    // Rubbish in place of a handshake, in place of the rest of one, and none at all.
    let hello = [&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 500]].concat();
    for rubbish in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0; 4096], &[22, 3, 1, 0xff, 0xff], &hello] {
        for _ in 0..50 {
            let mut stream = stand.connect();
            let _ = stream.write_all(rubbish);
            if rubbish.len() > 10 {
                assert!(!rest(&mut stream).contains("HTTP/1.1"));
            }
        }
    }
    assert_eq!(ask_tls(&stand, &first, "h2").unwrap().0, 200);

    std::fs::write(files.path().join("cert.pem"), "broken").unwrap();
    stand.wait_for("a warning", || stand.log().contains("new certificate is of no use"));
    assert_eq!(ask_tls(&stand, &first, "h2").unwrap().0, 200);
    let second = write_pair(files.path());
    stand.wait_for("the new certificate", || ask_tls(&stand, &second, "h2").is_ok());
    assert!(ask_tls(&stand, &first, "h2").is_err());
    stand.assert_small("after rubbish for TLS");
}

#[test]
fn http_2_without_tls_is_understood_by_prior_knowledge() {
    let stand = Stand::start(|options| options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(stand.edge).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let ask = |_| {
            let mut sender = sender.clone();
            async move {
                let request = hyper::Request::post("http://edge/v1/completions").header("te", "trailers");
                let request = request.body(Full::<bytes::Bytes>::from(COMPLETION)).unwrap();
                let response = sender.send_request(request).await.unwrap();
                let overhead =
                    response.headers()["x-cic-overhead-us"].to_str().unwrap().parse::<u64>().unwrap();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                (serde_json::from_slice::<Value>(&body).unwrap(), overhead)
            }
        };
        futures_util::future::join_all((0..50).map(ask)).await
    });
    for (answer, _) in &answers {
        assert!(answer["choices"][0]["text"].is_string(), "{answer}");
    }
    let mut overheads: Vec<u64> = answers.iter().map(|(_, overhead)| *overhead).collect();
    overheads.sort_unstable();
    println!("own time of 50 requests at once: median {} µs, most {} µs", overheads[25], overheads[49]);
    assert!(overheads[49] < 1_000_000, "{overheads:?}");
}

#[test]
fn no_client_has_more_connections_than_its_share() {
    let stand = Stand::start(|options| {
        options.with("CIC_EDGE_CONNECTIONS_PER_CLIENT_MAX", "20").with("CIC_EDGE_CONNECTIONS_MAX", "30")
    });
    // The harness asks the edge too, one connection a request.
    let mut held: Vec<_> = (0..60).map(|_| stand.connect()).collect();
    let mut is_open = |stream: &mut std::net::TcpStream| {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: edge\r\n\r\n");
        matches!(stream.read(&mut [0; 1024]), Ok(length) if length > 0)
    };
    let open: Vec<bool> = held.iter_mut().map(&mut is_open).collect();
    assert_eq!(open.iter().filter(|is_open| **is_open).count(), 20, "{open:?}");
    drop(held);
    stand.wait_for("places given back", || stand.complete(1).is_ok_and(|answer| answer.status == 200));
}

/// The key that `cic-agent key new` prints, and its entry.
fn new_key(name: &str) -> (String, String) {
    let agent = fleet_tests::process::binary("cic-agent").unwrap();
    let made = std::process::Command::new(agent).args(["key", "new", name]).output().unwrap();
    assert!(made.status.success());
    let text = String::from_utf8(made.stdout).unwrap();
    let key = text.lines().find_map(|line| line.strip_prefix("# sk-")).unwrap();
    (format!("sk-{key}"), text)
}

#[test]
fn keys_are_asked_for_bounded_and_read_again() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("keys.toml");
    let ((one, one_entry), (two, two_entry), (late, late_entry)) =
        (new_key("one"), new_key("two"), new_key("late"));
    let text = format!(
        "{one_entry}class_max = 'batch'\nclass = 'batch'\n{two_entry}models = ['other']\nrequests_per_minute = 3\n"
    );
    std::fs::write(&path, &text).unwrap();
    let stand = Stand::start(|options| options.with("CIC_EDGE_KEYS_FILE", path.display().to_string()));
    let ask =
        |header: &str| stand.say(post(COMPLETION, &format!("connection: close\r\n{header}")).as_bytes());
    let bearer = |key: &str| format!("authorization: Bearer {key}\r\n");

    assert_eq!(statuses(&ask(&bearer(&one))), [200]);
    assert_eq!(statuses(&ask(&format!("x-api-key: {one}\r\nx-cic-class: latency_critical\r\n"))), [200]);
    for (header, status, code) in [
        (String::new(), 401, "missing_api_key"),
        (bearer("sk-cic-0"), 401, "invalid_api_key"),
        (bearer(&late), 401, "invalid_api_key"),
        (bearer(&two), 403, "model_not_allowed"),
        (bearer(&two), 403, "model_not_allowed"),
        (bearer(&two), 403, "model_not_allowed"),
        (bearer(&two), 429, "rate_limit_exceeded"),
    ] {
        let answer = ask(&header);
        assert_eq!((statuses(&answer), error_code(&answer).as_str()), (vec![status], code), "{answer}");
        assert_eq!(answer.contains("retry-after: "), status == 429, "{answer}");
    }
    let health = stand.say(b"GET /healthz HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n");
    assert_eq!(statuses(&health), [200], "load balancers have no key");

    std::fs::write(&path, "broken").unwrap();
    stand.wait_for("a warning", || stand.log().contains("new keys file is of no use"));
    assert_eq!(statuses(&ask(&bearer(&one))), [200]);
    std::fs::write(&path, format!("{late_entry}{two_entry}requests_per_minute = 3\n")).unwrap();
    stand.wait_for("the new key", || statuses(&ask(&bearer(&late))) == [200]);
    assert_eq!(statuses(&ask(&bearer(&one))), [401], "it is no longer in the file");
    assert_eq!(statuses(&ask(&bearer(&two))), [429], "a new file gives nothing back");

    stand.wait_for("access lines", || stand.log().contains("key=\"late\""));
    let log = stand.log();
    let line =
        log.lines().find(|line| line.contains("access: request") && line.contains("key=\"one\"")).unwrap();
    for part in [
        "path=\"/v1/completions\"",
        "model=\"tiny\"",
        "status=200",
        "nodes=\"solo\"",
        "ended=\"whole\"",
        "class=\"batch\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    for key in [&one, &two, &late] {
        assert!(!log.contains(&key[7..]), "no log holds a key");
    }
}
