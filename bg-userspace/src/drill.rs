//! Rehearsing the recovery: switch, ask the gates, and switch back, with the times of it all.
//!
//! A drill is a switch that is never confirmed. So if it is killed, the data path takes it back at the deadline, which is some
//! seconds after the drill would have been over.

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::{
    Error, Instance, Refusal, SwitchRequest, Switched,
    config::{Gate, OnSwitch},
    gates::{self, Confirmed, Failed, GateReport, Progress, Watch},
    history::Moment,
};

/// How long after the end of a drill the data path takes back one that was killed.
const GRACE: Duration = Duration::from_secs(1);

/// The options of a drill.
#[derive(Clone, Debug, Default)]
pub struct DrillRequest {
    /// How long the other colour is live at least. The gates after the switch are asked all the while, and each of them once at least.
    pub back_after: Duration,
    /// What happens to open flows, on both ways; `None` is as configured.
    pub on_switch: Option<OnSwitch>,
    /// Refuse if the deployment is at another generation.
    pub if_generation: Option<u32>,
    /// Go on even if no interface is attached.
    pub force: bool,
    /// The reason, for the journal.
    pub reason: Option<String>,
}

/// What a drill has shown.
#[derive(Clone, Debug, Serialize)]
pub struct Drill {
    /// Name of the deployment.
    pub deployment: String,
    /// Whether all gates have passed.
    pub passed: bool,
    /// The gate that has failed, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The state before.
    pub from: Moment,
    /// The way there.
    pub there: Leg,
    /// The way back.
    pub back: Leg,
    /// The time between the two.
    #[serde(serialize_with = "millis", rename = "away_ms")]
    pub away: Duration,
    /// The gates that were asked, in their order.
    pub gates: Vec<GateReport>,
}

/// One of the two switches of a drill.
#[derive(Clone, Debug, Serialize)]
pub struct Leg {
    /// The state that it made.
    pub to: Moment,
    /// How long the call took, with its records.
    #[serde(serialize_with = "micros", rename = "call_us")]
    pub call: Duration,
    /// From the store of the live word until no packet was decided by the old one.
    #[serde(serialize_with = "micros", rename = "fence_us")]
    pub fence: Duration,
    /// Microseconds from the store to the first new flow on this colour, if there was one before the call returned.
    pub first_new_us: Option<u64>,
}

impl Leg {
    fn of(switched: &Switched, began: Instant) -> Self {
        let first_new_us = switched.receipt.as_ref().and_then(|receipt| receipt.first_new_us);
        Self { to: switched.to, call: began.elapsed(), fence: switched.fence, first_new_us }
    }
}

/// Rehearses the recovery of a deployment with these gates, and blocks all the while. When it returns, what was live before is live again,
/// unless it was impossible to switch back: then the error says so, and the data path does it.
///
/// # Errors
/// A gate before the switch has failed, so there was no drill ([`Refusal::GateFailed`]), or somebody else has interfered. A gate after
/// the switch that fails is no error, but a result: [`Drill::passed`].
pub fn drill(
    instance: &Instance,
    deployment: &str,
    request: &DrillRequest,
    gates: &[Gate],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Drill, Error> {
    let why = request.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let window = gates::usual_window(gates).saturating_add(request.back_after).saturating_add(GRACE);
    if request.back_after > SwitchRequest::LONGEST {
        let [longest, time] = [SwitchRequest::LONGEST, request.back_after].map(humantime::format_duration);
        return Err(Error::Unrepresentable { what: format!("--back-after takes {longest} at most, not {time}") });
    }
    let there = SwitchRequest {
        on_switch: request.on_switch,
        if_generation: request.if_generation,
        force: request.force,
        reason: Some(format!("drill{why}")),
        confirm_within: Some(window.min(SwitchRequest::LONGEST)),
        ..SwitchRequest::default()
    };
    let mut passed = gates::pass_before(instance, deployment, &there, gates, progress)?;
    if passed.is_there {
        return Err(Refusal::NothingToDrill { deployment: deployment.to_owned() }.into());
    }
    let began = Instant::now();
    let switched = instance.switch(deployment, &passed.request).inspect_err(|error| {
        if error.is_made() {
            let goes_back =
                "no gate was asked, and the drill goes back when its time is over, unless somebody confirms it";
            instance.state.warn([goes_back.to_owned()]);
        }
    })?;
    let leg = Leg::of(&switched, began);
    progress(Progress::Switched(&switched));
    let watch = Watch::new(instance, &switched, &passed.request)?.until(switched.stored + request.back_after);
    let outcome = watch.run(gates, &mut passed.reports, progress);
    let failed = match outcome {
        Ok(Confirmed::ByGates) => None,
        Ok(Confirmed::BySomebody) => {
            let (deployment, live) = (deployment.to_owned(), switched.to.live.name());
            return Err(Refusal::DrillKept { deployment, live }.into());
        }
        Err(Failed { gate, why }) => Some(format!("{gate}: {why}")),
    };
    let back = SwitchRequest {
        only_if_waiting: true,
        // What has failed its gates is nothing to go back to.
        restores: failed.is_none(),
        on_switch: Some(switched.on_switch),
        if_generation: Some(switched.to.generation),
        force: true,
        reason: Some(
            failed
                .as_ref()
                .map_or_else(|| format!("drill over{why}"), |failed| format!("drill: gate failed: {failed}")),
        ),
        ..SwitchRequest::default()
    };
    let (away, began) = (switched.stored.elapsed(), Instant::now());
    let returned = instance.rollback(deployment, &back).map_err(|error| match error {
        Error::Refused(Refusal::NothingToConfirm { deployment, .. }) => {
            Refusal::DrillKept { deployment, live: switched.to.live.name() }.into()
        }
        error => error,
    })?;
    Ok(Drill {
        deployment: deployment.to_owned(),
        passed: failed.is_none(),
        failed,
        from: switched.from,
        there: leg,
        back: Leg::of(&returned, began),
        away,
        gates: passed.reports,
    })
}

fn micros<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_micros() as u64)
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_millis() as u64)
}
