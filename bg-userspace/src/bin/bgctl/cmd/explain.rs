//! `bgctl explain`: what the data path does with a packet, and why.

use std::fmt::Write as _;

use bg_userspace::{ExplainRequest, Explanation, Instance, Protocol, config::protocol_name};

use crate::{
    args::{Explain, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Explain) -> anyhow::Result<Outcome> {
    if args.flags.is_some() && Protocol::from(args.protocol) == Protocol::Udp {
        output::message("a datagram has no flags: --flags has no effect with --protocol udp");
    }
    let request = ExplainRequest {
        from: args.from,
        to: args.to,
        protocol: args.protocol.into(),
        flags: args.flags,
        interface: args.iface.clone(),
    };
    let explanation = Instance::open(&global.paths())?.explain(&request)?;
    if global.json {
        output::print_json(&explanation)?;
    } else {
        output::print(&render(&explanation))?;
    }
    Ok(Outcome::Done)
}

fn render(explanation: &Explanation) -> String {
    let Explanation { from, to, protocol, flags, hooks, packet, .. } = explanation;
    let flags = flags.map_or_else(String::new, |flags| format!(" {flags}"));
    let mut text = format!("{}{flags} from {from} to {to}\n", protocol_name(*protocol));
    for at in hooks {
        let _ = writeln!(text, "{} on {}:", at.hook, at.interface);
        for step in &at.steps {
            let _ = writeln!(text, "  {}", step.text);
        }
    }
    if (packet.source, packet.destination) != (*from, *to) {
        let _ = writeln!(text, "afterwards: from {} to {}, TTL {}", packet.source, packet.destination, packet.ttl);
    }
    text
}
