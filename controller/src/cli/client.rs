//! HTTP to the controller's API and to an edge, each request with a deadline.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoint::Endpoint;
use super::failure::Failure;

/// A connection over any network we operate takes less.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// The API answers changes within 5 s, once they are stored.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no answer to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot reach the controller at {endpoint}: {why}; {way_out}")]
    Unreachable { endpoint: String, why: String, way_out: String },
    #[error("{message}; {hint}")]
    Refused { status: StatusCode, message: String, hint: String },
    #[error("{endpoint}{path} answered {status} with something that this command does not understand: {why}")]
    Answer { endpoint: String, path: String, status: StatusCode, why: String },
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.to_string())
    }
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    endpoint: Endpoint,
    /// `Bearer …`, not to be printed.
    bearer: Option<HeaderValue>,
}

/// `{"error":{…}}` of the API.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: RefusalText,
}

#[derive(Debug, Deserialize)]
struct RefusalText {
    message: String,
    #[serde(default)]
    hint: String,
}

impl Client {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_WITHIN));
        connector.set_nodelay(true);
        Self { pool: Pool::builder(TokioExecutor::new()).build(connector), endpoint, bearer: None }
    }

    /// Shows the admin token that `file` holds, to the controller and to the leader that it sends on to.
    ///
    /// # Errors
    /// When it cannot be read, or holds no token.
    pub(super) fn with_token(mut self, file: &Path) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::mistakes(vec![format!("--token-file {}: {why}", file.display())]);
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
        let token =
            Some(text.trim()).filter(|token| !token.is_empty()).ok_or_else(|| wrong("it is empty"))?;
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut bearer = value.map_err(|_| wrong("a token is one line of visible characters"))?;
        bearer.set_sensitive(true);
        self.bearer = Some(bearer);
        Ok(self)
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, None).await
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(Method::PUT, path, Some(body)).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let (status, answer) = self.send(method, path, body, ANSWER_WITHIN).await?;
        if !status.is_success() {
            return Err(self.refusal(path, status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|error| self.strange(path, status, error))
    }

    /// Sends one request and takes the whole answer, whatever its status, within `deadline`. A standby that sends it on to
    /// the leader is obeyed once, with the token that it was shown itself.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let content = body.map(serde_json::to_vec).transpose().map_err(|error| self.unreachable(&error))?;
        let content = Bytes::from(content.unwrap_or_default());
        let request = |base: &Endpoint| {
            let mut request = Request::builder().method(method.clone()).uri(format!("{base}{path}"));
            if let Some(bearer) = &self.bearer {
                request = request.header(AUTHORIZATION, bearer.clone());
            }
            request
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(content.clone()))
                .map_err(|error| self.unreachable(&error))
        };
        let exchange = async {
            let first = request(&self.endpoint)?;
            let mut response = self.pool.request(first).await.map_err(|error| self.unreachable(&error))?;
            if let Some(leader) = leader(&response, path) {
                let second = request(&leader)?;
                let failed = |error| Self { endpoint: leader.clone(), ..self.clone() }.unreachable(&error);
                response = self.pool.request(second).await.map_err(failed)?;
            }
            let status = response.status();
            let answer = response.into_body().collect().await.map_err(|error| self.unreachable(&error))?;
            Ok((status, answer.to_bytes()))
        };
        let late = |_| self.silent(&format!("no answer within {} s", deadline.as_secs()));
        tokio::time::timeout(deadline, exchange).await.map_err(late)?
    }

    fn refusal(&self, path: &str, status: StatusCode, answer: &[u8]) -> ClientError {
        match serde_json::from_slice::<Refusal>(answer) {
            Ok(Refusal { error: RefusalText { message, hint } }) => {
                ClientError::Refused { status, message, hint }
            }
            Err(error) => self.strange(path, status, error),
        }
    }

    fn strange(&self, path: &str, status: StatusCode, error: serde_json::Error) -> ClientError {
        let (endpoint, why) = (self.endpoint.to_string(), error.to_string());
        ClientError::Answer { endpoint, path: path.to_owned(), status, why }
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ClientError {
        // The innermost cause is the operating system's: `Connection refused`.
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        let text = innermost.to_string();
        let why = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
        self.silent(&why)
    }

    fn silent(&self, why: &str) -> ClientError {
        ClientError::Unreachable {
            endpoint: self.endpoint.to_string(),
            why: why.to_owned(),
            way_out: self.endpoint.way_out(),
        }
    }
}

/// Where a standby says that the leader is: another host and port, and the same path.
fn leader<B>(response: &hyper::Response<B>, path: &str) -> Option<Endpoint> {
    if response.status() != StatusCode::TEMPORARY_REDIRECT {
        return None;
    }
    let target = response.headers().get(LOCATION)?.to_str().ok()?;
    Endpoint::parse(target.strip_prefix("http://")?.strip_suffix(path)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_changes_nothing_but_host_and_port() {
        let answer = |status, target: &str| {
            let answer = hyper::Response::builder().status(status).header(LOCATION, target).body(());
            leader(&answer.expect("valid"), "/v1/tokens").map(|leader| leader.authority)
        };
        let sent_on = StatusCode::TEMPORARY_REDIRECT;
        assert_eq!(answer(sent_on, "http://c2:7480/v1/tokens").as_deref(), Some("c2:7480"));
        for wrong in
            ["http://c2:7480/v1/other", "https://c2:7480/v1/tokens", "/v1/tokens", "http://c2/v1/tokens"]
        {
            assert_eq!(answer(sent_on, wrong), None, "{wrong}");
        }
        assert_eq!(answer(StatusCode::MOVED_PERMANENTLY, "http://c2:7480/v1/tokens"), None);
    }

    #[tokio::test]
    async fn a_controller_that_is_not_there_is_named_with_the_way_out() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let error = Client::new(Endpoint::at(address)).get::<Value>("/v1/view").await.expect_err("nobody");
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot reach the controller at http://{address}: ")), "{text}");
        assert!(text.contains("connection refused; "), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_token_file_is_one_line_or_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let client = || Client::new(Endpoint::at("127.0.0.1:1"));
        for (name, content, bearer) in
            [("good", "secret\n", Some("Bearer secret")), ("empty", " \n", None), ("two", "a\nb\n", None)]
        {
            let file = dir.path().join(name);
            std::fs::write(&file, content).expect("writes");
            match (client().with_token(&file), bearer) {
                (Ok(client), Some(bearer)) => {
                    let value = client.bearer.expect("a token");
                    assert_eq!(value.to_str().ok(), Some(bearer));
                    assert!(value.is_sensitive());
                }
                (Err(failure), None) => {
                    let text = failure.to_string();
                    assert!(text.starts_with(&format!("--token-file {}", file.display())), "{text}");
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
        assert!(client().with_token(&dir.path().join("none")).is_err());
    }
}
