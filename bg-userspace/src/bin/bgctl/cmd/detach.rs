//! `bgctl detach`: detach from interfaces.

use bg_userspace::Target;

use crate::{
    args::{Detach, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Detach) -> anyhow::Result<Outcome> {
    let target = if args.all { Target::All } else { Target::Interfaces(args.interfaces.clone()) };
    let patience = args.wait.unwrap_or(bg_userspace::PATIENCE);
    let detached = bg_userspace::detach_within(&global.paths(), &target, patience)?;
    let left: Vec<_> = detached.left.iter().map(|path| path.display().to_string()).collect();
    if global.json {
        let interfaces = if args.all { None } else { Some(&detached.interfaces) };
        output::print_json(&serde_json::json!({ "detached": interfaces, "all": args.all, "left": left }))?;
    } else if args.all {
        let what = if left.is_empty() { "nothing".to_owned() } else { format!("other files ({})", left.join(", ")) };
        output::print(&format!("detached from all interfaces; {what} is left in {}\n", global.pin_root.display()))?;
    } else {
        output::print(&format!("detached from {}\n", detached.interfaces.join(", ")))?;
    }
    Ok(Outcome::Done)
}
