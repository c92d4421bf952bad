//! A configuration as it was read, with what is wrong in it.

use std::ffi::OsString;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::mistakes::ConfigMistakes;
use super::schema::{Schema, unknown, variable_prefix};

/// A value, if one could be built, and the mistakes so far.
#[derive(Debug)]
pub struct Reading<T> {
    value: Option<T>,
    mistakes: ConfigMistakes,
}

impl<T> Reading<T> {
    /// Adds what only the program can judge: ranges, files that must exist, keys that exclude each other. It is
    /// asked even when there are mistakes already, as long as the rest could be understood without them.
    #[must_use]
    pub fn check(mut self, judge: impl FnOnce(&T, &mut ConfigMistakes)) -> Self {
        if let Some(value) = &self.value {
            judge(value, &mut self.mistakes);
        }
        self
    }

    /// # Errors
    /// All mistakes; the caller prints them and exits with [`super::EXIT_CONFIG`].
    pub fn finish(self) -> Result<T, ConfigMistakes> {
        match self.value {
            Some(value) if self.mistakes.is_empty() => Ok(value),
            _ => Err(self.mistakes),
        }
    }
}

/// This process's environment. What is no text in a value is shown as such where the value is judged.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |value: OsString| value.to_string_lossy().into_owned();
    std::env::vars_os().filter_map(move |(name, value)| Some((name.into_string().ok()?, text(value))))
}

/// Reads the file at `path`, if one is given, and the variables of `environment` over it.
#[must_use]
pub fn read<T: DeserializeOwned>(
    path: Option<&Path>,
    schema: Schema,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Reading<T> {
    let mut mistakes = ConfigMistakes::none(path);
    let mut table = path.and_then(|path| parse_file(path, &mut mistakes)).unwrap_or_default();
    // A file that could not be read lacks everything; saying so for each key would hide the one cause.
    let is_whole = mistakes.is_empty();
    keep_known(&mut table, schema, &mut mistakes);
    overlay(&mut table, schema, environment, &mut mistakes);
    if is_whole {
        name_missing(&table, schema, &mut mistakes);
    }
    for section in schema.sections() {
        table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    }
    let value = match Value::Table(table).try_into::<T>() {
        Ok(value) => Some(value),
        Err(error) => {
            // With other mistakes listed this one is likely their echo: a required key that was removed.
            if mistakes.is_empty() {
                mistakes.push_whole(one_line(error.message()));
            }
            None
        }
    };
    Reading { value, mistakes }
}

fn parse_file(path: &Path, mistakes: &mut ConfigMistakes) -> Option<Table> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            mistakes.push_whole(format_args!("cannot be read: {error}"));
            return None;
        }
    };
    match text.parse::<Table>() {
        Ok(table) => Some(table),
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            mistakes.push_whole(format_args!("line {line}: {}", one_line(error.message())));
            None
        }
    }
}

/// Removes what is unknown or of the wrong kind, and says so.
fn keep_known(table: &mut Table, schema: Schema, mistakes: &mut ConfigMistakes) {
    table.retain(|section, content| {
        if !schema.sections().any(|known| known == section) {
            let what = unknown("section", section, schema.sections());
            mistakes.push_whole(format_args!("[{section}]: {what}"));
            return false;
        }
        let Value::Table(keys) = content else {
            mistakes
                .push_whole(format_args!("[{section}]: expected a section, found {}", content.type_str()));
            return false;
        };
        keys.retain(|name, value| {
            let Some(key) = schema.section(section).find(|key| key.name == name) else {
                let known = schema.section(section).map(|key| key.name);
                mistakes.push(section, name, unknown("key", name, known));
                return false;
            };
            let is_allowed = key.kind.allows(value);
            if !is_allowed {
                mistakes.push(
                    section,
                    name,
                    format_args!("expected {}, found {}", key.kind, value.type_str()),
                );
            }
            is_allowed
        });
        true
    });
}

/// Puts the environment's values over the file's.
fn overlay(
    table: &mut Table,
    schema: Schema,
    environment: impl IntoIterator<Item = (String, String)>,
    mistakes: &mut ConfigMistakes,
) {
    let mut variables: Vec<_> =
        environment.into_iter().filter(|(name, _)| name.starts_with("CIC_")).collect();
    variables.sort();
    for (variable, text) in variables {
        let Some(key) = schema.keys.iter().find(|key| key.variable() == variable) else {
            // Only a name of one of our sections is ours to judge; other programs have variables too.
            if schema.sections().any(|section| variable.starts_with(&variable_prefix(section))) {
                let known: Vec<String> = schema.keys.iter().map(super::Key::variable).collect();
                mistakes.push_variable(
                    &variable,
                    unknown("variable", &variable, known.iter().map(String::as_str)),
                );
            }
            continue;
        };
        match key.kind.parse(&text) {
            Some(value) => {
                let section = table.entry(key.section).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(keys) = section {
                    keys.insert(key.name.to_owned(), value);
                }
            }
            None => {
                mistakes.push_variable(&variable, format_args!("expected {}, found {text:?}", key.kind));
            }
        }
    }
}

fn name_missing(table: &Table, schema: Schema, mistakes: &mut ConfigMistakes) {
    // A key that was removed for its kind has been named already.
    let named: Vec<String> = mistakes.lines().to_vec();
    for key in schema.keys.iter().filter(|key| key.required) {
        let is_there = table.get(key.section).and_then(|section| section.get(key.name)).is_some();
        let marker = format!("[{}] {}: ", key.section, key.name);
        if !is_there && !named.iter().any(|line| line.contains(&marker)) {
            mistakes.push(key.section, key.name, format_args!("missing (or set {})", key.variable()));
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::schema::{Key, Kind};
    use super::*;

    const SCHEMA: Schema = Schema {
        keys: &[
            Key::required("agent", "node", Kind::Text),
            Key::optional("agent", "controllers", Kind::TextList),
            Key::optional("edge", "listen", Kind::Text),
            Key::optional("edge", "requests_max", Kind::Integer),
            Key::optional("edge", "trace", Kind::Flag),
            Key::optional("edge", "share", Kind::Number),
        ],
    };

    #[derive(Debug, PartialEq, Deserialize)]
    struct Config {
        agent: Agent,
        edge: Edge,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Agent {
        node: String,
        #[serde(default)]
        controllers: Vec<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Edge {
        #[serde(default = "listen")]
        listen: String,
        #[serde(default)]
        requests_max: u32,
        #[serde(default)]
        trace: bool,
        #[serde(default)]
        share: f64,
    }

    fn listen() -> String {
        "0.0.0.0:8000".to_owned()
    }

    fn reading(text: &str, environment: &[(&str, &str)]) -> Reading<Config> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        read(Some(&path), SCHEMA, environment)
    }

    /// The lines after the file's directory, which differs in each run.
    fn mistakes(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
        let error = reading(text, environment).finish().unwrap_err();
        let short = |line: &String| match line.split_once("agent.toml") {
            Some((_, rest)) => format!("agent.toml{rest}"),
            None => line.clone(),
        };
        error.lines().iter().map(short).collect()
    }

    #[test]
    fn a_file_is_read_and_the_environment_wins() {
        let config = reading(
            "[agent]\nnode = 'n1'\n[edge]\nrequests_max = 5\nshare = 1\n",
            &[
                ("CIC_EDGE_LISTEN", "127.0.0.1:9000"),
                ("CIC_EDGE_REQUESTS_MAX", "7"),
                ("CIC_EDGE_TRACE", "true"),
                ("CIC_AGENT_CONTROLLERS", "a:1, b:2"),
                ("CIC_OTHER_PROGRAM", "x"),
                ("HOME", "/"),
            ],
        )
        .finish()
        .unwrap();
        assert_eq!(config.agent.controllers, ["a:1", "b:2"]);
        assert_eq!(
            config.edge,
            Edge { listen: "127.0.0.1:9000".to_owned(), requests_max: 7, trace: true, share: 1.0 }
        );
    }

    #[test]
    fn the_environment_alone_is_enough() {
        let reading: Reading<Config> = read(None, SCHEMA, [("CIC_AGENT_NODE".to_owned(), "n1".to_owned())]);
        assert_eq!(reading.finish().unwrap().agent.node, "n1");
    }

    #[test]
    fn every_mistake_is_listed_at_once() {
        let found = mistakes(
            "colour = 1\n[agent]\n[edge]\nlisen = 'x'\nrequests_max = 'many'\n[egde]\n",
            &[("CIC_EDGE_TRACE", "maybe"), ("CIC_EDGE_LISTE", "x")],
        );
        assert_eq!(
            found,
            [
                "agent.toml: [colour]: unknown section",
                "agent.toml: [edge] lisen: unknown key; did you mean listen?",
                "agent.toml: [edge] requests_max: expected an integer, found string",
                "agent.toml: [egde]: unknown section; did you mean edge?",
                "CIC_EDGE_LISTE: unknown variable; did you mean CIC_EDGE_LISTEN?",
                "CIC_EDGE_TRACE: expected true or false, found \"maybe\"",
                "agent.toml: [agent] node: missing (or set CIC_AGENT_NODE)",
            ]
        );
    }

    #[test]
    fn what_the_program_finds_joins_the_list() {
        let error = reading("[agent]\nnode = 'n1'\n[edge]\nlisen = 'x'\n", &[])
            .check(|config, mistakes| {
                if config.edge.requests_max == 0 {
                    mistakes.push("edge", "requests_max", "must be at least 1");
                }
            })
            .finish()
            .unwrap_err();
        assert_eq!(error.lines().len(), 2);
        assert!(error.lines()[1].ends_with("[edge] requests_max: must be at least 1"));
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_one_mistake() {
        assert_eq!(mistakes("[agent]\nnode = 'n1\n", &[]).len(), 1);
        assert!(mistakes("[agent]\nnode = 'n1\n", &[])[0].starts_with("agent.toml: line 2: "));
        let missing: Reading<Config> = read(Some(Path::new("/no/such/agent.toml")), SCHEMA, []);
        let error = missing.finish().unwrap_err();
        assert_eq!(error.lines().len(), 1, "{error}");
        assert!(error.lines()[0].starts_with("/no/such/agent.toml: cannot be read: "));
    }

    #[test]
    fn a_value_out_of_its_range_is_a_mistake() {
        assert_eq!(mistakes("[agent]\nnode = 'n1'\n[edge]\nrequests_max = -1\n", &[]).len(), 1);
    }
}
