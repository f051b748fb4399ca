//! `bgctl switch` and `bgctl rollback`: change the live colour.

use std::time::Instant;

use bg_userspace::{Instance, SwitchRequest, Switched, history::Moment};

use crate::{
    args::{Change, Global, Rollback, Switch},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Switch) -> anyhow::Result<Outcome> {
    let request = SwitchRequest { to: args.to.map(Into::into), ..request(&args.change) };
    change(global, |instance| instance.switch(&args.deployment, &request))
}

pub(super) fn run_rollback(global: &Global, args: &Rollback) -> anyhow::Result<Outcome> {
    let request = SwitchRequest { to: args.to.map(Into::into), ..request(&args.change) };
    change(global, |instance| instance.rollback(&args.deployment, &request))
}

fn request(change: &Change) -> SwitchRequest {
    SwitchRequest {
        to: None,
        on_switch: change.on_switch.map(Into::into),
        if_generation: change.if_generation,
        force: change.force,
        reason: change.reason.clone(),
    }
}

fn change(
    global: &Global,
    change: impl FnOnce(&Instance) -> Result<Switched, bg_userspace::Error>,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let instance = Instance::open(&global.paths())?;
    let switched = change(&instance);
    instance.warnings().iter().for_each(|warning| output::message(warning));
    let switched = switched?;
    if global.verbose {
        output::message(&format!("took {:.1?}, of which the fence {:.1?}", start.elapsed(), switched.fence));
    }
    if global.json {
        output::print_json(&switched)?;
    } else {
        output::print(&render(&switched))?;
    }
    // The switch is done. An interface that has lost the programs deserves a warning, but no other exit code.
    for interface in instance.lost_interfaces().unwrap_or_default() {
        if let (Some(problem), Some(remedy)) = (interface.problem(), &interface.remedy) {
            output::message(&format!("warning: {problem}; {remedy}"));
        }
    }
    Ok(Outcome::Done)
}

fn render(switched: &Switched) -> String {
    let Switched { deployment, changed, from, to, on_switch, .. } = switched;
    let Moment { generation, live } = to;
    let live = live.name();
    if *changed {
        let from = from.live.name();
        format!("{deployment}: {from} -> {live}, generation {generation}, open flows: {}\n", on_switch.name())
    } else {
        format!("{deployment}: {live} is live already, generation {generation}, nothing changed\n")
    }
}
