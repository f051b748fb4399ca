//! One attempt of a gate.

use std::time::{Duration, Instant};

use super::{exec, http, prometheus};
use crate::{
    Colour, Instance,
    config::{Gate, GateKind},
};

/// What a gate is asked about.
pub(super) struct Ask<'a> {
    pub(super) instance: &'a Instance,
    pub(super) deployment: &'a str,
    pub(super) from: Colour,
    pub(super) to: Colour,
    /// The present one.
    pub(super) generation: u32,
}

impl Ask<'_> {
    /// The variables for commands.
    fn variables(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        let paths = self.instance.paths();
        vec![
            ("BGCTL_DEPLOYMENT", self.deployment.into()),
            ("BGCTL_FROM", self.from.name().into()),
            ("BGCTL_TO", self.to.name().into()),
            ("BGCTL_GENERATION", self.generation.to_string().into()),
            ("BGCTL_PIN_ROOT", paths.pin_root.clone().into()),
            ("BGCTL_STATE_DIR", paths.state_dir.clone().into()),
        ]
    }
}

/// What has come of an attempt.
pub(super) struct Told {
    /// Why it has failed.
    pub(super) outcome: Result<(), String>,
    pub(super) took: Duration,
}

/// Asks a gate once. `is_moot` is whether its answer no longer matters: then it is not waited for, and it has failed.
pub(super) fn attempt(gate: &Gate, ask: &Ask<'_>, timeout: Duration, is_moot: &dyn Fn() -> bool) -> Told {
    let began = Instant::now();
    let deadline = began + timeout;
    let outcome = match &gate.kind {
        GateKind::Exec { command } => exec::run(command, &ask.variables(), deadline, is_moot),
        GateKind::Http { url, expect_status } => {
            http::within(deadline, is_moot, http::passes(url, expect_status.as_ref()))
        }
        GateKind::Prometheus { url, query, max, min } => {
            http::within(deadline, is_moot, prometheus::passes(url, query, *max, *min))
        }
    };
    let took = began.elapsed();
    let late = || format!("it had not ended after {}", humantime::format_duration(timeout));
    Told { outcome: outcome.map_err(|failure| failure.unwrap_or_else(late)), took }
}
