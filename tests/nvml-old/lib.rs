#![allow(unsafe_code, non_snake_case, non_upper_case_globals)]
//! The stand-in of `tests/nvml` without the symbols that drivers before R450 to R510 lack.

// What only the newer symbols read is part of the script all the same.
#![allow(dead_code)]

#[path = "../nvml/answer.rs"]
mod answer;
#[path = "../nvml/base.rs"]
mod base;
#[path = "../nvml/script.rs"]
mod script;
#[path = "../nvml/stage.rs"]
mod stage;
