//! Whether a deployment is to be switched.

use std::{collections::BTreeMap, net::SocketAddr};

use bg_common::Colour;

use crate::{
    DeploymentStatus, Health, ServiceStatus,
    config::{Deployment, model::MinHealthy},
    running::ServiceInMaps,
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

/// Judges a deployment by what was seen of it last.
pub(super) fn judge(
    wanted: &Deployment,
    status: &DeploymentStatus,
    board: &BTreeMap<BackendKey, Checked>,
) -> Judgement {
    let mut unchecked = Vec::new();
    let Some(live) = Colour::ALL.into_iter().find(|colour| colour.name() == status.live) else {
        return Judgement::default();
    };
    let services: Vec<_> = status.services.iter().map(InMaps::of_status).collect();
    let [blue, green] = Colour::ALL.map(|colour| {
        let role = if colour == live { Role::Left } else { Role::Target };
        shortage(wanted, &services, (colour, role), board, &mut unchecked)
    });
    let (left, target) = if live == Colour::Blue { (blue, green) } else { (green, blue) };
    let due = || {
        let Shortage::Short(why) = left else { return None };
        if target != Shortage::None || !matches!(status.phase, "steady" | "draining") {
            return None;
        }
        let (deployment, has_gates) = (wanted.name.clone(), !wanted.gates.is_empty());
        Some(Due { deployment, to: live.other(), generation: status.generation, why, has_gates })
    };
    Judgement { due: due(), unchecked }
}

/// Judges at the last moment whether a switch to this colour is still due, by what the maps say now. Returns why not.
pub(super) fn is_still_due(
    wanted: &Deployment,
    to: Colour,
    services: &[ServiceInMaps],
    board: &BTreeMap<BackendKey, Checked>,
) -> Result<(), String> {
    let services: Vec<_> = services.iter().map(InMaps::of_maps).collect();
    let shortage = |colour, role| shortage(wanted, &services, (colour, role), board, &mut Vec::new());
    match (shortage(to.other(), Role::Left), shortage(to, Role::Target)) {
        (Shortage::Short(_), Shortage::None) => Ok(()),
        (Shortage::Short(_), Shortage::Short(why)) => Err(why),
        (Shortage::None, _) => Err(format!("{} has enough backends up", to.other().name())),
        (Shortage::Unknown, _) | (_, Shortage::Unknown) => Err("not all backends are judged".to_owned()),
    }
}

/// A service in the maps, and its backends by colour.
struct InMaps<'a> {
    service: &'a str,
    backends: [Vec<BackendInMaps>; 2],
}

struct BackendInMaps {
    address: SocketAddr,
    has_weight: bool,
    health: Health,
}

impl<'a> InMaps<'a> {
    fn of_status(service: &'a ServiceStatus) -> Self {
        let of = |colour| {
            service.colours.of(colour).backends.iter().map(|backend| BackendInMaps {
                address: backend.address,
                has_weight: backend.weight > 0,
                health: Health::of_name(backend.health),
            })
        };
        Self { service: &service.name, backends: Colour::ALL.map(|colour| of(colour).collect()) }
    }

    fn of_maps(service: &'a ServiceInMaps) -> Self {
        let of = |colour: Colour| {
            service.backends[colour as usize].iter().map(|backend| BackendInMaps {
                address: backend.address,
                has_weight: backend.weight > 0,
                health: backend.health.health(),
            })
        };
        Self { service: &service.name, backends: Colour::ALL.map(|colour| of(colour).collect()) }
    }
}

/// What would become of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It would be left. What the checks say of it is enough: the maps may not be told yet, or cannot be.
    Left,
    /// It would be switched to. Packets go by the maps, so its backends must be up there too, and it must have some.
    Target,
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
    services: &[InMaps<'_>],
    (colour, role): (Colour, Role),
    board: &BTreeMap<BackendKey, Checked>,
    unchecked: &mut Vec<String>,
) -> Shortage {
    let (mut short, mut is_unknown) = (None, false);
    for InMaps { service, backends } in services {
        let configured = wanted.services.iter().find(|found| found.name == *service);
        let Some(configured) = configured.filter(|configured| wanted.check_of(configured).is_some()) else {
            continue;
        };
        let (mut all, mut up, mut left_out) = (0, 0, 0);
        for backend in backends[colour as usize].iter().filter(|backend| backend.has_weight) {
            // The file tells, and not the board: a check that has just been configured has not begun yet.
            if !configured.backends(colour).iter().any(|found| found.address == backend.address) {
                left_out += 1;
                unchecked.push(format!("{} of {} of {service}", backend.address, colour.name()));
                continue;
            }
            let key = BackendKey {
                deployment: wanted.name.clone(),
                service: (*service).to_owned(),
                colour,
                address: backend.address,
            };
            all += 1;
            match board.get(&key).filter(|checked| checked.is_judged) {
                Some(checked) => {
                    let is_told = role == Role::Left || backend.health == Health::Up;
                    up += u32::from(checked.health == Health::Up && is_told);
                }
                None => is_unknown = true,
            }
        }
        is_unknown |= all == 0 && left_out > 0;
        // Without any, it would be left as it is. But nobody switches to it: an apply may be about to give it some.
        let needed = needed(wanted.failover.min_healthy, all).max(u32::from(role == Role::Target));
        if up < needed && short.is_none() {
            let colour = colour.name();
            short = Some(format!("{colour} has {up} of {all} backends of {service} up, and needs {needed}"));
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
    use crate::config::model::{CheckKind, HealthCheck};

    const TEXT: &str = "[deployments.shop]\nhealth = { kind = \"tcp\" }\nfailover = { to_idle = \"auto\", min_healthy = \"50%\" }\n\
        [[deployments.shop.services]]\nname = \"web\"\nvip = \"203.0.113.10:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
        blue = [\"10.0.0.1:80\", \"10.0.0.2:80\"]\ngreen = [\"10.0.1.1:80\", \"10.0.1.2:80\"]\n";

    /// The shortage of green in this role, if its backends are so in the maps (a weight, and the health), and these are those on the board.
    fn of_green(role: Role, in_maps: &[(bool, Health)], found: &[Option<Health>]) -> &'static str {
        let config = crate::config::parse("test".as_ref(), TEXT).unwrap();
        let (wanted, colour) = (&config.deployments[0], Colour::Green);
        let addresses = || wanted.services[0].backends(colour).iter().map(|backend| backend.address);
        let backends = addresses().zip(in_maps);
        let green = backends.map(|(address, (has_weight, health))| BackendInMaps {
            address,
            has_weight: *has_weight,
            health: *health,
        });
        let services = [InMaps { service: "web", backends: [Vec::new(), green.collect()] }];
        let board = addresses().zip(found).map(|(address, health)| {
            let key = BackendKey { deployment: "shop".to_owned(), service: "web".to_owned(), colour, address };
            let checked = Checked::unjudged(&HealthCheck::new(CheckKind::Tcp), health.unwrap_or_default(), 1.0);
            (key, Checked { is_judged: health.is_some(), ..checked })
        });
        match shortage(wanted, &services, (colour, role), &board.collect(), &mut Vec::new()) {
            Shortage::None => "enough",
            Shortage::Unknown => "unknown",
            Shortage::Short(_) => "short",
        }
    }

    #[test]
    fn a_colour_to_switch_to_has_its_backends_up_in_the_maps_too() {
        use Health::{Down, Unknown, Up};
        let [up, down] = [Some(Up), Some(Down)];
        let target = |in_maps, found: [_; 2]| of_green(Role::Target, in_maps, &found);
        assert_eq!(target(&[(true, Up), (true, Down)], [up, down]), "enough");
        assert_eq!(target(&[(true, Down), (true, Down)], [up, up]), "short", "the maps are not told yet");
        assert_eq!(target(&[(true, Unknown), (true, Unknown)], [up, up]), "short");
        assert_eq!(target(&[(true, Up), (true, Up)], [down, down]), "short", "nor that they are down");
        assert_eq!(target(&[(true, Up), (true, Down)], [down, up]), "short", "none is up in both");
        assert_eq!(target(&[(true, Up), (true, Up)], [up, None]), "unknown");
        assert_eq!(target(&[(false, Up), (false, Up)], [up, up]), "short", "none has a weight");
        assert_eq!(target(&[], [up, up]), "short", "an apply has not added them yet");
        // What is left is judged by the checks alone: the maps may not be told yet, or cannot be.
        let left = |in_maps, found: [_; 2]| of_green(Role::Left, in_maps, &found);
        assert_eq!(left(&[(true, Up), (true, Up)], [down, down]), "short");
        assert_eq!(left(&[(true, Down), (true, Down)], [up, down]), "enough");
        assert_eq!(left(&[(false, Down), (false, Down)], [down, down]), "enough", "none has a weight");
    }

    #[test]
    fn enough_is_rounded_up_and_never_more_than_there_are() {
        let percent = |percent, all| needed(MinHealthy::Percent(percent), all);
        assert_eq!([percent(50, 1), percent(50, 2), percent(50, 3), percent(100, 3), percent(1, 200)], [1, 1, 2, 3, 2]);
        let count = |count, all| needed(MinHealthy::Count(NonZeroU32::new(count).unwrap()), all);
        assert_eq!([count(1, 3), count(3, 3), count(5, 3)], [1, 3, 3]);
    }
}
