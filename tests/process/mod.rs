//! Real programs as real processes on loopback: a fleet run by `cic dev`, one agent by itself, and clients.

mod apart;
mod asks;
mod choir;
mod cut_line;
mod dev_fleet;
mod duo;
mod gpus;
mod heard;
mod http;
mod load;
mod nodes;
mod postgres;
mod rough_line;
mod s3;
mod solo;
mod streams;
mod strike;
mod view;

pub use apart::{Apart, succeeds};
pub use asks::asks;
pub use choir::{Board, Choir};
pub use cut_line::CutLine;
pub use dev_fleet::{DevFleet, Fault, NOTICE_WITHIN, ONE_THREAD, Options, binary, repository, shipped};
pub use duo::Duo;
pub use gpus::StandInGpus;
pub use heard::{Ask, Heard};
pub use http::{Answer, request, request_as};
pub use load::{Load, Outcome};
pub use nodes::metric;
pub use postgres::Postgres;
pub use rough_line::{Passed, RoughLine};
pub use s3::{S3_KEYS, S3Server};
pub use solo::{Solo, SoloOptions};
pub use streams::{Streams, StreamsSeen};
pub use strike::{Strike, Striker};
pub use view::View;
