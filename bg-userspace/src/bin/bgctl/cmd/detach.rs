//! `bgctl detach`: take the programs off interfaces.

use bg_userspace::Target;

use crate::{
    args::{Detach, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Detach) -> anyhow::Result<Outcome> {
    let target = if args.all { Target::All } else { Target::Interfaces(args.interfaces.clone()) };
    bg_userspace::detach(&global.paths(), &target)?;
    if global.json {
        output::print_json(
            &serde_json::json!({ "detached": if args.all { None } else { Some(&args.interfaces) }, "all": args.all }),
        )?;
    } else if args.all {
        output::print(&format!("detached from all interfaces; nothing is left in {}\n", global.pin_root.display()))?;
    } else {
        output::print(&format!("detached from {}\n", args.interfaces.join(", ")))?;
    }
    Ok(Outcome::Done)
}
