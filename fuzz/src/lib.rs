//! Feeding bytes that nobody has chosen to the packet engine's host build, and to what reads files in user space.
//!
//! A [`Target`] takes any bytes, and panics if something is not as it must be. Who chooses the bytes is another matter:
//! libFuzzer (`cargo xtask fuzz`, which needs a nightly compiler), [`chosen`] (a bounded number of random and mutated inputs), or the files of
//! `fuzz/corpus`, which are real packets and what was once found.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`parser`], [`engine`], [`unpacking`] | the data path |
//! | [`files`] | configuration, history, last live colours |
//! | `stage`, `judge` | the maps, and what must be true of each frame |
//! | [`look`] | etherparse's opinion of a frame |

pub mod chosen;
pub mod corpus;
pub mod engine;
pub mod files;
mod input;
mod judge;
pub mod look;
pub mod parser;
pub mod run;
mod stage;
pub mod unpacking;

/// Something to feed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in `fuzz/corpus`.
    pub name: &'static str,
    /// Takes an input, and returns how many packets or files that was.
    pub feed: fn(&[u8]) -> u64,
    /// Bytes of an input, at most.
    pub longest: usize,
    /// Packets, or files, that take a few seconds.
    pub few: u64,
    /// Whether inputs are text.
    pub is_text: bool,
    /// Whether an input is many packets.
    pub is_script: bool,
}

const fn packets(name: &'static str, feed: fn(&[u8]) -> u64) -> Target {
    Target { name, feed, longest: 2048, few: 400_000, is_text: false, is_script: false }
}

const fn script(name: &'static str, feed: fn(&[u8]) -> u64) -> Target {
    Target { name, feed, longest: 4096, few: 160_000, is_text: false, is_script: true }
}

const fn text(name: &'static str, feed: fn(&[u8]) -> u64) -> Target {
    Target { name, feed, longest: 4096, few: 20_000, is_text: true, is_script: false }
}

/// All targets.
pub const TARGETS: [Target; 8] = [
    packets("parser", parser::parser),
    script("forwards", engine::forwards),
    script("replies", engine::replies),
    packets("unpacking", unpacking::unpacking),
    text("configuration", files::configuration),
    text("history", files::history),
    text("last_live", files::last_live),
    text("words", files::words),
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
