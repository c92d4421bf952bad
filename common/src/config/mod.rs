//! Configuration: a TOML file, then `CIC_<SECTION>_<KEY>` from the environment over it.
//!
//! A program lists what it knows as a [`Schema`]; [`read`] reports every mistake of the file and the environment
//! at once and still builds the value when it can, so that the program can add what only it can judge
//! ([`Reading::check`]) before it prints all of them and exits with [`EXIT_CONFIG`].

mod mistakes;
mod reading;
mod schema;

pub use mistakes::{ConfigMistakes, EXIT_CONFIG};
pub use reading::{Reading, environment, read};
pub use schema::{Key, Kind, Schema, unknown};
