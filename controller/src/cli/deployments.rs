//! `cic deployments`.

use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::shown::Shown;
use super::style::{Style, Tone};
use super::table::{Cell, Table};

pub(super) async fn deployments(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        let answer: Value = client.get("/v1/deployments").await?;
        println!("{answer:#}");
        return Ok(());
    }
    let shown = Shown::fetch(client).await?;
    let mut table =
        Table::new(["DEPLOYMENT", "MODEL", "WANTED", "SERVING", "COMING", "LEAVING", "PROVIDER", "PATH"]);
    for row in &shown.view.deployments {
        let deployment = &row.deployment;
        let tone = if row.serving >= deployment.replicas { Tone::Good } else { Tone::Odd };
        table.row([
            deployment.name.as_str().into(),
            deployment.model.name.as_str().into(),
            deployment.replicas.to_string().into(),
            Cell::new(row.serving.to_string(), tone),
            row.coming.to_string().into(),
            row.leaving.to_string().into(),
            deployment.provider.as_str().into(),
            deployment.model.path.as_str().into(),
        ]);
    }
    table.print(&Style::of_stdout(), "no deployments; `cic apply FILE.toml` makes one");
    Ok(())
}
