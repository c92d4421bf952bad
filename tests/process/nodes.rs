//! What the nodes of a fleet say of themselves, asked without the controller.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::dev_fleet::DevFleet;
use super::http::request;

/// An agent answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The gateway's place in the directory of `cic dev`.
const GATEWAY: &str = "gateway";

impl DevFleet {
    /// Names of the replicas that have a machine, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join("nodes")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// What an agent says on `/healthz`: its report.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn report_of(&self, node: &str) -> anyhow::Result<Value> {
        request(&self.metrics_of(node)?, "GET", "/healthz", None, ANSWER_WITHIN)?.json()
    }

    /// Names of the replicas that say that they serve.
    #[must_use]
    pub fn serving_by_their_word(&self) -> Vec<String> {
        let serves = |node: &String| {
            self.report_of(node)
                .is_ok_and(|report| report["phase"] == "serving" && report["engine"]["state"] == "ready")
        };
        self.nodes().into_iter().filter(serves).collect()
    }

    /// Requests that are with the engine of a replica now; 0 where it does not answer.
    #[must_use]
    pub fn in_flight_of(&self, node: &str) -> usize {
        let count = self.report_of(node).ok().and_then(|report| report["edge"]["in_flight"].as_u64());
        count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
    }

    /// The page of metrics of a replica, or of the gateway.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics_page(&self, node: &str) -> anyhow::Result<String> {
        Ok(request(&self.metrics_of(node)?, "GET", "/metrics", None, ANSWER_WITHIN)?.body)
    }

    /// A figure of the gateway's metrics; `None` where it has no such one.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn gateway_metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        Ok(metric(&self.metrics_page(GATEWAY)?, name))
    }

    /// The agent's process of a replica.
    ///
    /// # Errors
    /// When none was started.
    pub fn agent_pid(&self, node: &str) -> anyhow::Result<u32> {
        let text = std::fs::read_to_string(self.path().join("nodes").join(node).join("agent.pid"));
        Ok(text.context("its pid")?.trim().parse()?)
    }

    /// Has the metadata service of a replica announce its end, without anything that takes it then.
    ///
    /// # Errors
    /// When it has none, or that refuses.
    pub fn publish_notice(&self, node: &str, cloud: &str, within: Duration) -> anyhow::Result<()> {
        let place = self.path().join("nodes").join(node).join("metadata.addr");
        let address = std::fs::read_to_string(place).context("its metadata service")?;
        let path = format!("/fake/notice?cloud={cloud}&kind=terminate&in_ms={}", within.as_millis());
        let answer = request(address.trim(), "POST", &path, None, ANSWER_WITHIN)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        Ok(())
    }

    /// The gateway's process.
    ///
    /// # Errors
    /// When none is found.
    pub fn gateway_pid(&self) -> anyhow::Result<u32> {
        let config = self.path().join(GATEWAY).join("agent.toml");
        let words = ["cic-agent", "run", "--config", &config.display().to_string()].map(str::to_owned);
        let is_it = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            words.iter().all(|word| line.contains(word))
        };
        let pids = self.processes().into_iter().filter_map(|pid| u32::try_from(pid).ok());
        pids.into_iter().find(is_it).context("no gateway process")
    }

    fn metrics_of(&self, node: &str) -> anyhow::Result<String> {
        let home =
            if node == GATEWAY { self.path().join(GATEWAY) } else { self.path().join("nodes").join(node) };
        let ports: Value = serde_json::from_slice(&std::fs::read(home.join("state/ports.json"))?)?;
        Ok(format!("127.0.0.1:{}", ports["metrics"].as_u64().context("no metrics port")?))
    }
}

/// The sample of this name in a page of metrics, without labels.
#[must_use]
pub fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let page = "cic_a_total_more 3\ncic_a_total 2\n";
        assert_eq!(metric(page, "cic_a_total"), Some(2.0));
        assert_eq!(metric(page, "cic_a"), None);
    }
}
