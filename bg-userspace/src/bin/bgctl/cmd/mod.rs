//! The commands, one per file.

mod apply;
mod attach;
mod check;
mod decap;
mod detach;
mod doctor;
mod drain;
#[cfg(feature = "serve")]
mod drill;
mod dry_run;
mod explain;
mod flows;
mod freeze;
#[cfg(feature = "serve")]
mod gated;
#[cfg(not(feature = "serve"))]
#[path = "not_gated.rs"]
mod gated;
mod history;
mod man;
mod plan;
#[cfg(feature = "serve")]
mod serve;
mod show;
mod status;
mod switch;
#[cfg(feature = "serve")]
mod top;
mod words;

use std::{io, path::Path};

use bg_userspace::{
    Instance,
    config::{self, Config, ConfigError},
};

use crate::{
    args::{Args, Change, Command, Global, Rollback, Split, Switch},
    complete,
    exit::Outcome,
    output,
};

/// Runs the command of the command line.
pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let global = &args.global;
    let (looks, changes) = match &args.command {
        Command::Doctor(_)
        | Command::Plan(_)
        | Command::Show
        | Command::Status(_)
        | Command::Drain(_)
        | Command::Flows(_)
        | Command::Explain(_)
        | Command::History(_) => (true, false),
        Command::Switch(Switch { change: Change { dry_run, .. }, .. })
        | Command::Rollback(Rollback { change: Change { dry_run, .. }, .. })
        | Command::Split(Split { dry_run, .. }) => (*dry_run, !dry_run),
        Command::Attach(_)
        | Command::Detach(_)
        | Command::Apply(_)
        | Command::Confirm(_)
        | Command::Freeze(_)
        | Command::Thaw(_) => (false, true),
        #[cfg(feature = "serve")]
        Command::Drill(_) => (false, true),
        _ => (false, false),
    };
    if looks {
        check_state(global);
    }
    if matches!(args.command, Command::Status(_)) {
        check_outer_sources(global);
    }
    let outcome = dispatch(args).map_err(|error| match changes && output::is_not_printed(&error) {
        true => error.context("the command is done"),
        false => error,
    })?;
    if matches!(args.command, Command::Attach(_) | Command::Detach(_)) {
        check_state(global);
        check_outer_sources(global);
    }
    Ok(outcome)
}

/// Reports backends that get no packets, or may refuse them, because of the source of outer headers. An apply reports them itself.
fn check_outer_sources(global: &Global) {
    if let Ok(instance) = Instance::open(&global.paths()) {
        instance.outer_source_warnings().iter().for_each(|warning| output::message(&format!("warning: {warning}")));
    }
}

/// Reports problems with the state directory, because after the next reboot it would be too late. Commands that
/// write to it report them themselves.
fn check_state(global: &Global) {
    if let Ok(instance) = Instance::open(&global.paths()) {
        instance.check_state().iter().for_each(|warning| output::message(warning));
    }
}

fn dispatch(args: &Args) -> anyhow::Result<Outcome> {
    let global = &args.global;
    match &args.command {
        Command::Doctor(doctor) => doctor::run(global, doctor),
        Command::Attach(attach) => attach::run(global, attach),
        Command::Detach(detach) => detach::run(global, detach),
        Command::Check(file) => check::run(global, file),
        Command::Plan(file) => plan::run(global, file),
        Command::Apply(apply) => apply::run(global, apply),
        Command::Show => show::run(global),
        Command::Status(status) => status::run(global, status),
        Command::Switch(switch) => switch::run(global, switch),
        Command::Rollback(rollback) => switch::run_rollback(global, rollback),
        Command::Confirm(confirm) => switch::run_confirm(global, confirm),
        Command::Split(split) => switch::run_split(global, split),
        Command::Freeze(freeze) => freeze::run(global, freeze),
        Command::Thaw(thaw) => freeze::run_thaw(global, thaw),
        Command::Decap(decap) => decap::run(global, decap),
        Command::Drain(drain) => drain::run(global, drain),
        #[cfg(feature = "serve")]
        Command::Drill(drill) => drill::run(global, drill),
        Command::Flows(flows) => flows::run(global, flows),
        Command::Explain(explain) => explain::run(global, explain),
        Command::History(history) => history::run(global, history),
        #[cfg(feature = "serve")]
        Command::Serve(serve) => serve::run(global, serve),
        #[cfg(feature = "serve")]
        Command::Top(top) => top::run(global, top),
        Command::Completions { shell } => complete::print_script(*shell).map(|()| Outcome::Done),
        Command::Man { dir } => man::run(dir),
    }
}

/// Reads and validates a configuration; `-` is stdin.
fn load(path: &Path) -> Result<Config, ConfigError> {
    if is_stdin(path) { config::load_from(path_of(path), io::stdin().lock()) } else { config::load(path) }
}

/// The name of a configuration in messages.
fn path_of(path: &Path) -> &Path {
    if is_stdin(path) { Path::new("<stdin>") } else { path }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}
