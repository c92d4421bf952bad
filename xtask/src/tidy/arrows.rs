//! Which folder may name which: dependencies point inwards, shell -> core -> common.

use super::finding::Finding;
use super::tree::Tree;

/// A folder (or the file of the same name), and the modules of its own crate that it may not name.
struct Arrow {
    from: &'static str,
    not_to: &'static [&'static str],
    why: &'static str,
}

const ARROWS: [Arrow; 10] = [
    Arrow {
        from: "agent/src/core",
        not_to: &["source", "effect", "serve", "driver", "config", "cli"],
        why: "a core knows no shell: take an Event, return an Action",
    },
    Arrow {
        from: "agent/src/source",
        not_to: &["effect", "serve", "driver"],
        why: "a source only says what it sees: let the core decide and an effect act",
    },
    Arrow {
        from: "agent/src/effect",
        not_to: &["source", "driver"],
        why: "an effect only does what it is told: what it needs to know comes with the Action",
    },
    Arrow {
        from: "agent/src/serve",
        not_to: &["source", "driver"],
        why: "what is served reads a snapshot and sends Events",
    },
    Arrow {
        from: "controller/src/core",
        not_to: &[
            "ingest",
            "poll",
            "store",
            "provision",
            "alert",
            "api",
            "dash",
            "market",
            "ha",
            "driver",
            "config",
            "cli",
        ],
        why: "a core knows no shell: take an Event, return an Action",
    },
    Arrow {
        from: "controller/src/ingest",
        not_to: &["poll", "store", "provision", "api", "cli"],
        why: "an inlet only turns what it hears into Events",
    },
    Arrow {
        from: "controller/src/poll",
        not_to: &["ingest", "store", "provision", "api", "cli"],
        why: "an inlet only turns what it hears into Events",
    },
    Arrow {
        from: "controller/src/provision",
        // A VM is launched with a join token of its own, so a provider may name the store.
        not_to: &["ingest", "poll", "api", "cli", "driver"],
        why: "a provider only performs operations; what they mean is decided and recorded elsewhere",
    },
    Arrow {
        from: "controller/src/api",
        not_to: &["ingest", "poll", "cli"],
        why: "the API reads the view and hands Events to the driver",
    },
    Arrow {
        from: "controller/src/cli",
        not_to: &["store", "ingest", "poll", "api", "driver"],
        why: "the operator's commands speak to the API, as any other client",
    },
];

pub(super) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for arrow in &ARROWS {
        let (folder, file) = (format!("{}/", arrow.from), format!("{}.rs", arrow.from));
        for source in tree.rust.iter().filter(|source| source.is_under(&folder) || source.path == file) {
            let own = arrow.from.rsplit('/').next().unwrap_or_default();
            let named =
                ["crate", "super::super"].into_iter().flat_map(|root| source.source.modules_below(root));
            for (number, module) in named {
                if module != own && arrow.not_to.contains(&module.as_str()) && !source.is_test_line(number) {
                    let what = format!("`{own}` names `{module}`");
                    found.push(Finding::error(&source.path, number, "arrows", what, arrow.why));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check(&Tree::of(&[(path, text)]), &mut found);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_arrow_outwards_is_named() {
        for (path, text) in [
            ("agent/src/core/agent.rs", "use crate::effect::engine;"),
            ("agent/src/source/host.rs", "crate::effect::push(x)"),
            ("controller/src/core/plan.rs", "use crate::{core::View, store::Store};"),
            ("controller/src/core/plan.rs", "use super::super::provision;"),
            ("controller/src/poll.rs", "use crate::store::Store;"),
            ("controller/src/api/nodes.rs", "use crate::poll;"),
            ("controller/src/cli/apply.rs", "use crate::store::Store;"),
        ] {
            assert_eq!(findings(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn an_arrow_inwards_is_fine() {
        for (path, text) in [
            ("agent/src/core/agent.rs", "use crate::core::Event; use super::timing;"),
            ("agent/src/effect/push.rs", "use crate::core::Action;"),
            ("controller/src/driver.rs", "use crate::{store, provision, ingest};"),
            ("controller/src/core/plan.rs", "use cic_common::wire::message;"),
            ("controller/src/api/nodes.rs", "use crate::core::View;"),
        ] {
            assert!(findings(path, text).is_empty(), "{path}: {text}");
        }
    }
}
