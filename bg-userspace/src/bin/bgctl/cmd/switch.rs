//! `bgctl switch`, `rollback`, `confirm` and `split`: change what is live.

use std::time::Instant;

use serde::Serialize;

use bg_userspace::{ConfirmRequest, FreezeWindow, Instance, SplitRequest, SwitchRequest, Switched, WindowSwitched};

use super::{
    dry_run, gated,
    words::{guard, percent},
};
use crate::{
    args::{Change, Confirm, Global, Rollback, Split, Switch},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Switch) -> anyhow::Result<Outcome> {
    let request = SwitchRequest {
        to: args.to.map(Into::into),
        confirm_within: args.confirm_within,
        revert_if: args.revert_if.clone(),
        ramp: args.ramp,
        at: args.at,
        ..request(&args.change)
    };
    let request = if args.skip_gates { request.without_gates() } else { request };
    let gates = |instance: &Instance| if args.skip_gates { Ok(Vec::new()) } else { instance.gates(&args.deployment) };
    let window = |max| FreezeWindow { max, before: args.before.clone(), after: args.after.clone() };
    let window = args.freeze.map(window);
    if args.change.dry_run {
        return dry_run::run(global, |instance| {
            let gates = gates(instance)?;
            let dry_run = match &window {
                Some(window) => instance.dry_run_in_window(&args.deployment, &request, window),
                None => instance.dry_run(&args.deployment, &request),
            };
            dry_run.map(|dry_run| dry_run.with_gates(&gates))
        });
    }
    let Some(window) = window else {
        return change(global, gated::render, |instance| {
            gated::switch(instance, &args.deployment, &request, &gates(instance)?)
        });
    };
    change(global, render_window, |instance| {
        gated::switch_in_window(instance, &args.deployment, &request, &window, &gates(instance)?)
    })
}

pub(super) fn run_rollback(global: &Global, args: &Rollback) -> anyhow::Result<Outcome> {
    let request = SwitchRequest { to: args.to.map(Into::into), ..request(&args.change) };
    let request = if args.skip_gates { request.without_gates() } else { request };
    if args.change.dry_run {
        return dry_run::run(global, |instance| instance.dry_run_rollback(&args.deployment, &request));
    }
    change(global, render, |instance| instance.rollback(&args.deployment, &request))
}

pub(super) fn run_confirm(global: &Global, args: &Confirm) -> anyhow::Result<Outcome> {
    let request = ConfirmRequest { if_generation: args.if_generation, reason: args.reason.clone() };
    change(global, render_confirmed, |instance| instance.confirm(&args.deployment, &request))
}

pub(super) fn run_split(global: &Global, args: &Split) -> anyhow::Result<Outcome> {
    let request = SplitRequest {
        green: args.green,
        by: args.by.map(Into::into),
        if_generation: args.if_generation,
        force: args.force,
        reason: args.reason.clone(),
        ..SplitRequest::default()
    };
    let request = if args.skip_gates { request.without_gates() } else { request };
    if args.dry_run {
        return dry_run::run(global, |instance| instance.dry_run_split(&args.deployment, &request));
    }
    change(global, render, |instance| instance.split(&args.deployment, &request))
}

fn request(change: &Change) -> SwitchRequest {
    SwitchRequest {
        to: None,
        on_switch: change.on_switch.map(Into::into),
        if_generation: change.if_generation,
        force: change.force,
        reason: change.reason.clone(),
        ..SwitchRequest::default()
    }
}

fn change<T: Serialize + AsRef<Switched>>(
    global: &Global,
    render: impl Fn(&T) -> String,
    change: impl FnOnce(&Instance) -> Result<T, bg_userspace::Error>,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let instance = Instance::open(&global.paths())?;
    let switched = change(&instance);
    instance.warnings().iter().for_each(|warning| output::message(warning));
    let switched = switched?;
    if global.verbose {
        output::message(&format!("took {:.1?}, of which the fence {:.1?}", start.elapsed(), switched.as_ref().fence));
    }
    if global.json {
        output::print_json(&switched)?;
    } else {
        let receipt = switched.as_ref().receipt.as_ref().map(|receipt| format!("{receipt}\n")).unwrap_or_default();
        output::print(&(render(&switched) + &receipt))?;
    }
    // The switch is done. An interface that has lost the programs deserves a warning, but no other exit code.
    for interface in instance.lost_interfaces().unwrap_or_default() {
        if let (Some(problem), Some(remedy)) = (interface.problem(), &interface.remedy) {
            output::message(&format!("warning: {problem}; {remedy}"));
        }
    }
    Ok(Outcome::Done)
}

fn render_window(window: &WindowSwitched) -> String {
    let WindowSwitched { switched, frozen, played_back } = window;
    let frozen = format!("; frozen for {} ms, {played_back} held packets played back", frozen.as_millis());
    let frozen = if switched.changed { frozen } else { String::new() };
    format!("{}{frozen}\n", render(switched).trim_end())
}

pub(super) fn render(switched: &Switched) -> String {
    let Switched { deployment, changed, from, to, green_share, on_switch, .. } = switched;
    let (before, live, generation) = (from.live.name(), to.live.name(), to.generation);
    let is_split = *green_share > 0.0 && *green_share < 1.0;
    let share = if is_split { format!(" ({} % of new flows to green)", percent(*green_share)) } else { String::new() };
    let deadline = switched.confirm_deadline.map(|deadline| format!("at {deadline}"));
    let guard = guard("goes back", deadline, &switched.revert_if, &switched.not_armed, deployment);
    if !changed {
        return format!(
            "{deployment}: {live} is live already{share}, generation {generation}, nothing changed{guard}\n"
        );
    }
    if let Some(at) = switched.activate_at {
        let goal = if is_split {
            "both"
        } else if *green_share == 0.0 {
            "blue"
        } else {
            "green"
        };
        let ramp = switched.ramp_until.map_or_else(String::new, |until| format!(", by and by until {until}"));
        return format!(
            "{deployment}: {live} -> {goal} at {at}{ramp}, generation {generation}, open flows: {}; the next change cancels it{guard}\n",
            on_switch.name()
        );
    }
    format!(
        "{deployment}: {before} -> {live}{share}, generation {generation}, open flows: {}{guard}\n",
        on_switch.name()
    )
}

fn render_confirmed(switched: &Switched) -> String {
    let Switched { deployment, changed, to, .. } = switched;
    let (live, generation) = (to.live.name(), to.generation);
    let already = if *changed { "" } else { " already" };
    format!("{deployment}: confirmed{already}, {live} stays live, generation {generation}\n")
}
