//! `cic leader`, `cic failover`: which controller leads.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::Client;
use super::failure::Failure;

/// Answer of `/v1/leader`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Word {
    controller: String,
    role: String,
    term: u64,
    leader: Option<Named>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Named {
    controller: String,
    api: String,
}

pub(super) async fn leader(client: &Client, json: bool) -> Result<(), Failure> {
    let word: Word = client.get("/v1/leader").await?;
    if json {
        println!("{}", json!(word));
    } else {
        println!("{}", word.text());
    }
    Ok(())
}

pub(super) async fn failover(client: &Client) -> Result<(), Failure> {
    let answer = client.post("/v1/failover", &json!({})).await?;
    let stands_back_s = answer["stands_back_ms"].as_u64().unwrap_or(0) / 1000;
    println!(
        "term {} has ended; its leader stands back for {stands_back_s} s. `cic leader` shows who leads",
        answer["term"]
    );
    Ok(())
}

impl Word {
    /// `c2 leads under term 7, at http://10.0.0.2:7480; asked c1, a standby`
    fn text(&self) -> String {
        let asked = match self.role.as_str() {
            "leader" => String::new(),
            "standby" => format!("; asked {}, a standby", self.controller),
            role => format!("; asked {}, {role}", self.controller),
        };
        match &self.leader {
            Some(leader) => {
                format!("{} leads under term {}, at {}{asked}", leader.controller, self.term, leader.api)
            }
            None => format!("nobody is known to lead; the newest term is {}{asked}", self.term),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_is_said_first_and_then_who_was_asked() {
        let named = || Some(Named { controller: "c2".to_owned(), api: "http://c2:1".to_owned() });
        let text = |role: &str, leader| {
            let (controller, role) = ("c1".to_owned(), role.to_owned());
            Word { controller, role, term: 7, leader }.text()
        };
        assert_eq!(text("standby", named()), "c2 leads under term 7, at http://c2:1; asked c1, a standby");
        assert_eq!(text("leader", named()), "c2 leads under term 7, at http://c2:1");
        assert_eq!(
            text("distrusting", None),
            "nobody is known to lead; the newest term is 7; asked c1, distrusting"
        );
    }
}
