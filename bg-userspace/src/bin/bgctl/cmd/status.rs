//! `bgctl status`: what is live, once or every second.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use bg_common::Colour;
use bg_userspace::{ColourStatus, DeploymentStatus, Instance, Status};
use tokio::time::MissedTickBehavior;

use crate::{
    args::{Global, Status as Args},
    exit::Outcome,
    output::{self, Table},
};

const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<Outcome> {
    let instance = Instance::open(&global.paths())?;
    if args.watch {
        return watch(global, args, &instance);
    }
    let status = instance.status(args.only.deployment.as_deref())?;
    if global.json {
        output::print_json(&status)?;
    } else {
        output::print(&render(&status, global.verbose))?;
    }
    Ok(Outcome::Done)
}

/// Until interrupted, which is how it is meant to end.
fn watch(global: &Global, args: &Args, instance: &Instance) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                result = &mut interrupted => {
                    result?;
                    return Ok(Outcome::Done);
                }
            }
            let status = instance.status(args.only.deployment.as_deref())?;
            if global.json {
                output::print_json_line(&status)?;
            } else {
                let before = if io::stdout().is_terminal() { CLEAR_SCREEN } else { "" };
                output::print(&format!("{before}{}", render(&status, global.verbose)))?;
            }
        }
    })
}

fn render(status: &Status, all_counters: bool) -> String {
    let mut text = String::new();
    for deployment in &status.deployments {
        text += &render_deployment(deployment);
    }
    if status.deployments.is_empty() {
        text += "no deployments\n";
    }
    let interfaces: Vec<_> =
        status.interfaces.iter().map(|interface| format!("{} ({})", interface.name, interface.mode.name())).collect();
    text += &format!("interfaces: {}\n", if interfaces.is_empty() { "none".to_owned() } else { interfaces.join(", ") });
    for (what, counters) in [("drops", &status.drops), ("events", &status.events)] {
        let shown = counters.iter().filter(|(_, count)| all_counters || **count > 0);
        let shown: Vec<_> = shown.map(|(name, count)| format!("{name} {count}")).collect();
        text += &format!("{what}: {}\n", if shown.is_empty() { "none".to_owned() } else { shown.join(", ") });
    }
    text
}

fn render_deployment(deployment: &DeploymentStatus) -> String {
    let DeploymentStatus { name, live, phase, generation, previous, flows, .. } = deployment;
    let mut text = format!(
        "{name}: {live} is live, {phase}, generation {generation}, previous {previous}; open flows: blue {}, green {}\n",
        flows.blue, flows.green
    );
    let mut table = Table::new(["SERVICE", "VIP", "MODE", "COLOUR", "BACKENDS", "PACKETS", "BYTES", "FLOWS OPENED"]);
    for service in &deployment.services {
        for colour in Colour::ALL {
            let ColourStatus { backends, packets, bytes, flows_opened } = service.colours.of(colour);
            let is_live = colour.name() == *live;
            table.row([
                service.name.clone(),
                format!("{}/{}", service.vip, service.protocol),
                service.mode.to_owned(),
                format!("{}{}", colour.name(), if is_live { " (live)" } else { "" }),
                backends.len().to_string(),
                packets.to_string(),
                output::bytes(*bytes),
                flows_opened.to_string(),
            ]);
        }
    }
    text += &table.render("  ");
    text
}
