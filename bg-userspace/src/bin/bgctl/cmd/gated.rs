//! `bgctl switch` with gates: say on stderr what they do.

use bg_userspace::{
    FreezeWindow, Instance, SwitchRequest, WindowSwitched,
    config::Gate,
    gates::{self, Confirmed, GateReport, GatedSwitch, Progress},
};

use super::switch;
use crate::output;

type Switched<T> = Result<T, bg_userspace::Error>;

pub(super) fn switch(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    gates: &[Gate],
) -> Switched<GatedSwitch> {
    gates::switch(instance, deployment, request, gates, &mut tell)
}

pub(super) fn switch_in_window(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    window: &FreezeWindow,
    gates: &[Gate],
) -> Switched<WindowSwitched> {
    gates::switch_in_window(instance, deployment, request, window, gates, &mut tell)
}

/// Progress goes to stderr, because it is no result.
pub(super) fn tell(progress: Progress<'_>) {
    match progress {
        Progress::Asks(_) => {}
        Progress::Told(report) => output::message(&told(report)),
        Progress::Switched(switched) => output::message(switch::render(switched).trim_end()),
    }
}

pub(super) fn told(report: &GateReport) -> String {
    let GateReport { gate, when, passed, why, longest, .. } = report;
    let outcome = if *passed { "passed" } else { "failed" };
    let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("gate {gate} ({}) {outcome} after {} ms{why}", when.name(), longest.as_millis())
}

pub(super) fn render(gated: &GatedSwitch) -> String {
    let text = switch::render(&gated.switched);
    let by = match gated.confirmed {
        None => return text,
        Some(Confirmed::ByGates) => "confirmed by its gates",
        Some(Confirmed::BySomebody) => "confirmed by somebody else before its gates were through",
    };
    format!("{}; {by}\n", text.trim_end())
}
