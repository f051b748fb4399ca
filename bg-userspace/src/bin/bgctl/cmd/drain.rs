//! `bgctl drain`: what a switch has left on the idle colour, or what there is at a backend.

use bg_userspace::{DrainRequest, Drained, Instance};

use crate::{
    args::{Drain, Global, Then},
    exit::Outcome,
    output,
    table::{
        Align::{Left, Right},
        Table,
    },
};

pub(super) fn run(global: &Global, args: &Drain) -> anyhow::Result<Outcome> {
    let Drain { wait, timeout, then, backend, .. } = *args;
    let request = DrainRequest { wait, timeout, reset: then == Then::Reset, backend };
    let instance = Instance::open(&global.paths())?;
    let mut said = None;
    let drained = instance.drain(&args.deployment, &request, |drained| {
        if said.replace(drained.left) != Some(drained.left) {
            output::message(&summary(drained));
        }
    })?;
    if global.json {
        output::print_json(&drained)?;
    } else {
        output::print_styled(&render(&drained))?;
    }
    Ok(if drained.left == 0 { Outcome::Done } else { Outcome::TimedOut })
}

fn summary(Drained { deployment, colour, left, .. }: &Drained) -> String {
    format!("{deployment}: {} left on {}", output::count(*left as usize, "flow"), colour.name())
}

fn render(drained: &Drained) -> String {
    let mut text = summary(drained);
    if drained.reset > 0 {
        text += &format!(", {} reset", drained.reset);
    }
    text.push('\n');
    let mut table = Table::new([("SERVICE", Left), ("BACKEND", Left), ("FLOWS", Right)]);
    for left in &drained.backends {
        table.row([left.service.clone().into(), left.backend.to_string().into(), left.flows.to_string().into()]);
    }
    if !table.is_empty() {
        text += &table.render("  ");
    }
    text
}
