//! `cic dev`: a whole fleet on this machine, from the real programs.
//!
//! ```text
//! plan (all mistakes at once) -> place (directory) -> fleet (controller, deployment, gateway: children that are
//!                                                           kept alive as systemd would)
//!                                  live (table, until Ctrl-C) or once (until served) -> ending (nothing is left)
//! ```
//! The replicas are launched by the controller's provider `local`, not from here.

mod child;
mod completion;
mod ending;
mod fleet;
mod live;
mod model;
mod place;
mod plan;
mod run;
mod start;

pub(super) use run::run;
