//! A deployment as an operator sends it, and every mistake in it at once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cic_common::assignment::{EngineSpec, ModelSpec, Source};
use cic_common::id::{DeploymentName, check_label};
use cic_common::name::{ClusterName, GPU_NONE};
use cic_common::objects::Stores;
use cic_common::time::utc_date;
use serde::{Deserialize, Serialize};

use super::routing::WantedRouting;
use crate::core::{Deployment, UsdPerHour, View};
use crate::provision::local;

/// Replicas of one deployment: one cluster's worth of node numbers.
const REPLICAS_MAX: u16 = 999;

/// Longest model name: as long as a path may be on any file system we serve from.
const MODEL_NAME_BYTES_MAX: usize = 255;

/// Where nodes of provider `local` are.
const ZONE_DEFAULT: &str = "here";

/// Pricing in the cluster names of provider `local`.
const LOCAL_PRICING: &str = "dev";

/// The body of `PUT /v1/deployments/NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub model: ModelSpec,
    pub engine: EngineSpec,
    pub replicas: u16,
    /// All but one when left out.
    #[serde(default)]
    pub replicas_min: Option<u16>,
    /// `local` when left out.
    #[serde(default)]
    pub provider: Option<String>,
    /// `here` when left out.
    #[serde(default)]
    pub zone: Option<String>,
    /// The defaults when left out; unlike the rest it can change under running nodes.
    #[serde(default)]
    pub routing: WantedRouting,
    /// None when left out; like routing it can change, for launches to come.
    #[serde(default)]
    pub price_limit_usd_per_hour: Option<f64>,
}

/// What a wish is checked against.
#[derive(Debug)]
pub struct WantedBy<'a> {
    pub name: &'a str,
    pub view: &'a View,
    pub now_unix_ms: u64,
}

impl Wanted {
    /// The deployment that is wanted.
    ///
    /// # Errors
    /// Every mistake found, each in one line.
    pub fn check(self, by: &WantedBy<'_>) -> Result<Deployment, Vec<String>> {
        let mut mistakes = Vec::new();
        let provider = self.provider.unwrap_or_else(|| local::NAME.to_owned());
        let zone = self.zone.unwrap_or_else(|| ZONE_DEFAULT.to_owned());
        let name = DeploymentName::new(by.name).map_err(|error| mistakes.push(format!("name: {error}"))).ok();
        if let Err(error) = check_label(&zone) {
            mistakes.push(format!("zone: {error}"));
        }
        check_model_name(&self.model.name, &mut mistakes);
        if provider == local::NAME {
            check_model_path(&self.model, &mut mistakes);
            check_program(&self.engine.program, &mut mistakes);
        } else {
            mistakes.push(format!("provider: {provider:?} is not configured; there is \"{}\"", local::NAME));
        }
        if self.replicas > REPLICAS_MAX {
            mistakes.push(format!("replicas: {} is more than {REPLICAS_MAX}", self.replicas));
        }
        let replicas_min = self.replicas_min.unwrap_or_else(|| self.replicas.saturating_sub(1));
        if replicas_min > self.replicas {
            mistakes.push(format!("replicas_min: {replicas_min} is more than replicas, {}", self.replicas));
        }
        let routing = self.routing.check(&mut mistakes);
        let price_limit = self.price_limit_usd_per_hour.map(UsdPerHour::try_from).transpose();
        let price_limit = price_limit
            .map_err(|error| mistakes.push(format!("price_limit_usd_per_hour: {error}")))
            .unwrap_or_default();
        let known = by.view.deployments.iter().map(|view| &view.deployment);
        if let Some(known) = known.clone().find(|known| known.name.as_str() == by.name) {
            // Where it is to be had else matters to the next node alone.
            let same_files = ModelSpec { sources: known.model.sources.clone(), ..self.model.clone() };
            check_fixed("model", &known.model, &same_files, &mut mistakes);
            check_fixed("engine", &known.engine, &self.engine, &mut mistakes);
            check_fixed("provider", &known.provider, &provider, &mut mistakes);
            check_fixed("zone", &known.zone, &zone, &mut mistakes);
        }
        let (Some(name), true) = (name, mistakes.is_empty()) else { return Err(mistakes) };
        let (cluster, node_next) = place(&name, &provider, &zone, by).map_err(|mistake| vec![mistake])?;
        Ok(Deployment {
            name,
            model: self.model,
            engine: self.engine,
            replicas: self.replicas,
            replicas_min,
            provider,
            zone,
            cluster,
            node_next,
            routing,
            price_limit_usd_per_hour: price_limit,
        })
    }
}

/// A deployment that is known keeps its cluster; a new one opens the next cluster of the day.
fn place(
    name: &DeploymentName,
    provider: &str,
    zone: &str,
    by: &WantedBy<'_>,
) -> Result<(ClusterName, u16), String> {
    let known = || by.view.deployments.iter().map(|view| &view.deployment);
    if let Some(earlier) = known().find(|known| known.name == *name) {
        return Ok((earlier.cluster.clone(), earlier.node_next));
    }
    let date = utc_date(by.now_unix_ms);
    let used = |known: &Deployment| known.cluster.provider == provider && known.cluster.date == date;
    let last = known().filter(|known| used(known)).map(|known| known.cluster.seq).max().unwrap_or(0);
    ClusterName::new(provider, zone, GPU_NONE, LOCAL_PRICING, &date, last + 1)
        .map(|cluster| (cluster, 1))
        .map_err(|error| format!("zone: {error}"))
}

/// Nodes run what they were launched with, and a route names one model: what a deployment is cannot change under them.
fn check_fixed<T: PartialEq>(what: &str, known: &T, wanted: &T, mistakes: &mut Vec<String>) {
    if known != wanted {
        mistakes.push(format!(
            "{what}: that of a deployment cannot change; apply it under another name, then set this one's replicas to 0"
        ));
    }
}

fn check_model_name(name: &str, mistakes: &mut Vec<String>) {
    if name.is_empty()
        || name.len() > MODEL_NAME_BYTES_MAX
        || name.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        let rule = format!("must be 1 to {MODEL_NAME_BYTES_MAX} bytes without spaces");
        mistakes.push(format!("model.name: {name:?} {rule}"));
    }
}

fn check_model_path(model: &ModelSpec, mistakes: &mut Vec<String>) {
    let path = &model.path;
    let directory = Path::new(path);
    if !directory.is_absolute() {
        mistakes.push(format!("model.path: {path:?} is not an absolute path"));
    } else if !model.sources.is_empty() {
        // The node finds out what is where.
        let stores = model.sources.iter().filter(|source| matches!(source, Source::Store(_)));
        let mistake = |source: &Source| {
            let (_, error) = Stores::open_with([source.as_str()], [("", ""); 0]).err()?;
            Some(format!("model.sources: {:?}: {error}", source.as_str()))
        };
        mistakes.extend(stores.filter_map(mistake));
    } else if !directory.is_dir() {
        mistakes.push(format!("model.path: there is no directory {path:?}"));
    } else if !directory.join("config.json").is_file() {
        mistakes.push(format!("model.path: {path:?} holds no config.json, so it is no model"));
    }
}

fn check_program(program: &str, mistakes: &mut Vec<String>) {
    let found = if program.contains('/') {
        Path::new(program).is_absolute() && is_executable(Path::new(program))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(program))
            .any(|file: PathBuf| is_executable(&file))
    };
    if program.is_empty() || !found {
        mistakes.push(format!(
            "engine.program: no executable {program:?}; give an absolute path, or install it on the PATH"
        ));
    }
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::DeploymentView;

    fn wanted(path: &Path) -> Wanted {
        let text = path.display().to_string();
        Wanted {
            model: ModelSpec::at("tiny", &text),
            engine: EngineSpec { program: "sh".to_owned(), args: Vec::new(), env: Default::default() },
            replicas: 2,
            replicas_min: None,
            provider: None,
            zone: None,
            routing: WantedRouting::default(),
            price_limit_usd_per_hour: Some(2.5),
        }
    }

    fn model() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::write(directory.path().join("config.json"), "{}").expect("writes");
        directory
    }

    fn by<'a>(name: &'a str, view: &'a View) -> WantedBy<'a> {
        WantedBy { name, view, now_unix_ms: 1_795_478_400_000 }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let wrong = Wanted {
            model: ModelSpec::at("a b", "/no/such/model"),
            engine: EngineSpec {
                program: "no-such-engine".to_owned(),
                args: Vec::new(),
                env: Default::default(),
            },
            replicas: 1,
            replicas_min: Some(2),
            provider: None,
            zone: Some("Here".to_owned()),
            routing: WantedRouting { tier: Some(4), ..WantedRouting::default() },
            price_limit_usd_per_hour: Some(-1.0),
        };
        let mistakes = wrong.check(&by("Chat", &View::default())).expect_err("wrong");
        let subjects: Vec<_> = mistakes.iter().filter_map(|text| text.split(':').next()).collect();
        assert_eq!(
            subjects,
            [
                "name",
                "zone",
                "model.name",
                "model.path",
                "engine.program",
                "replicas_min",
                "routing.tier",
                "price_limit_usd_per_hour"
            ]
        );
    }

    #[test]
    fn routing_changes_under_a_known_deployment_and_nothing_else_of_it_does() {
        let model = model();
        let mut view = View::default();
        let deployment = wanted(model.path()).check(&by("a", &view)).expect("right");
        view.deployments.push(DeploymentView { deployment, serving: 2, stalled: 0, coming: 0, leaving: 0 });
        let routing = WantedRouting { weight: Some(10), tier: Some(1), ..WantedRouting::default() };
        let changed = Wanted { routing, ..wanted(model.path()) }.check(&by("a", &view)).expect("right");
        assert_eq!((changed.routing.weight, changed.routing.tier), (10, 1));
        assert_eq!(changed.price_limit_usd_per_hour.map(f64::from), Some(2.5));
        let moved = Wanted { zone: Some("there".to_owned()), ..wanted(model.path()) };
        assert_eq!(moved.check(&by("a", &view)).expect_err("wrong").len(), 1);
    }

    #[test]
    fn a_new_deployment_opens_a_cluster_and_a_changed_one_keeps_its_own() {
        let model = model();
        let mut view = View::default();
        let first = wanted(model.path()).check(&by("a", &view)).expect("right");
        assert_eq!(first.cluster.to_string(), "cic-local-here-none-dev-20261124-001");
        assert_eq!((first.node_next, first.replicas_min), (1, 1));
        let deployment = Deployment { node_next: 7, ..first.clone() };
        view.deployments.push(DeploymentView { deployment, serving: 0, stalled: 0, coming: 0, leaving: 0 });
        let again = Wanted { replicas: 5, ..wanted(model.path()) }.check(&by("a", &view)).expect("right");
        assert_eq!((again.cluster, again.node_next), (first.cluster, 7));
        let second = wanted(model.path()).check(&by("b", &view)).expect("right");
        assert_eq!(second.cluster.seq, 2);
    }
}
