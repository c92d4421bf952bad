//! Checkpoints in a real server of the S3 protocol: written in time, the damaged ones passed over, and a lost node's
//! requests answered by its successor.

mod outage;
mod restore;
mod story;
mod written;
