//! What an apply leaves does not depend on the way there: after any sequence of configurations and switches, an
//! instance holds what a fresh one makes of the last configuration, but for the live words, which stay. And a plan says all that an
//! apply does.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use bg_common::{LiveFlags, LiveWord, SwitchTerms};
use bg_ebpf::policy::lifetime::after_drain;
use bg_userspace::{
    Action, ApplyRequest, AttachMode, Colour, Error, Mode, Plan, Protocol, Refusal, SwitchRequest,
    config::{
        BackendSpec, Config, Deployment, DivideBy, Encap, Failover, OnSwitch, Prefix, Service, StickyPrefix, Tee,
    },
};
use proptest::prelude::*;

use crate::{
    described::{described, in_effect},
    lab::Lab,
    view::View,
};

const NAMES: [&str; 3] = ["shop", "mail", "wiki"];

/// Few addresses, so that they often change hands, and what was a VIP becomes a preview address.
fn address(index: usize) -> SocketAddr {
    match index {
        0..4 => ([203, 0, 113, 10], 1 + index as u16).into(),
        _ => (std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10), 1 + index as u16).into(),
    }
}

fn backend(colour: Colour, host: u16, family_of: SocketAddr) -> SocketAddr {
    let ip = match family_of {
        SocketAddr::V4(_) => std::net::IpAddr::from([10, 0, colour as u8, host as u8]),
        SocketAddr::V6(_) => std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, colour as u16, host).into(),
    };
    (ip, 8080).into()
}

/// One service of a deployment, if the deployment is there at all.
#[derive(Clone, Debug)]
struct Wanted {
    deployment: usize,
    renamed: bool,
    udp: bool,
    mirrored: bool,
    local: bool,
    /// Mode `tee`, if it is a TCP service that is not local: the variant of its listeners, and its settings.
    tee: Option<(u16, bool, bool)>,
    preview: Option<usize>,
    /// By colour, weights of hosts; `None` is no backend.
    weights: [[Option<u32>; 3]; 2],
}

fn wanted() -> impl Strategy<Value = Option<Wanted>> {
    let weights = || prop::array::uniform3(prop::option::of(0_u32..4));
    let service = (
        0..NAMES.len(),
        any::<(bool, bool, bool)>(),
        (prop::bool::weighted(0.2), prop::option::weighted(0.4, (0..2_u16, any::<bool>(), any::<bool>()))),
        prop::option::weighted(0.3, 0..8_usize),
        [weights(), weights()],
    );
    prop::option::weighted(0.6, service).prop_map(|service| {
        service.map(|(deployment, (renamed, udp, mirrored), (local, tee), preview, weights)| Wanted {
            deployment,
            renamed,
            udp,
            mirrored,
            local,
            tee,
            preview,
            weights,
        })
    })
}

/// Settings of a deployment: on_switch, time-outs, testers, initial colour.
fn settings() -> impl Strategy<Value = Deployment> {
    let testers =
        prop::sample::subsequence(vec!["198.51.100.0/24", "198.51.100.7/32", "0.0.0.0/0", "2001:db8:7::/48"], 0..3);
    (any::<(bool, bool)>(), 0..3_u64, 0..3_u64, testers).prop_map(|((cut, green), drain, idle, testers)| Deployment {
        name: String::new(),
        initial: if green { Colour::Green } else { Colour::Blue },
        on_switch: OnSwitch::ALL[usize::from(cut)],
        drain_timeout: (drain > 0).then(|| Duration::from_millis(1500 * drain)),
        tcp_idle_timeout: Duration::from_secs(7200 + idle),
        udp_idle_timeout: Duration::from_secs(60 + idle),
        sticky: DivideBy::ALL[usize::from(idle == 1)],
        sticky_prefix: StickyPrefix { ipv4: 24 + drain as u8, ..StickyPrefix::default() },
        testers: testers.into_iter().map(prefix).collect(),
        health: None,
        failover: Failover::default(),
        gates: Vec::new(),
        services: Vec::new(),
    })
}

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix { addr: addr.parse().unwrap(), len: len.parse().unwrap() }
}

fn configuration() -> impl Strategy<Value = Config> {
    let services = prop::collection::vec(wanted(), 7);
    let all = [settings(), settings(), settings()];
    (services, all, 0..NAMES.len()).prop_map(|(services, mut deployments, first)| {
        for (deployment, name) in deployments.iter_mut().zip(NAMES) {
            deployment.name = name.to_owned();
        }
        let mut taken: HashSet<(SocketAddr, bool)> = HashSet::new();
        for (index, wanted) in services.iter().enumerate() {
            taken.extend(wanted.as_ref().map(|wanted| (address(index), wanted.udp)));
        }
        for (index, wanted) in services.iter().enumerate() {
            let Some(wanted) = wanted else { continue };
            let vip = address(index);
            let is_free = |at: &SocketAddr| at.is_ipv4() == vip.is_ipv4() && taken.insert((*at, wanted.udp));
            let preview = wanted.preview.map(address).filter(is_free);
            let services = &mut deployments[wanted.deployment].services;
            services.push(service(index, wanted, vip, preview));
        }
        deployments.rotate_left(first);
        let deployments = deployments.into_iter().filter(|deployment| !deployment.services.is_empty()).collect();
        Config { deployments, ..Config::default() }
    })
}

/// The configuration after `last`: the one that was drawn, or `last` with the settings of that one.
fn next(last: &Config, drawn: &Config, only_settings: bool) -> Config {
    if !only_settings {
        return drawn.clone();
    }
    let mut next = last.clone();
    for (deployment, drawn) in next.deployments.iter_mut().zip(&drawn.deployments) {
        let (name, services) = (deployment.name.clone(), deployment.services.clone());
        *deployment = Deployment { name, services, ..drawn.clone() };
    }
    next
}

fn service(index: usize, wanted: &Wanted, vip: SocketAddr, preview: Option<SocketAddr>) -> Service {
    let backends = Colour::ALL.map(|colour| {
        let hosts = (1..).zip(wanted.weights[colour as usize]);
        let mut backends: Vec<BackendSpec> = hosts
            .filter_map(|(host, weight)| {
                weight.map(|weight| BackendSpec { address: backend(colour, host, vip), weight })
            })
            .collect();
        if backends.iter().all(|backend| backend.weight == 0) {
            backends.push(BackendSpec { address: backend(colour, 9, vip), weight: 1 });
        }
        backends
    });
    let tee = wanted.tee.filter(|_| !wanted.udp && !wanted.local);
    let tee_settings = tee.map(|(variant, proxy_protocol, compare)| {
        let listen = [0, 1].map(|colour| {
            let port = 17_000 + 10 * index as u16 + 2 * variant + colour;
            SocketAddr::new(backend(Colour::Blue, 99, vip).ip(), port)
        });
        Tee { listen: Some(listen), proxy_protocol, compare }
    });
    Service {
        name: format!("{}{index}", if wanted.renamed { "new" } else { "old" }),
        vip,
        protocol: if wanted.udp { Protocol::Udp } else { Protocol::Tcp },
        mode: match (wanted.local, tee) {
            (true, _) => Mode::Local,
            (false, Some(_)) => Mode::Tee,
            (false, None) => Mode::Nat,
        },
        preview,
        is_mirrored: wanted.udp && wanted.mirrored,
        tee: tee_settings.unwrap_or_default(),
        encap: Encap::default(),
        backends,
        health: None,
        is_unchecked: false,
    }
}

/// Switches deployments at random; returns the words as they are then.
fn switch(lab: &Lab, switches: &[(usize, bool)], config: &Config) {
    for (index, cut) in switches {
        let Some(deployment) = config.deployments.get(*index) else { continue };
        let on_switch = Some(OnSwitch::ALL[usize::from(*cut)]);
        let request = SwitchRequest { on_switch, force: true, ..SwitchRequest::default() };
        lab.instance().switch(&deployment.name, &request).unwrap();
    }
}

/// Applies, by force only if that is asked for; returns what was changed and whether it took force.
fn apply(lab: &Lab, config: &Config) -> Result<(Plan, bool), TestCaseError> {
    let before = View::of(lab);
    match lab.instance().apply(config) {
        Ok(plan) => Ok((plan, false)),
        Err(Error::Refused(Refusal::ColourChanges { changes })) => {
            prop_assert!(changes.iter().all(|change| change.live != change.becomes));
            prop_assert_eq!(before, View::of(lab), "nothing has been changed");
            let forced = ApplyRequest { force: true, ..ApplyRequest::default() };
            Ok((lab.instance().apply_as(config, &forced).unwrap(), true))
        }
        Err(error) => panic!("{error}"),
    }
}

/// A word and its terms, after a command that has found the deadline of a drain passed.
fn drained((word, terms): (LiveWord, SwitchTerms)) -> (LiveWord, SwitchTerms) {
    if !word.flags().has(LiveFlags::DRAINING) {
        return (word, terms);
    }
    let (word, ended_before) = after_drain(word, &terms);
    (word, SwitchTerms { ended_before, ..terms })
}

/// Deployments that were there keep their words, new ones begin as the plan says, and no virtual address changes its
/// live colour unless by force.
fn words_stay(before: &View, after: &View, plan: &Plan, forced: bool) -> Result<(), TestCaseError> {
    for (name, word) in &after.words {
        if let Some(earlier) = before.words.get(name) {
            let is_overdue = earlier.1.drain_deadline != 0 && *word == drained(*earlier);
            prop_assert!(word == earlier || is_overdue, "{name}: {word:?}, {earlier:?}");
            continue;
        }
        let beginning = plan.changes.iter().find_map(|change| match &change.action {
            Action::AddDeployment(beginning) if change.deployment == *name => Some(beginning),
            _ => None,
        });
        prop_assert_eq!(beginning.unwrap().live, word.0.live(), "{}", name);
        prop_assert!(word.0.generation() > 0);
    }
    if !forced {
        for (vip, colour) in before.live() {
            let now = after.live().get(&vip).copied();
            prop_assert!(now.is_none_or(|now| now == colour), "{:?} was {:?} and is {:?}", vip, colour, now);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_an_apply_leaves_is_what_the_plan_says_and_does_not_depend_on_the_way_there(
        steps in prop::collection::vec(
            (configuration(), any::<bool>(), prop::collection::vec((0..3_usize, any::<bool>()), 0..3)),
            2..5,
        ),
    ) {
        let lab = Lab::new();
        lab.attach("v0", AttachMode::Tc).unwrap();
        let mut last = Config::default();
        for (drawn, only_settings, switches) in &steps {
            let config = &next(&last, drawn, *only_settings);
            let before = View::of(&lab);
            let planned = lab.instance().plan(config).unwrap();
            prop_assert_eq!(planned.is_empty(), in_effect(&last) == in_effect(config));
            prop_assert_eq!(in_effect(&described(&last, &planned, config)), in_effect(config));
            let (plan, forced) = apply(&lab, config)?;
            prop_assert_eq!(&plan, &planned);
            for same in [config, &in_effect(config)] {
                prop_assert!(lab.instance().plan(same).unwrap().is_empty());
            }
            last.clone_from(config);
            words_stay(&before, &View::of(&lab), &plan, forced)?;
            switch(&lab, switches, config);
        }
        let fresh = lab.beside();
        fresh.attach("v1", AttachMode::Tc).unwrap();
        fresh.instance().apply(&last).unwrap();
        prop_assert_eq!(View::of(&lab).without_words(), View::of(&fresh).without_words());
    }
}
