//! What is told of gates.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::attempt::Told;
use crate::{
    Switched,
    config::{Gate, When},
};

/// A switch with its gates, all of which have passed.
#[derive(Clone, Debug, Serialize)]
pub struct GatedSwitch {
    /// The switch.
    #[serde(flatten)]
    pub switched: Switched,
    /// The gates that were asked, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateReport>,
    /// Who has confirmed the switch; `None` if no gate was to do that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmed>,
}

impl GatedSwitch {
    pub(super) fn without_gates(switched: Switched) -> Self {
        Self { switched, gates: Vec::new(), confirmed: None }
    }
}

impl AsRef<Switched> for GatedSwitch {
    fn as_ref(&self) -> &Switched {
        &self.switched
    }
}

/// Who has confirmed a switch with gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirmed {
    /// The gates, which have all passed.
    ByGates,
    /// Somebody else, before the gates were through.
    BySomebody,
}

/// How a gate has fared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GateReport {
    /// The gate, as messages call it.
    pub gate: String,
    /// `before` or `after` the switch.
    #[serde(serialize_with = "name")]
    pub when: When,
    /// Whether its last attempt has passed.
    pub passed: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How often it was asked.
    pub attempts: u32,
    /// How long the slowest attempt has taken.
    #[serde(serialize_with = "millis", rename = "longest_ms")]
    pub longest: Duration,
}

impl GateReport {
    pub(super) fn of(gate: &Gate, told: &Told) -> Self {
        let (passed, why) = (told.outcome.is_ok(), told.outcome.as_ref().err().cloned());
        Self { gate: gate.to_string(), when: gate.when, passed, why, attempts: 1, longest: told.took }
    }

    /// Adds another attempt of the same gate.
    pub(super) fn add(&mut self, told: &Told) {
        self.passed = told.outcome.is_ok();
        self.why = told.outcome.as_ref().err().cloned();
        self.attempts += 1;
        self.longest = self.longest.max(told.took);
    }
}

/// What a switch with gates is doing.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A gate is asked.
    Asks(&'a Gate),
    /// It has passed or failed.
    Told(&'a GateReport),
    /// The switch is made, and waits for its confirmation by the gates after it.
    Switched(&'a Switched),
}

/// A gate after a switch has failed.
pub(crate) struct Failed {
    pub(crate) gate: String,
    pub(crate) why: String,
}

/// The reason of a confirmation.
pub(super) fn names(reports: &[GateReport], when: When) -> String {
    let names = reports.iter().filter(|report| report.when == when).map(|report| report.gate.as_str());
    format!("gates passed: {}", names.collect::<Vec<_>>().join("; "))
}

fn name<S: Serializer>(when: &When, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(when.name())
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_millis() as u64)
}
