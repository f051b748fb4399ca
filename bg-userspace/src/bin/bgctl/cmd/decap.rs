//! `bgctl decap`: unpack on a backend what the modes `ipip` and `gue` have encapsulated.

use bg_userspace::{DecapMode, DecapRequest, decap_attach, decap_detach};

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
    }
    Ok(Outcome::Done)
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
