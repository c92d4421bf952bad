//! What the fleet's programs are told: configuration files and the deployment.

use std::fs;
use std::io;
use std::net::SocketAddr;

use cic_common::ports::lasting_port;
use serde_json::json;

use super::child::Recipe;
use super::place::Place;
use super::plan::Plan;
use crate::provision::local::Checkpoints;

pub(super) const DEPLOYMENT: &str = "dev";
pub(super) const GATEWAY: &str = "gateway";

/// The controller, its configuration written.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn controller(plan: &Plan, place: &Place, quic: SocketAddr) -> io::Result<Recipe> {
    let state = place.file("controller");
    fs::create_dir_all(&state)?;
    let mut config = json!({
        "controller": { "id": "dev", "state_dir": state },
        "quic": { "listen": quic.to_string() },
        "api": { "listen": plan.api.to_string() },
        "local": { "dir": place.dir, "agent_program": plan.agent, "controller_address": quic.to_string() },
    });
    config["local"]["cloud"] = json!(plan.hardware.cloud);
    if let Some(program) = &plan.hardware.metadata_program {
        config["local"]["metadata_program"] = json!(program);
    }
    let Checkpoints { url, second_url, every_s } = &plan.hardware.checkpoints;
    for (key, url) in [("checkpoint_url", url), ("checkpoint_second_url", second_url)] {
        if let Some(url) = url {
            config["local"][key] = json!(url);
        }
    }
    if let Some(every_s) = every_s {
        config["local"]["checkpoint_every_s"] = json!(every_s);
    }
    let path = place.file("controller.toml");
    fs::write(&path, toml_text(&config)?)?;
    Ok(Recipe {
        name: "controller",
        program: plan.controller.clone(),
        args: vec!["serve".to_owned(), "--config".to_owned(), path.display().to_string()],
        log: place.file("controller.log"),
        fleet: place.dir.clone(),
        inherits_settings: true,
    })
}

/// The gateway's agent, its configuration and join token written.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn gateway(plan: &Plan, place: &Place, quic: SocketAddr, token: &str) -> io::Result<Recipe> {
    let home = place.file(GATEWAY);
    fs::create_dir_all(home.join("state"))?;
    fs::copy(place.file("controller").join("tls/ca.pem"), home.join("ca.pem"))?;
    cic_common::tls::write_secret(&home.join("join-token"), token.as_bytes())?;
    let peer = format!("127.0.0.1:{}", lasting_port()?);
    let config = json!({
        "node": { "id": GATEWAY, "role": "gateway", "zone": "here", "state_dir": home.join("state") },
        "controller": {
            "addresses": [quic.to_string()],
            "ca_file": home.join("ca.pem"),
            "join_token_file": home.join("join-token"),
        },
        "peer": { "listen": peer, "advertise": peer },
        "edge": { "listen": plan.edge.to_string() },
        "metrics": { "listen": "127.0.0.1:0" },
        "spot": { "cloud": "none" },
        "checkpoint": plan.hardware.checkpoints.below(&place.dir),
    });
    let path = home.join("agent.toml");
    fs::write(&path, toml_text(&config)?)?;
    Ok(Recipe {
        name: "gateway",
        program: plan.agent.clone(),
        args: vec!["run".to_owned(), "--config".to_owned(), path.display().to_string()],
        log: home.join("agent.log"),
        fleet: place.dir.clone(),
        inherits_settings: false,
    })
}

/// The body of the deployment.
pub(super) fn deployment(plan: &Plan, place: &Place) -> serde_json::Value {
    let path = plan.model.clone().unwrap_or_else(|| place.file("model"));
    json!({
        "model": { "name": plan.model_name, "path": path },
        "engine": plan.engine,
        "replicas": plan.replicas,
    })
}

fn toml_text(config: &serde_json::Value) -> io::Result<String> {
    toml::to_string(config).map_err(io::Error::other)
}
