//! What a plan says, followed line by line: the changes alone turn one configuration into the next.

use bg_userspace::{
    Action, Change, Mode, Plan, Protocol,
    config::{BackendSpec, Config, Deployment, DivideBy, OnSwitch, Service, StickyPrefix, Tee},
};

/// `before` after the changes of a plan. `wanted` tells the settings of deployments and services that are added, which a plan does not list.
pub(crate) fn described(before: &Config, plan: &Plan, wanted: &Config) -> Config {
    let mut config = before.clone();
    plan.changes.iter().for_each(|change| follow(&mut config, change, wanted));
    config
}

/// A configuration without what makes no difference to a running instance: the order, and the initial colours.
pub(crate) fn in_effect(config: &Config) -> Config {
    let mut config = config.clone();
    for deployment in &mut config.deployments {
        deployment.initial = bg_userspace::Colour::Blue;
        deployment.testers.sort_by_key(|prefix| (prefix.addr, prefix.len));
        for service in &mut deployment.services {
            service.backends.iter_mut().for_each(|backends| backends.sort_by_key(|backend| backend.address));
        }
        deployment.services.sort_by_key(|service| (service.vip, service.protocol as u8));
    }
    config.deployments.sort_by(|a, b| a.name.cmp(&b.name));
    config
}

fn follow(config: &mut Config, change: &Change, wanted: &Config) {
    let wanted = wanted.deployments.iter().find(|deployment| deployment.name == change.deployment);
    match &change.action {
        Action::AddDeployment(_) => {
            config.deployments.push(Deployment {
                testers: Vec::new(),
                services: Vec::new(),
                ..wanted.unwrap().clone()
            });
            return;
        }
        Action::RemoveDeployment { .. } => {
            config.deployments.retain(|deployment| deployment.name != change.deployment);
            return;
        }
        _ => {}
    }
    let deployment = config.deployments.iter_mut().find(|deployment| deployment.name == change.deployment).unwrap();
    match (&change.service, &change.action) {
        (None, action) => follow_deployment(deployment, action),
        (Some(name), Action::AddService { vip, protocol, .. }) => {
            let of_wanted = &mut wanted.unwrap().services.iter();
            let added = of_wanted.find(|service| (service.vip, said(service.protocol)) == (*vip, *protocol)).unwrap();
            assert_eq!(added.name, *name);
            let tee = Tee { listen: None, ..added.tee };
            deployment.services.push(Service { backends: Default::default(), tee, ..added.clone() });
        }
        (Some(_), Action::RemoveService { vip, protocol, .. }) => {
            deployment.services.retain(|service| (service.vip, said(service.protocol)) != (*vip, *protocol));
        }
        (Some(name), action) => {
            let name = if let Action::Set { setting: "name", from, .. } = action { from } else { name };
            // The one that was added has the name, if another one with this name is still to be removed.
            let service = deployment.services.iter_mut().rev().find(|service| service.name == *name).unwrap();
            follow_service(service, action);
        }
    }
}

fn said(protocol: Protocol) -> &'static str {
    bg_userspace::config::protocol_name(protocol)
}

fn follow_deployment(deployment: &mut Deployment, action: &Action) {
    let time = |text: &str| humantime::parse_duration(text).unwrap();
    match action {
        Action::AddTester { prefix } => deployment.testers.push(*prefix),
        Action::RemoveTester { prefix } => deployment.testers.retain(|tester| tester != prefix),
        Action::Set { setting, to, .. } => match *setting {
            "on_switch" => deployment.on_switch = OnSwitch::ALL.into_iter().find(|way| way.name() == to).unwrap(),
            "drain_timeout" => deployment.drain_timeout = (to != "never").then(|| time(to)),
            "tcp_idle_timeout" => deployment.tcp_idle_timeout = time(to),
            "udp_idle_timeout" => deployment.udp_idle_timeout = time(to),
            "sticky" => deployment.sticky = DivideBy::ALL.into_iter().find(|by| by.name() == to).unwrap(),
            "sticky_prefix" => deployment.sticky_prefix = prefix_lengths(to),
            other => panic!("{other}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Of `{ ipv4 = 32, ipv6 = 64 }`.
fn prefix_lengths(text: &str) -> StickyPrefix {
    let mut numbers =
        text.split(|char: char| !char.is_ascii_digit()).filter(|part| !part.is_empty() && *part != "4" && *part != "6");
    let mut number = || numbers.next().unwrap().parse().unwrap();
    StickyPrefix { ipv4: number(), ipv6: number() }
}

fn follow_service(service: &mut Service, action: &Action) {
    match action {
        Action::Set { setting, to, .. } => match *setting {
            "name" => service.name.clone_from(to),
            "mode" => {
                let modes = [Mode::Nat, Mode::Local, Mode::Tee];
                service.mode = modes.into_iter().find(|mode| bg_userspace::config::mode_name(*mode) == to).unwrap();
            }
            "proxy_protocol" => service.tee.proxy_protocol = to == "v2",
            "compare" => service.tee.compare = to == "true",
            "mirror" => service.is_mirrored = to == "idle",
            "preview" => service.preview = (to != "none").then(|| to.parse().unwrap()),
            other => panic!("{other}"),
        },
        // Both colours have a listener, or none has.
        Action::AddListener { colour, address } => {
            service.tee.listen.get_or_insert([*address; 2])[*colour as usize] = *address;
        }
        Action::RemoveListener { colour, address, .. } => {
            if service.mode != Mode::Tee {
                service.tee.listen = None;
            } else {
                assert_ne!(service.tee.listen.unwrap()[*colour as usize], *address, "the new one was added before");
            }
        }
        Action::AddBackend { colour, address, weight } => {
            service.backends[*colour as usize].push(BackendSpec { address: *address, weight: *weight });
        }
        Action::SetWeight { colour, address, from, to, .. } => {
            let backends = &mut service.backends[*colour as usize];
            let backend = backends.iter_mut().find(|backend| backend.address == *address).unwrap();
            assert_eq!(*from, Some(backend.weight));
            backend.weight = *to;
        }
        // Of two with this address, the new one has another mode.
        Action::RemoveBackend { colour, address, .. } => {
            let backends = &mut service.backends[*colour as usize];
            backends.remove(backends.iter().position(|backend| backend.address == *address).unwrap());
        }
        other => panic!("{other:?}"),
    }
}
