//! Gates: what has to pass before a switch, and while it waits for its confirmation.
//!
//! Whoever switches runs the gates: `bgctl switch`, or the controller for those who ask it. If that process is killed, nothing is lost and nothing
//! invented, because the outcome is never kept in a process. Before the switch, nothing has changed yet. After it, the switch waits for a
//! confirmation, which only gates that have all passed give. Without one, the data path itself goes back at the deadline.
//!
//! Gates are asked one after another, in the order of the configuration. Those before the switch have one attempt each. Those after it are asked
//! again and again ([`Gate::interval`]), until the end of the time for the confirmation is near, or one of them fails: then the
//! switch is rolled back at once. A gate that hangs, crashes or cannot be run has failed.
//!
//! If an apply changes the deployment while the gates before the switch are asked, the switch is refused.
//!
//! A rollback asks no gates.

mod attempt;
mod exec;
mod failure;
mod http;
mod prometheus;
mod report;
mod watch;

use std::time::Duration;

use self::attempt::{Ask, attempt};
pub(crate) use self::report::Failed;
pub use self::report::{Confirmed, GateReport, GatedSwitch, Progress};
pub(crate) use self::watch::Watch;
use crate::{
    Colour, ConfirmRequest, Error, FreezeWindow, Instance, Refusal, SwitchRequest, Switched, WindowSwitched,
    config::{Deployment, Gate, When},
    switch::Kind,
};

/// Whether there are gates after the switch.
fn has_after(gates: &[Gate]) -> bool {
    gates.iter().any(|gate| gate.when == When::After)
}

/// The time for a confirmation, if nobody has named one: enough for one attempt of each gate after the switch, however long it takes, and
/// for another one of those that answer soon.
pub fn usual_window(gates: &[Gate]) -> Duration {
    let after = || gates.iter().filter(|gate| gate.when == When::After);
    let attempts = after().fold(Duration::ZERO, |sum, gate| sum.saturating_add(gate.timeout));
    let interval = after().map(|gate| gate.interval).max().unwrap_or_default();
    (attempts + interval + watch::MARGIN * 2).min(SwitchRequest::LONGEST)
}

/// Makes a colour live if the gates let it. Those of a deployment are [`Instance::gates`]; none is a plain
/// [`switch`](Instance::switch).
///
/// With gates after the switch, this returns when it is confirmed or taken back. The time for the confirmation is that of the request, or
/// [`usual_window`]. Blocks all the while, and says in `progress` what it does.
///
/// `gates` are those of [`Instance::gates`], or none if the request skips them.
///
/// # Errors
/// [`Refusal::GateFailed`] if a gate has failed. The old colour is live then, unless the text says otherwise. [`Refusal::ChangedMeanwhile`] if the deployment has
/// other gates than these, or an apply has changed it meanwhile; an apply after the last look, just before the store, is not seen.
pub fn switch(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    gates: &[Gate],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<GatedSwitch, Error> {
    if gates.is_empty() {
        refuse_new_gates(instance, deployment, request)?;
        return instance.switch(deployment, request).map(GatedSwitch::without_gates);
    }
    let within = request.confirm_within.or_else(|| has_after(gates).then(|| usual_window(gates)));
    let guarded = SwitchRequest { confirm_within: within, ..request.clone() };
    let mut passed = pass_before(instance, deployment, &guarded, gates, progress)?;
    let request = passed.request;
    if passed.is_there {
        return instance.switch(deployment, &request).map(GatedSwitch::without_gates);
    }
    let switched = instance.switch(deployment, &request).inspect_err(|error| {
        if error.is_made() && has_after(gates) {
            let goes_back =
                "its gates were not asked, so the switch goes back when its time is over, unless somebody confirms it";
            instance.state.warn([goes_back.to_owned()]);
        }
    })?;
    if !switched.changed || !has_after(gates) {
        return Ok(GatedSwitch { switched, gates: passed.reports, confirmed: None });
    }
    progress(Progress::Switched(&switched));
    let watch = Watch::new(instance, &switched, &request)?;
    let confirmed = match watch.run(gates, &mut passed.reports, progress) {
        Ok(confirmed) => confirmed,
        Err(failed) => return Err(go_back(instance, &switched, &request, failed)),
    };
    let confirm = ConfirmRequest {
        if_generation: Some(switched.to.generation),
        reason: Some(report::names(&passed.reports, When::After)),
    };
    // It is too late if the data path, or somebody else, has taken the switch back. That is the outcome then.
    if confirmed == Confirmed::ByGates {
        instance.confirm(deployment, &confirm)?;
    }
    let switched = Switched { confirm_deadline: None, revert_if: Vec::new(), ..switched };
    Ok(GatedSwitch { switched, gates: passed.reports, confirmed: Some(confirmed) })
}

/// Like [`switch`] in a frozen window ([`Instance::switch_in_window`]). Only gates before the switch are possible: the window is over when it is
/// confirmed, and has a command of its own to decide that.
pub fn switch_in_window(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    window: &FreezeWindow,
    gates: &[Gate],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<WindowSwitched, Error> {
    if has_after(gates) {
        let what = "--freeze and gates after the switch exclude each other, since new flows would have to wait for them; use --after, \
                    or --skip-gates"
            .to_owned();
        return Err(Error::Unrepresentable { what });
    }
    let judged = match gates {
        [] => {
            refuse_new_gates(instance, deployment, request)?;
            None
        }
        _ => {
            request.check_for_window()?;
            // It is taken back at the end of the window, unless it is complete.
            let within = window.max.clamp(SwitchRequest::LEAST_WINDOW, SwitchRequest::LONGEST);
            let guarded = SwitchRequest { confirm_within: Some(within), ..request.clone() };
            let passed = pass_before(instance, deployment, &guarded, gates, progress)?;
            Some(SwitchRequest { confirm_within: None, ..passed.request })
        }
    };
    instance.switch_in_window(deployment, judged.as_ref().unwrap_or(request), window)
}

/// What may be done after the gates before it.
pub(crate) struct Passed {
    /// The request for the state that the gates have judged.
    pub(crate) request: SwitchRequest,
    pub(crate) reports: Vec<GateReport>,
    /// Nothing would be changed, so none was asked.
    pub(crate) is_there: bool,
}

/// A deployment as it was applied, with its gates. Its live colour is no part of that.
fn applied(instance: &Instance, name: &str) -> Result<Option<Deployment>, Error> {
    let config = instance.configuration()?;
    let found = config.deployments.into_iter().find(|deployment| deployment.name == name);
    Ok(found.map(|deployment| Deployment { initial: Colour::Blue, ..deployment }))
}

fn changed_meanwhile(deployment: &str) -> Error {
    Refusal::ChangedMeanwhile { deployment: deployment.to_owned() }.into()
}

/// Refuses a switch for which no gates were found, if an apply has added some since.
fn refuse_new_gates(instance: &Instance, deployment: &str, request: &SwitchRequest) -> Result<(), Error> {
    if !request.skip_gates && !instance.gates(deployment)?.is_empty() {
        return Err(changed_meanwhile(deployment));
    }
    Ok(())
}

/// Asks the gates before a switch. `request` says whether it will wait for a confirmation.
pub(crate) fn pass_before(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    gates: &[Gate],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Passed, Error> {
    let (index, _) = instance.deployment(deployment)?;
    let judged = applied(instance, deployment)?;
    if judged.as_ref().is_none_or(|judged| judged.gates != gates) {
        return Err(changed_meanwhile(deployment));
    }
    let request = &SwitchRequest { from_kept: true, ..request.clone() };
    let outlook = instance.outlook(deployment, index, request, Kind::Switch)?;
    let (from, to) = (outlook.from.moment(), outlook.asked.live());
    // If somebody else switches meanwhile, the gates have judged another state.
    let request = SwitchRequest { to: Some(to), if_generation: Some(from.generation), ..request.clone() };
    if !outlook.changes? {
        return Ok(Passed { request, reports: Vec::new(), is_there: true });
    }
    let ask = Ask { instance, deployment, from: to.other(), to, generation: from.generation };
    let mut reports = Vec::new();
    for gate in gates.iter().filter(|gate| gate.when == When::Before) {
        progress(Progress::Asks(gate));
        let told = attempt(gate, &ask, gate.timeout, &|| false);
        let report = GateReport::of(gate, &told);
        progress(Progress::Told(&report));
        if let Err(why) = told.outcome {
            let (gate, live) = (gate.to_string(), from.live.name());
            let then = format!("nothing was changed, and {live} stays live (--skip-gates goes without gates)");
            let (deployment, when) = (deployment.to_owned(), When::Before.name());
            return Err(Refusal::GateFailed { deployment, gate, when, why, then }.into());
        }
        reports.push(report);
    }
    // What makes no generation: an apply. Other backends, or other gates, were not judged.
    if applied(instance, deployment)? != judged {
        return Err(changed_meanwhile(deployment));
    }
    Ok(Passed { request, reports, is_there: false })
}

/// Rolls a switch back, and returns the error that says so.
fn go_back(instance: &Instance, switched: &Switched, request: &SwitchRequest, Failed { gate, why }: Failed) -> Error {
    let deployment = &switched.deployment;
    let back = SwitchRequest {
        only_if_waiting: true,
        // Open flows end, or stay, as in the switch.
        on_switch: Some(switched.on_switch),
        if_generation: Some(switched.to.generation),
        force: true,
        reason: Some(format!("gate {gate} failed: {why}")),
        ..SwitchRequest::default()
    };
    let then = match instance.rollback(deployment, &back) {
        Ok(back) => {
            format!(
                "the switch was rolled back, and {} is live, generation {}",
                back.to.live.name(),
                back.to.generation
            )
        }
        Err(Error::NotRecorded { live, generation, source, .. }) => {
            format!(
                "the switch was rolled back, and {live} is live, generation {generation}, but that is not recorded ({source})"
            )
        }
        Err(error) => match watch::taken_back(instance, switched) {
            Some(live) => format!("the data path has taken the switch back, and {} is live", live.name()),
            None if matches!(error, Error::Refused(Refusal::NothingToConfirm { .. })) => {
                "somebody has confirmed the switch meanwhile, so it was not rolled back".to_owned()
            }
            None if matches!(error, Error::Refused(Refusal::OtherGeneration { .. })) => {
                "somebody else has switched meanwhile, so it was not rolled back".to_owned()
            }
            None => {
                let within = request.confirm_within.map(|within| humantime::format_duration(within).to_string());
                format!(
                    "the switch could not be rolled back ({error}), so the data path takes it back {} after it was made",
                    within.unwrap_or_default()
                )
            }
        },
    };
    Refusal::GateFailed { deployment: deployment.clone(), gate, when: When::After.name(), why, then }.into()
}
