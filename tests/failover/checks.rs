//! What must hold after any number of changes of the leader.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fleet_tests::process::{Duo, Outcome};

/// Longest from the loss of a leader to the next: the lease, a look, and the reading of the rows.
pub(crate) const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// Nothing was recorded under an older term after a newer one's first record: ids only rise, so then terms do.
pub(crate) fn terms_only_rise(duo: &Duo) -> anyhow::Result<()> {
    let mut newest = 0;
    for operation in duo.operations()? {
        let term = operation["term"].as_u64().context("no term")?;
        ensure!(term >= newest, "recorded under term {term} after one of term {newest}: {operation}");
        newest = term;
    }
    Ok(())
}

/// Every VM was launched once, for each there is one launch, and none is left over.
pub(crate) fn launches_are_single(duo: &Duo, expected: usize) -> anyhow::Result<()> {
    let operations = duo.operations()?;
    let done: Vec<&serde_json::Value> = operations
        .iter()
        .filter(|operation| operation["kind"].get("launch").is_some() && operation["state"] == "done")
        .collect();
    let nodes: BTreeSet<&str> = done.iter().filter_map(|operation| operation["node"].as_str()).collect();
    ensure!(done.len() == expected && nodes.len() == expected, "{expected} launches expected: {done:#?}");
    Ok(())
}

pub(crate) fn nobody_noticed(load: &Outcome) -> anyhow::Result<()> {
    ensure!(load.failed.is_empty() && load.good > 0, "users saw {load:?}");
    println!("{} requests, none failed, the longest took {:?}", load.good, load.longest);
    Ok(())
}
