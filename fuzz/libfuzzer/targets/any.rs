//! The target whose name this program has. A program for each: cargo-fuzz keeps corpora and findings by program.
#![no_main]

use bg_fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<&Target> = LazyLock::new(|| target(env!("CARGO_BIN_NAME")).expect("a target of the library"));

fuzz_target!(|bytes: &[u8]| {
    (TARGET.feed)(bytes);
});
