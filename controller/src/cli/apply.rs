//! `cic apply FILE`: deployments from a file.

use std::collections::BTreeMap;
use std::path::Path;

use cic_common::id::DeploymentName;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::failure::Failure;

/// `[deployments.NAME]` tables. What one may hold is the API's to judge.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    deployments: BTreeMap<DeploymentName, Value>,
}

pub(super) async fn apply(client: &Client, file: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::mistakes(vec![format!("{} cannot be read: {error}", file.display())]))?;
    let manifest =
        parse(&text).map_err(|why| Failure::mistakes(vec![format!("{}: {why}", file.display())]))?;
    let mut mistakes = Vec::new();
    for (name, wanted) in &manifest.deployments {
        match client.put(&format!("/v1/deployments/{name}"), wanted).await {
            Ok(_) => println!("{name}: set"),
            Err(ClientError::Refused { message, .. }) => {
                mistakes.push(format!("{}: [deployments.{name}] {message}", file.display()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(Failure::mistakes(mistakes)) }
}

fn parse(text: &str) -> Result<Manifest, String> {
    let one_line = |error: toml::de::Error| error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    let manifest: Manifest = toml::from_str(text).map_err(one_line)?;
    if manifest.deployments.is_empty() {
        return Err("no [deployments.NAME] table".to_owned());
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_holds_deployments_by_name() {
        let text = "[deployments.tiny]\nreplicas = 2\nmodel = { name = 'tiny', path = '/m' }\n\
                    [deployments.tiny.engine]\nprogram = 'vllm'\n";
        let manifest = parse(text).expect("reads");
        let tiny = manifest.deployments.values().next().expect("one");
        assert_eq!(tiny["model"]["path"], "/m");
        assert_eq!(tiny["replicas"], 2);
    }

    #[test]
    fn what_is_no_manifest_is_refused_in_one_line() {
        for wrong in ["", "[deployment.a]\n", "[deployments.A_B]\nreplicas = 1\n", "[deployments]\n", "x ="] {
            let why = parse(wrong).expect_err(wrong);
            assert_eq!(why.lines().count(), 1, "{why}");
        }
    }
}
