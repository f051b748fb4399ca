//! `bgctl flows`: list open flows.

use std::{collections::BTreeMap, time::Duration};

use bg_userspace::{FlowFilter, FlowStatus, Instance, config::protocol_name};

use crate::{
    args::{Flows, Global},
    exit::Outcome,
    output,
    table::{
        Align::{Left, Right},
        Cell, Table, style_of,
    },
};

pub(super) fn run(global: &Global, args: &Flows) -> anyhow::Result<Outcome> {
    let filter = FlowFilter {
        deployment: args.only.deployment.clone(),
        service: args.service.clone(),
        colour: args.colour.map(Into::into),
        backend: args.backend,
    };
    let instance = Instance::open(&global.paths())?;
    if args.count {
        let count = instance.count_flows(&filter)?;
        if global.json {
            output::print_json(&serde_json::json!({ "count": count }))?;
        } else {
            output::print(&format!("{count}\n"))?;
        }
        return Ok(Outcome::Done);
    }
    let flows = instance.flows(&filter)?;
    if global.json {
        output::print_json(&BTreeMap::from([("flows", flows)]))?;
    } else if flows.is_empty() {
        let such = if filter == FlowFilter::default() { "" } else { " that match" };
        output::message(&format!("no open flows{such}"));
    } else {
        output::print_styled(&render(flows))?;
    }
    Ok(Outcome::Done)
}

fn render(flows: Vec<FlowStatus>) -> String {
    let mut table = Table::new([
        ("DEPLOYMENT", Left),
        ("SERVICE", Left),
        ("CLIENT", Left),
        ("TO", Left),
        ("COLOUR", Left),
        ("BACKEND", Left),
        ("STATE", Left),
        ("VIA", Left),
        ("GENERATION", Right),
        ("IDLE", Right),
    ]);
    for flow in flows {
        table.row([
            flow.deployment.into(),
            flow.service.into(),
            flow.client.to_string().into(),
            format!("{}/{}", flow.destination, protocol_name(flow.protocol)).into(),
            Cell::new(flow.colour.name(), style_of(flow.colour)),
            flow.backend.to_string().into(),
            flow.state.into(),
            flow.via.into(),
            flow.generation.to_string().into(),
            humantime::format_duration(Duration::from_secs(flow.idle.as_secs())).to_string().into(),
        ]);
    }
    table.render("")
}
