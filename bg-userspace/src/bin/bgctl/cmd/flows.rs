//! `bgctl flows`: the flow table.

use std::time::Duration;

use bg_userspace::{FlowStatus, Instance, config::protocol_name};

use crate::{
    args::{Global, OneDeployment},
    exit::Outcome,
    output::{self, Table},
};

pub(super) fn run(global: &Global, only: &OneDeployment) -> anyhow::Result<Outcome> {
    let flows = Instance::open(&global.paths())?.flows(only.deployment.as_deref())?;
    if global.json {
        output::print_json(&serde_json::json!({ "flows": flows }))?;
    } else if flows.is_empty() {
        eprintln!("bgctl: no open flows");
    } else {
        output::print(&render(flows))?;
    }
    Ok(Outcome::Done)
}

fn render(flows: Vec<FlowStatus>) -> String {
    let mut table = Table::new([
        "DEPLOYMENT",
        "SERVICE",
        "CLIENT",
        "TO",
        "COLOUR",
        "BACKEND",
        "STATE",
        "VIA",
        "GENERATION",
        "IDLE",
    ]);
    for flow in flows {
        table.row([
            flow.deployment,
            flow.service,
            flow.client.to_string(),
            format!("{}/{}", flow.destination, protocol_name(flow.protocol)),
            flow.colour.name().to_owned(),
            flow.backend.to_string(),
            flow.state.to_owned(),
            flow.via.to_owned(),
            flow.generation.to_string(),
            humantime::format_duration(Duration::from_secs(flow.idle.as_secs())).to_string(),
        ]);
    }
    table.render("")
}
