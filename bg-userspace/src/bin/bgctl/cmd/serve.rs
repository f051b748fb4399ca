//! `bgctl serve`: run the controller.

use std::path::PathBuf;

use bg_userspace::serve::{self, ServeOptions};

use crate::{
    args::{Global, LogFormat, Serve, USUAL_CONFIG},
    exit::Outcome,
};

pub(super) fn run(global: &Global, args: &Serve) -> anyhow::Result<Outcome> {
    let options = ServeOptions {
        config: args.config.clone().unwrap_or_else(|| PathBuf::from(USUAL_CONFIG)),
        may_be_missing: args.config.is_none(),
        log_format: match args.log_format {
            LogFormat::Auto => serve::LogFormat::Auto,
            LogFormat::Text => serve::LogFormat::Text,
            LogFormat::Json => serve::LogFormat::Json,
        },
        verbose: global.verbose,
    };
    serve::run(&global.paths(), &options)?;
    Ok(Outcome::Done)
}
