//! Who may change something: the bearer of the admin token, or, without one, programs on this machine.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use axum::middleware::Next;
use axum::response::Response;
use ring::digest::{Digest, SHA256, digest};

use super::error::ApiError;
use super::server::Api;

/// Kept as a hash, so that comparing tells nothing of the token by its time.
#[derive(Debug, Clone)]
pub(super) struct AdminToken(Digest);

impl AdminToken {
    pub(super) fn new(token: &str) -> Self {
        Self(digest(&SHA256, token.trim().as_bytes()))
    }

    fn admits(&self, bearer: &str) -> bool {
        digest(&SHA256, bearer.trim().as_bytes()).as_ref() == self.0.as_ref()
    }
}

/// Lets a change through or says why not.
pub(super) async fn check(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match &api.admin_token {
        Some(token) => check_bearer(token, request.headers())?,
        None => check_browser(request.headers())?,
    }
    Ok(next.run(request).await)
}

fn check_bearer(token: &AdminToken, headers: &HeaderMap) -> Result<(), ApiError> {
    match text(headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")) {
        Some(bearer) if token.admits(bearer) => Ok(()),
        Some(_) | None => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "changes need the admin token",
            "name its file with `cic --token-file`, or send `Authorization: Bearer …`; it is what api.admin_token_file names",
        )),
    }
}

/// Without a token the listener is on the loopback, where a web page in a browser could reach it: by sending a
/// form from its own origin, or by having its own name resolve to the loopback.
fn check_browser(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = text(headers, &HOST).unwrap_or_default();
    let is_foreign_page = text(headers, &ORIGIN)
        .is_some_and(|origin| origin.split_once("://").is_none_or(|(_, authority)| authority != host));
    if is_foreign_page || !is_loopback(host) {
        let hint = "use the loopback address, or configure api.admin_token_file";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "changes are taken from this machine only", hint));
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_are_local() {
        for (host, is_local) in [
            ("127.0.0.1:7480", true),
            ("localhost", true),
            ("[::1]:7480", true),
            ("evil.example:7480", false),
            ("10.0.0.1:7480", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(host), is_local, "{host}");
        }
    }

    #[test]
    fn a_foreign_page_changes_nothing() {
        let headers = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "127.0.0.1:7480".parse().expect("valid"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().expect("valid"));
            }
            headers
        };
        assert!(check_browser(&headers(None)).is_ok());
        assert!(check_browser(&headers(Some("http://127.0.0.1:7480"))).is_ok());
        for foreign in ["http://evil.example", "null", "http://127.0.0.1:80"] {
            assert!(check_browser(&headers(Some(foreign))).is_err(), "{foreign}");
        }
    }
}
