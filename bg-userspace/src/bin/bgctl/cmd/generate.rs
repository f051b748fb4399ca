//! `bgctl completions` and `bgctl man`: what packagers install beside the program.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{args::Args, exit::Outcome, output};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "bgctl", &mut text);
    output::print(&String::from_utf8(text)?)?;
    Ok(Outcome::Done)
}

pub(super) fn man(dir: &Path) -> anyhow::Result<Outcome> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Args::command(), dir)
        .with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(Outcome::Done)
}
