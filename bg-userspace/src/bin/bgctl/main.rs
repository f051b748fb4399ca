//! `bgctl`, the command line over the library. Results go to stdout, messages to stderr, and the exit
//! code tells scripts the outcome.

mod args;
mod cmd;
mod complete;
mod exit;
mod help;
mod output;
mod table;

use std::process::ExitCode;

use bg_userspace::config::ConfigError;
use clap::FromArgMatches as _;

fn main() -> ExitCode {
    complete::answer();
    let args = args::Args::from_arg_matches(&help::grammar().get_matches()).unwrap_or_else(|error| error.exit());
    args.global.choose_colours();
    output::advise_for(args.global.options());
    match cmd::run(&args) {
        Ok(outcome) => outcome.into(),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Problems of a configuration begin with their position, in a form that editors understand.
            let prefix = if is_of_configuration(&error) { "" } else { "bgctl: " };
            output::line(&format!("{prefix}{error:#}"));
            exit::Outcome::of(&error).into()
        }
    }
}

fn is_of_configuration(error: &anyhow::Error) -> bool {
    #[cfg(feature = "serve")]
    if let Some(bg_userspace::serve::ServeError::Config(_)) = error.downcast_ref() {
        return true;
    }
    error.is::<ConfigError>()
}
