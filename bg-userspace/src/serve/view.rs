//! What the observer has seen.

use jiff::{SignedDuration, Timestamp};

use crate::{DeploymentStatus, Status};

/// Deadlines are counted by other clocks than the wall's, so no two looks find quite the same one.
const SAME_DEADLINE: SignedDuration = SignedDuration::from_secs(2);

/// What the observer has seen.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) at: Timestamp,
    pub(crate) status: Status,
}

impl View {
    /// Whether nothing has changed but what packets and time change.
    pub(crate) fn is_same_state(&self, other: &Self) -> bool {
        let [one, two] = [&self.status, &other.status];
        let deployments = || std::iter::zip(&one.deployments, &two.deployments);
        without_numbers(one) == without_numbers(two) && deployments().all(|(one, two)| have_same_deadlines(one, two))
    }
}

/// The status without the numbers that packets and time change.
fn without_numbers(status: &Status) -> Status {
    let mut state = status.clone();
    (state.drops, state.events) = Default::default();
    for deployment in &mut state.deployments {
        (deployment.flows, deployment.held, deployment.green_share_measured) = Default::default();
        for service in &mut deployment.services {
            for colour in [&mut service.colours.blue, &mut service.colours.green] {
                (colour.packets, colour.bytes, colour.flows_opened, colour.mirrored) = (0, 0, 0, 0);
            }
        }
        // The share moves all the time.
        if deployment.pending.as_ref().is_some_and(|pending| pending.ramp_until.is_some()) {
            deployment.green_share = 0.0;
        }
        for deadline in deadlines(deployment) {
            *deadline = None;
        }
    }
    state
}

fn have_same_deadlines(one: &DeploymentStatus, two: &DeploymentStatus) -> bool {
    let [mut one, mut two] = [one.clone(), two.clone()];
    std::iter::zip(deadlines(&mut one), deadlines(&mut two)).all(|(one, two)| match (*one, *two) {
        (Some(one), Some(two)) => one.duration_since(two).abs() < SAME_DEADLINE,
        (one, two) => one == two,
    })
}

fn deadlines(deployment: &mut DeploymentStatus) -> impl Iterator<Item = &mut Option<Timestamp>> {
    let of_pending = deployment.pending.iter_mut().flat_map(|pending| [&mut pending.at, &mut pending.ramp_until]);
    let own = [&mut deployment.confirm_deadline, &mut deployment.frozen_until, &mut deployment.drain_deadline];
    own.into_iter().chain(of_pending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BackendStatus, ByColour, ColourStatus, PendingStatus, ServiceStatus,
        config::{DivideBy, OnSwitch},
    };

    fn at(second: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(second).unwrap())
    }

    fn view(change: impl FnOnce(&mut Status)) -> View {
        let backend = BackendStatus { address: ([10, 0, 0, 1], 80).into(), weight: 1, health: "up", slow_start: None };
        let colour = ColourStatus { backends: vec![backend], ..ColourStatus::default() };
        let service = ServiceStatus {
            name: "web".to_owned(),
            vip: ([203, 0, 113, 10], 80).into(),
            protocol: "tcp",
            mode: "nat",
            preview: None,
            mirror: None,
            listen: None,
            colours: ByColour { blue: colour.clone(), green: colour },
        };
        let deployment = DeploymentStatus {
            name: "shop".to_owned(),
            live: "blue",
            idle: "green",
            previous: "green",
            generation: 7,
            phase: "ramping",
            green_share: 0.5,
            green_share_measured: None,
            divide_by: DivideBy::Flow,
            confirm_deadline: at(100),
            revert_if: Vec::new(),
            taken_back: None,
            pending: Some(PendingStatus { green_share: 1.0, at: at(50), ramp_until: at(100) }),
            frozen_until: None,
            held: 0,
            on_switch: OnSwitch::Drain,
            drain_timeout: None,
            drain_deadline: None,
            testers: Vec::new(),
            flows: ByColour::default(),
            services: vec![service],
        };
        let mut status = Status {
            deployments: vec![deployment],
            interfaces: Vec::new(),
            drops: Default::default(),
            events: Default::default(),
        };
        change(&mut status);
        View { at: Timestamp::now(), status }
    }

    #[test]
    fn numbers_and_time_alone_are_no_change_of_state() {
        let before = view(|_| ());
        let counted = view(|status| {
            status.drops.insert("malformed", 1);
            status.events.insert("x", 1);
            let deployment = &mut status.deployments[0];
            (deployment.flows.blue, deployment.held, deployment.green_share_measured) = (3, 1, Some(0.3));
            (deployment.green_share, deployment.confirm_deadline) = (0.6, at(101));
            let blue = &mut deployment.services[0].colours.blue;
            (blue.packets, blue.bytes, blue.flows_opened, blue.mirrored) = (1, 60, 1, 1);
        });
        assert!(before.is_same_state(&counted));
        let changes: [fn(&mut DeploymentStatus); 8] = [
            |it| it.generation = 8,
            |it| it.phase = "steady",
            |it| it.confirm_deadline = at(110),
            |it| it.confirm_deadline = None,
            |it| it.frozen_until = at(100),
            |it| it.services[0].colours.green.backends[0].health = "down",
            |it| it.services[0].colours.green.backends[0].slow_start = Some(0.1),
            |it| (it.pending, it.green_share) = (None, 0.6),
        ];
        for (nth, change) in changes.into_iter().enumerate() {
            assert!(!before.is_same_state(&view(|status| change(&mut status.deployments[0]))), "{nth}");
        }
        let split =
            |share| view(|status| (status.deployments[0].pending, status.deployments[0].green_share) = (None, share));
        assert!(!split(0.5).is_same_state(&split(0.6)), "without a ramp, somebody has changed it");
        assert!(!before.is_same_state(&view(|status| status.deployments.clear())));
    }
}
