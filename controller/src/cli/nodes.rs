//! `cic nodes`.

use std::time::Duration;

use serde_json::Value;

use super::client::Client;
use super::condition;
use super::failure::Failure;
use super::screen::Screen;
use super::shown::{self, Shown};
use super::span;
use super::style::{Style, Tone};
use super::table::{Cell, Table};

/// Between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn nodes(client: &Client, watch: bool, json: bool) -> Result<(), Failure> {
    let style = Style::of_stdout();
    let mut screen = Screen::new(style);
    loop {
        if json {
            let answer: Value = client.get("/v1/nodes").await?;
            println!("{}", if watch { answer.to_string() } else { format!("{answer:#}") });
        } else if watch {
            let shown = Shown::fetch(client).await;
            let lines = shown
                .map_or_else(|failure| vec![style.fit(&failure.to_string())], |shown| lines(&shown, &style));
            screen.draw(&lines);
        } else {
            let shown = Shown::fetch(client).await?;
            lines(&shown, &style).iter().for_each(|line| println!("{line}"));
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// The table, and what holds irreversible acts back.
pub(super) fn lines(shown: &Shown, style: &Style) -> Vec<String> {
    let short = shown.short_names();
    let mut table = Table::new(["NODE", "ROLE", "PHASE", "BELIEF", "SINCE", "ROUTED", "GPU", "WHY"]);
    if !shown.view.nodes.iter().any(condition::has_gpus) {
        table.hide("GPU");
    }
    for node in &shown.view.nodes {
        let ((phase, phase_tone), (belief, belief_tone)) = (shown::phase(node), shown::belief(node.belief));
        let (gpus, gpus_tone) = condition::gpus(node);
        table.row([
            short.get(&node.node).copied().unwrap_or(node.node.as_str()).into(),
            shown::role(node.role).into(),
            Cell::new(phase, phase_tone),
            Cell::new(belief, belief_tone),
            span::text(shown.ago(node.belief_since)).into(),
            if node.is_routed { "yes" } else { "-" }.into(),
            Cell::new(gpus, gpus_tone),
            Cell::new(shown::why(node), Tone::Plain),
        ]);
    }
    let mut lines =
        if shown.view.nodes.is_empty() { vec!["no nodes yet".to_owned()] } else { table.lines(style) };
    if !shown.view.is_settled {
        let text = "settling: the controller has just started and judges nobody yet";
        lines.push(style.paint(&style.fit(text), Tone::Odd));
    }
    if !shown.view.orphans.is_empty() {
        let text = format!("{} VMs have no row: `cic orphans`", shown.view.orphans.len());
        lines.push(style.paint(&style.fit(&text), Tone::Bad));
    }
    let holds =
        shown.view.holds.iter().map(|hold| style.paint(&style.fit(&format!("held: {hold}")), Tone::Bad));
    lines.extend(holds);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_phase_belief_since_and_why() {
        let shown = shown::tests::shown(&["cic-local-here-none-dev-20261124-001-node001"]);
        assert_eq!(
            lines(&shown, &Style::PLAIN),
            [
                "NODE     ROLE     PHASE  BELIEF  SINCE  ROUTED  WHY",
                "node001  replica  -      alive   7 s    yes     pushes and answers",
                "settling: the controller has just started and judges nobody yet",
            ]
        );
    }
    #[test]
    fn gpus_have_a_column_where_there_are_any_and_troubles_come_first() {
        let mut shown = shown::tests::shown(&["cic-a-001-node001", "gateway"]);
        let mut report = condition::tests::report(vec![condition::tests::bad()]);
        report.engine.state = cic_common::report::EngineState::Stalled;
        shown.view.nodes[0].report = Some(report);
        let lines = lines(&shown, &Style::PLAIN);
        assert_eq!(
            lines[..3],
            [
                "NODE     ROLE     PHASE    BELIEF  SINCE  ROUTED  GPU      WHY",
                "node001  replica  serving  alive   7 s    yes     1/1 bad  engine stalled; GPUs 1 of 1 unhealthy: \
                 gpu 0: reset the GPU: XID 95; pushes and answers",
                "gateway  replica  -        alive   7 s    yes     -        pushes and answers",
            ]
        );
    }
}
