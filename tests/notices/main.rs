//! Every source of notices against its fake service, over a real connection: the cases of `docs/notices.md`, one row each.

mod aws;
mod azure;
mod gcp;
mod outage;
mod stand;
mod story;
