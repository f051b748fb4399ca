//! `bgctl decap`: unpack on a backend what the modes `ipip` and `gue` have encapsulated.

use bg_userspace::{DecapMode, DecapRequest, DecapStatus, decap_attach, decap_detach, decap_status};

use crate::{
    args::{Decap, DecapWhat, Global, XdpOnly},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Decap) -> anyhow::Result<Outcome> {
    match args.what {
        DecapWhat::Attach => attach(global, args)?,
        DecapWhat::Detach => {
            let interfaces = decap_detach(&global.paths(), &args.interfaces)?;
            if global.json {
                output::print_json(&serde_json::json!({ "detached": interfaces }))?;
            } else {
                output::print(&format!("unpacking no longer on {}\n", interfaces.join(", ")))?;
            }
        }
        DecapWhat::Status => {
            let interfaces = decap_status(&global.paths(), &args.interfaces)?;
            if global.json {
                output::print_json(&serde_json::json!({ "interfaces": interfaces }))?;
            } else {
                output::print(&interfaces.iter().map(shown).collect::<String>())?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn shown(status: &DecapStatus) -> String {
    let DecapStatus { interface, state, mode, from, gue_port, unknown_addresses, .. } = status;
    let DecapStatus { unpacked, other_source, other_destination, congested, .. } = status;
    let from = if from.is_empty() { "nobody".to_owned() } else { from.join(", ") };
    let mut text = format!(
        "{interface} ({}): {unpacked} packets unpacked, IP in IP and GUE at port {gue_port}, from {from}\n  passed: {other_source} of other sources, {other_destination} that were not for this host inside; \
         dropped: {congested} with congestion marked\n",
        mode.unwrap_or(state)
    );
    if !unknown_addresses.is_empty() {
        let addresses: Vec<_> = unknown_addresses.iter().map(ToString::to_string).collect();
        text += &format!("  not for new addresses of this host: {}; attach again\n", addresses.join(", "));
    }
    text
}

fn attach(global: &Global, args: &Decap) -> anyhow::Result<()> {
    let request = DecapRequest {
        interfaces: args.interfaces.clone(),
        from: args.from.clone(),
        gue_port: args.gue_port,
        mode: match args.mode {
            XdpOnly::Auto => DecapMode::Auto,
            XdpOnly::Native => DecapMode::Native,
            XdpOnly::Generic => DecapMode::Generic,
        },
    };
    let attached = decap_attach(&global.paths(), &request)?;
    for one in &attached {
        if let Some(warning) = one.warning {
            output::message(&format!("warning: {}: {warning}", one.interface));
        }
    }
    if global.json {
        output::print_json(&serde_json::json!({ "attached": attached }))?;
        return Ok(());
    }
    for one in attached {
        let from = if one.from.is_empty() { "nobody".to_owned() } else { one.from.join(", ") };
        let (interface, mode, port) = (one.interface, one.mode, one.gue_port);
        output::print(&format!(
            "unpacking on {interface} ({mode}) what comes from {from}: IP in IP, and GUE at port {port}, for the {} addresses of this host\n",
            one.addresses.len()
        ))?;
    }
    Ok(())
}
