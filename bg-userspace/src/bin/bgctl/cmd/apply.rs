//! `bgctl apply`: make the running state match the configuration.

use std::time::Instant;

use bg_userspace::{Action, ApplyRequest, Change, Instance, Plan};

use crate::{
    args::{Apply, Global},
    exit::Outcome,
    output,
};

/// The number of changes that are listed without `-v`.
const SHOWN: usize = 40;

pub(super) fn run(global: &Global, args: &Apply) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let config = super::load(&args.file.config)?;
    let request = ApplyRequest { reason: args.reason.clone(), force: args.force, ..ApplyRequest::default() };
    let instance = Instance::open(&global.paths())?;
    let applied = instance.apply_as(&config, &request);
    instance.warnings().iter().for_each(|warning| output::message(warning));
    let applied = applied?;
    if args.forget_health {
        let forgotten = instance.forget_health()?;
        output::message(&format!("forgot the health of {}", output::count(forgotten, "backend")));
    }
    if global.verbose {
        output::message(&format!("took {:.1?}", start.elapsed()));
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
    let is_shown = |index: usize, change: &Change| {
        // Changes of live colours and removals are always listed.
        let is_whole = matches!(change.action, Action::AddDeployment(_) | Action::RemoveDeployment { .. });
        all || index < SHOWN || is_whole
    };
    let shown = applied.changes.iter().enumerate().filter(|(index, change)| is_shown(*index, change));
    let lines: Vec<String> = shown.map(|(_, change)| format!("{change}\n")).collect();
    let mut text = lines.concat();
    if let Some(more @ 1..) = applied.changes.len().checked_sub(lines.len()) {
        text += &format!("and {} (-v lists them)\n", output::count(more, "more change"));
    }
    text
}
