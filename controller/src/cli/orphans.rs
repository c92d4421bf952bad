//! `cic orphans`: VMs of this fleet that no row knows.

use serde_json::{Value, json};

use super::args::OrphansWish;
use super::client::Client;
use super::failure::Failure;
use super::shown::Shown;
use super::span;
use super::style::{Style, Tone};
use super::table::{Cell, Table};
use crate::core::OrphanView;

pub(super) async fn orphans(client: &Client, wish: Option<&OrphansWish>, json: bool) -> Result<(), Failure> {
    match wish {
        None if json => {
            let answer: Value = client.get("/v1/orphans").await?;
            println!("{answer:#}");
            Ok(())
        }
        None => {
            let shown = Shown::fetch(client).await?;
            lines(&shown, &Style::of_stdout()).iter().for_each(|line| println!("{line}"));
            Ok(())
        }
        Some(OrphansWish::Adopt { nodes, all, deployment }) => {
            let body = json!({ "deployment": deployment, "reason": "asked with `cic orphans adopt`" });
            ask(client, "adopt", nodes, *all, &body).await
        }
        Some(OrphansWish::Terminate { nodes, all }) => {
            let body = json!({ "reason": "asked with `cic orphans terminate`" });
            ask(client, "terminate", nodes, *all, &body).await
        }
    }
}

/// The table, and how many VMs are other fleets'.
pub(super) fn lines(shown: &Shown, style: &Style) -> Vec<String> {
    let mut table = Table::new(["NODE", "PROVIDER", "LAUNCH", "SEEN", "SPEAKS", "GIVEN BACK", "WHY"]);
    for orphan in &shown.view.orphans {
        let due = orphan.terminate_at.map(|at| at.since(shown.view.now));
        let due =
            due.map_or(("held".to_owned(), Tone::Bad), |due| (format!("in {}", span::text(due)), Tone::Odd));
        table.row([
            orphan.node.as_str().into(),
            orphan.provider.as_str().into(),
            orphan.operation.to_string().into(),
            span::text(shown.ago(orphan.since)).into(),
            if orphan.is_speaking { "yes" } else { "-" }.into(),
            Cell::new(due.0, due.1),
            orphan.reason.as_str().into(),
        ]);
    }
    let none = "every VM of this fleet has a row".to_owned();
    let mut lines = if shown.view.orphans.is_empty() { vec![none] } else { table.lines(style) };
    if shown.view.foreign_count > 0 {
        lines.push(format!("{} more are of other fleets and left alone", shown.view.foreign_count));
    }
    lines
}

async fn ask(client: &Client, act: &str, endings: &[String], all: bool, body: &Value) -> Result<(), Failure> {
    let shown = Shown::fetch(client).await?;
    let orphans = &shown.view.orphans;
    let chosen: Vec<&OrphanView> = if all {
        orphans.iter().collect()
    } else {
        endings.iter().map(|ending| one(orphans, ending)).collect::<Result<_, _>>()?
    };
    if chosen.is_empty() {
        println!("every VM of this fleet has a row");
    }
    for orphan in chosen {
        client.post(&format!("/v1/orphans/{}/{act}", orphan.node), body).await?;
        println!("{}: {act} accepted", orphan.node);
    }
    Ok(())
}

fn one<'a>(orphans: &'a [OrphanView], ending: &str) -> Result<&'a OrphanView, Failure> {
    let fitting: Vec<_> = orphans.iter().filter(|orphan| orphan.node.as_str().ends_with(ending)).collect();
    match fitting[..] {
        [one] => Ok(one),
        [] => Err(Failure::new(format!("no orphan's name ends in {ending:?}; `cic orphans` lists them"))),
        _ => Err(Failure::new(format!("{ending:?} fits {} orphans; give more of the name", fitting.len()))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cic_common::id::{NodeId, OperationId};
    use cic_common::time::Mono;

    use super::super::shown;
    use super::*;

    #[test]
    fn the_table_says_when_one_is_given_back_or_that_it_is_held() {
        let mut shown = shown::tests::shown(&[]);
        assert_eq!(lines(&shown, &Style::PLAIN), ["every VM of this fleet has a row"]);
        let orphan = OrphanView {
            node: NodeId::new("cic-a-001-node001").expect("label"),
            provider: "local".to_owned(),
            operation: OperationId(7),
            since: Mono::from_millis(3_000),
            terminate_at: Some(shown.view.now + Duration::from_secs(30)),
            deployment: None,
            is_speaking: true,
            reason: "no row".to_owned(),
        };
        let held = OrphanView { terminate_at: None, is_speaking: false, ..orphan.clone() };
        shown.view.orphans = vec![orphan, held];
        shown.view.foreign_count = 2;
        assert_eq!(
            lines(&shown, &Style::PLAIN),
            [
                "NODE               PROVIDER  LAUNCH  SEEN  SPEAKS  GIVEN BACK  WHY",
                "cic-a-001-node001  local     7       7 s   yes     in 30 s     no row",
                "cic-a-001-node001  local     7       7 s   -       held        no row",
                "2 more are of other fleets and left alone",
            ]
        );
    }
}
