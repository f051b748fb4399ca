//! Whether a deployment is to be switched.

use std::collections::BTreeMap;

use bg_common::Colour;

use crate::{
    DeploymentStatus, Health,
    config::{Deployment, model::MinHealthy},
    serve::board::{BackendKey, Checked},
};

/// A switch that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) deployment: String,
    pub(super) to: Colour,
    pub(super) generation: u32,
    pub(super) why: String,
    /// Whether the deployment has gates, of which a failover asks none.
    pub(super) has_gates: bool,
}

/// What was found out about a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) due: Option<Due>,
    /// Backends of checked services that get flows but are not in the controller's configuration, so nothing checks them.
    pub(super) unchecked: Vec<String>,
}

/// Judges a deployment.
pub(super) fn judge(
    wanted: &Deployment,
    status: &DeploymentStatus,
    board: &BTreeMap<BackendKey, Checked>,
) -> Judgement {
    let mut unchecked = Vec::new();
    let [blue, green] = Colour::ALL.map(|colour| shortage(wanted, status, colour, board, &mut unchecked));
    let of = |colour| if colour == Colour::Blue { &blue } else { &green };
    let due = || {
        if !matches!(status.phase, "steady" | "draining") {
            return None;
        }
        let live = Colour::ALL.into_iter().find(|colour| colour.name() == status.live)?;
        let Shortage::Short(why) = of(live) else { return None };
        if *of(live.other()) != Shortage::None {
            return None;
        }
        let (deployment, has_gates) = (wanted.name.clone(), !wanted.gates.is_empty());
        Some(Due { deployment, to: live.other(), generation: status.generation, why: why.clone(), has_gates })
    };
    Judgement { due: due(), unchecked }
}

/// Whether a colour has too few healthy backends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shortage {
    None,
    /// Not all of those that are checked were judged, or a service has none that is.
    Unknown,
    Short(String),
}

fn shortage(
    wanted: &Deployment,
    status: &DeploymentStatus,
    colour: Colour,
    board: &BTreeMap<BackendKey, Checked>,
    unchecked: &mut Vec<String>,
) -> Shortage {
    let (mut short, mut is_unknown) = (None, false);
    for service in &status.services {
        let configured = wanted.services.iter().find(|found| found.name == service.name);
        let Some(configured) = configured.filter(|configured| wanted.check_of(configured).is_some()) else {
            continue;
        };
        let (mut all, mut up, mut left_out) = (0, 0, 0);
        for backend in service.colours.of(colour).backends.iter().filter(|backend| backend.weight > 0) {
            // The file tells, and not the board: a check that has just been configured has not begun yet.
            if !configured.backends(colour).iter().any(|found| found.address == backend.address) {
                left_out += 1;
                unchecked.push(format!("{} of {} of {}", backend.address, colour.name(), service.name));
                continue;
            }
            let key = BackendKey {
                deployment: status.name.clone(),
                service: service.name.clone(),
                colour,
                address: backend.address,
            };
            all += 1;
            match board.get(&key).filter(|checked| checked.is_judged) {
                Some(checked) => up += u32::from(checked.health == Health::Up),
                None => is_unknown = true,
            }
        }
        is_unknown |= all == 0 && left_out > 0;
        let needed = needed(wanted.failover.min_healthy, all);
        if up < needed && short.is_none() {
            let name = &service.name;
            short = Some(format!("{} has {up} of {all} backends of {name} up, and needs {needed}", colour.name()));
        }
    }
    match short {
        _ if is_unknown => Shortage::Unknown,
        Some(why) => Shortage::Short(why),
        None => Shortage::None,
    }
}

/// How many of so many backends have to be up.
fn needed(min_healthy: MinHealthy, all: u32) -> u32 {
    match min_healthy {
        MinHealthy::Percent(percent) => (all * u32::from(percent)).div_ceil(100),
        MinHealthy::Count(count) => count.get().min(all),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn enough_is_rounded_up_and_never_more_than_there_are() {
        let percent = |percent, all| needed(MinHealthy::Percent(percent), all);
        assert_eq!([percent(50, 1), percent(50, 2), percent(50, 3), percent(100, 3), percent(1, 200)], [1, 1, 2, 3, 2]);
        let count = |count, all| needed(MinHealthy::Count(NonZeroU32::new(count).unwrap()), all);
        assert_eq!([count(1, 3), count(3, 3), count(5, 3)], [1, 3, 3]);
    }
}
