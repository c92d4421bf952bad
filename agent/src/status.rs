//! `cic-agent status`: what the running agent says of itself.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::state::name;

const WITHIN: Duration = Duration::from_secs(5);

/// Prints the agent's `/healthz`. Returns the exit code.
///
/// # Errors
/// When no agent answers.
pub async fn status(config: &Config) -> anyhow::Result<u8> {
    let mut address = config.metrics.listen;
    if address.port() == 0 {
        let ports =
            std::fs::read(config.node.state_dir.join(name::PORTS)).context("no agent has run here")?;
        let ports: serde_json::Value = serde_json::from_slice(&ports)?;
        address.set_port(ports["metrics"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(0));
    }
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(WITHIN, ask)
        .await
        .context("no answer in time")?
        .with_context(|| format!("no agent answers at {address} ([metrics] listen)"))?;
    println!("{}", text.split_once("\r\n\r\n").map_or(text.as_str(), |(_, body)| body));
    Ok(0)
}
