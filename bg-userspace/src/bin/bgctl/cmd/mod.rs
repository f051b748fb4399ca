//! The commands, one a file.

mod apply;
mod attach;
mod check;
mod detach;
mod doctor;
mod flows;
mod generate;
mod history;
mod plan;
mod status;
mod switch;

use crate::{
    args::{Args, Command},
    exit::Outcome,
};

/// Does what the command line asks for.
pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let global = &args.global;
    match &args.command {
        Command::Doctor(doctor) => doctor::run(global, doctor),
        Command::Attach(attach) => attach::run(global, attach),
        Command::Detach(detach) => detach::run(global, detach),
        Command::Check(file) => check::run(global, file),
        Command::Plan(file) => plan::run(global, file),
        Command::Apply(file) => apply::run(global, file),
        Command::Status(status) => status::run(global, status),
        Command::Switch(switch) => switch::run(global, switch),
        Command::Rollback(rollback) => switch::run_rollback(global, rollback),
        Command::Flows(only) => flows::run(global, only),
        Command::History(only) => history::run(global, only),
        Command::Completions { shell } => generate::completions(*shell),
        Command::Man { dir } => generate::man(dir),
    }
}
