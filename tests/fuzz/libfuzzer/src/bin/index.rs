//! See `cargo xtask fuzz`.

#![no_main]

#[path = "../../../parsers.rs"]
#[allow(dead_code)]
mod parsers;

libfuzzer_sys::fuzz_target!(
    init: {
        if let Some(place) = std::env::var_os("CIC_FUZZ_INPUTS") {
            parsers::write_inputs("index", place.as_ref());
        }
    },
    |data: &[u8]| parsers::index(data)
);
