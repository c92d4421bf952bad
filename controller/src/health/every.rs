//! The checks of a controller: those that each has, and those that are configured.

use std::net::SocketAddr;

use super::check::{Check, Target};
use super::tally::Severity::{Critical, Warning};
use crate::config::HealthConfig;
use crate::driver::Outlets;
use crate::store::Database;

/// `listen` is where the API really listens.
///
/// # Errors
/// When `listen` makes no URL.
pub fn every(
    database: &Database,
    driver: &Outlets,
    listen: SocketAddr,
    config: &HealthConfig,
) -> Result<Vec<Check>, hyper::http::Error> {
    let mut checks = vec![
        Check { name: "database", severity: Critical, target: Target::Database(database.clone()) },
        Check { name: "providers", severity: Critical, target: Target::Providers(driver.views.clone()) },
        Check::own_api(listen)?,
    ];
    let configured = [
        ("prometheus", config.prometheus.clone().map(Target::Http)),
        ("log_sink", config.log.clone().map(Target::Http)),
        ("redis", config.redis.clone().map(Target::Redis)),
    ];
    for (name, target) in configured {
        checks.extend(target.map(|target| Check { name, severity: Warning, target }));
    }
    Ok(checks)
}
