//! An OpenAI-compatible API outside the fleet, for what no replica can take.
//!
//! ```text
//! Edge::wait -> Surge::ask: may it? (route, class, model) -> Purse::reserve -> attempt -> Meter -> client
//!                                                              ^---- settle: tokens and cost ----'
//! ```
//! It costs money by the token, so that every request is paid in advance at an estimate and settled by what the API
//! says it used. The user's own credentials never leave: the request is written anew ([`asking`]).

mod asking;
mod metered;
mod purse;
mod spec;
mod surge;
mod usage;

pub use spec::{Price, SurgeSpec, SurgeUrl, SurgeUrlError};
pub(super) use surge::Surge;
