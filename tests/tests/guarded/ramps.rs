//! A ramp: the share of new flows moves by the clock.

use crate::{FAMILIES, ROUNDING, SOON, flows, instant, millis, new_flow, turns_at};
use anyhow::{Result, ensure};
use bg_common::Colour;
use bg_tests::{Setting, config::DEPLOYMENT, in_each_setting};
use std::time::{Duration, SystemTime};

const RAMP: Duration = Duration::from_millis(1400);

/// New flows of a family in a half of a ramp. A busy machine asks more often at one time than at another, so each flow counts with the share at
/// its own time, which is between those when it was sent and when it was answered.
#[derive(Clone, Copy, Default)]
struct Seen {
    green: f64,
    least: f64,
    most: f64,
    variance: f64,
}

impl Seen {
    fn add(&mut self, colour: Colour, [low, high]: [f64; 2]) {
        self.green += f64::from(colour as u8);
        self.least += low;
        self.most += high;
        self.variance += high * (1.0 - low);
    }

    /// Whether so many flows on green are no wonder.
    fn is_likely(&self) -> bool {
        let chance = 5.0 * self.variance.sqrt();
        println!("{} on green, expected {:.0} to {:.0} ± {chance:.0}", self.green, self.least, self.most);
        (self.least - chance..=self.most + chance).contains(&self.green)
    }
}

fn a_ramp_ends_where_it_leads_and_its_guard_begins_there(setting: Setting) -> Result<()> {
    let ready = setting.ready("")?;
    let (bgctl, mut flows) = (&ready.bgctl, flows());
    let (ramp, within) = (millis(RAMP), millis(SOON));
    let switched = bgctl.json(&["switch", DEPLOYMENT, "green", "--ramp", &ramp, "--confirm-within", &within])?;
    let (begin, end) = (instant(&switched["activate_at"])?, instant(&switched["ramp_until"])?);
    let length = end.duration_since(begin)?;
    ensure!(length + ROUNDING > RAMP && length < RAMP + ROUNDING, "{length:?}");
    let status = bgctl.deployment(DEPLOYMENT)?;
    ensure!(status["phase"] == "ramping" || SystemTime::now() + ROUNDING > end, "{status}");

    let share = |at: SystemTime| {
        let passed = at.duration_since(begin).unwrap_or_default();
        (passed.as_secs_f64() / RAMP.as_secs_f64()).min(1.0)
    };
    let mut seen = [[Seen::default(); 2]; FAMILIES.len()];
    while SystemTime::now() < end + ROUNDING {
        for (flows, halves) in flows.iter_mut().zip(&mut seen) {
            let (colour, sent, answered) = new_flow(&ready, flows)?;
            let shares = [sent, answered].map(share);
            halves[usize::from(shares[0] > 0.5)].add(colour, shares);
        }
    }
    for half in seen.as_flattened() {
        ensure!(half.is_likely());
    }
    let deadline = end + SOON;
    let told = &bgctl.deployment(DEPLOYMENT)?["confirm_deadline"];
    if told.is_null() {
        ensure!(SystemTime::now() + ROUNDING > deadline, "nothing waits for a confirmation");
    } else {
        let told = instant(told)?;
        ensure!(told + ROUNDING > deadline && told < deadline + ROUNDING, "{told:?}, expected {deadline:?}");
    }
    turns_at(&ready, &mut flows, deadline, Colour::Green, Colour::Blue)?;
    ready.neighbour_is_undisturbed()
}

in_each_setting!(a_ramp_ends_where_it_leads_and_its_guard_begins_there);
