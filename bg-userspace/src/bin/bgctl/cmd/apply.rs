//! `bgctl apply`: make the running state what the configuration says.

use std::time::Instant;

use bg_userspace::{ApplyRequest, Instance, Plan};

use crate::{
    args::{Apply, Global},
    exit::Outcome,
    output,
};

/// Changes that are printed one by one unless all are asked for.
const SHOWN: usize = 40;

pub(super) fn run(global: &Global, args: &Apply) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let config = super::load(&args.file.config)?;
    let applied = Instance::open(&global.paths())?.apply_as(&config, &ApplyRequest { reason: args.reason.clone() })?;
    if global.verbose {
        eprintln!("bgctl: took {:.1?}", start.elapsed());
    }
    if global.json {
        output::print_json(&applied)?;
    } else if applied.is_empty() {
        output::print("nothing to change\n")?;
    } else {
        output::print(&render(&applied, global.verbose))?;
    }
    Ok(Outcome::Done)
}

fn render(applied: &Plan, all: bool) -> String {
    let shown = if all { usize::MAX } else { SHOWN };
    let mut text: String = applied.changes.iter().take(shown).map(|change| format!("{change}\n")).collect();
    if let Some(more @ 1..) = applied.changes.len().checked_sub(shown) {
        text += &format!("and {} (-v tells them)\n", output::count(more, "more change"));
    }
    text
}
