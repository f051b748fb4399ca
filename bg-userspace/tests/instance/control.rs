//! Applying and switching on a real instance: what the maps hold afterwards.

use std::collections::HashMap;

use crate::{
    flow_map::array,
    lab::{Lab, config},
};
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use bg_common::{Backend, BackendInfo, LiveFlags, LiveWord, ServiceKey, ServiceRow};
use bg_userspace::{
    AttachMode, Colour, Error, ErrorClass, Refusal, SwitchRequest, Target,
    config::{Config, OnSwitch, Prefix},
    detach,
    history::{Action, History},
};

fn map(lab: &Lab, name: &str) -> Map {
    MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).unwrap()
}

/// Backends in use, by their last byte within a colour.
fn backends(lab: &Lab) -> HashMap<(Colour, u8), (u32, Backend)> {
    let rows: Array<_, Backend> = map(lab, "backends").try_into().unwrap();
    let rows = (0..64).map(|slot| (slot, rows.get(&slot, 0).unwrap())).filter(|(_, row)| row.identity.in_use == 1);
    rows.map(|(slot, row)| ((Colour::from_u8(row.colour), row.addr.octets()[3]), (slot, row))).collect()
}

fn services(lab: &Lab) -> HashMap<ServiceKey, ServiceRow> {
    let rows: BpfHashMap<_, ServiceKey, ServiceRow> = map(lab, "services").try_into().unwrap();
    rows.iter().map(|row| row.unwrap()).collect()
}

/// Slots in a service's table of a colour.
fn table(lab: &Lab, colour: Colour) -> Vec<u32> {
    let span = services(lab).values().next().unwrap().tables[colour as usize];
    let maglev: Array<_, [u32; 2]> = map(lab, "maglev").try_into().unwrap();
    let slot = |entry: u32| maglev.get(&(entry / 2), 0).unwrap()[entry as usize % 2];
    (span.base..span.base + span.len).map(slot).collect()
}

fn attached() -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab
}

/// Applies and proves that nothing is left to do.
fn apply(lab: &Lab, config: &Config) {
    let instance = lab.instance();
    let planned = instance.plan(config).unwrap();
    assert_eq!(instance.apply(config).unwrap(), planned);
    assert!(instance.plan(config).unwrap().is_empty(), "{}", instance.plan(config).unwrap());
}

#[test]
fn a_backend_that_stays_keeps_its_slot_and_epoch() {
    let lab = attached();
    apply(&lab, &config("shop", &[(1, 1), (2, 1)], &[(1, 1)]));
    let before = backends(&lab);
    apply(&lab, &config("shop", &[(2, 5), (3, 1), (4, 0)], &[(1, 1)]));
    let after = backends(&lab);
    let (slot, row) = after[&(Colour::Blue, 2)];
    let old = before[&(Colour::Blue, 2)];
    assert_eq!((slot, row.identity), (old.0, old.1.identity));
    assert_eq!(array::<BackendInfo>(&lab, "backend_info").get(&slot, 0).unwrap().weight, 5);
    assert_eq!(after[&(Colour::Green, 1)], before[&(Colour::Green, 1)]);
    assert!(!after.contains_key(&(Colour::Blue, 1)), "its identity has ended");

    let slots = table(&lab, Colour::Blue);
    let share = |octet| slots.iter().filter(|slot| **slot == after[&(Colour::Blue, octet)].0).count();
    assert_eq!(share(2) + share(3), slots.len(), "the removed one and the one of weight zero get nothing");
    assert!(share(2) > 4 * share(3) && share(2) < 6 * share(3));

    // What comes back is another one to its old flows.
    apply(&lab, &config("shop", &[(1, 1), (2, 5), (3, 1), (4, 0)], &[(1, 1)]));
    let (slot, row) = backends(&lab)[&(Colour::Blue, 1)];
    let (old_slot, old_row) = before[&(Colour::Blue, 1)];
    assert!(slot != old_slot || row.identity.epoch > old_row.identity.epoch);
}

#[test]
fn the_table_of_the_other_colour_is_not_touched() {
    let lab = attached();
    apply(&lab, &config("shop", &[(1, 1)], &[(1, 1), (2, 1)]));
    let before = services(&lab).values().next().unwrap().tables;
    apply(&lab, &config("shop", &[(1, 1), (9, 1)], &[(1, 1), (2, 1)]));
    let after = services(&lab).values().next().unwrap().tables;
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1], after[1]);
}

#[test]
fn an_address_that_moves_to_another_deployment_is_never_unserved() {
    let lab = attached();
    apply(&lab, &config("old", &[(1, 1)], &[(1, 1)]));
    let key = *services(&lab).keys().next().unwrap();
    apply(&lab, &config("new", &[(2, 1)], &[(2, 1)]));
    assert_eq!(services(&lab).into_keys().collect::<Vec<_>>(), [key]);
    let status = lab.instance().status(None).unwrap();
    assert_eq!(status.deployments.len(), 1);
    assert_eq!(status.deployments[0].services[0].colours.blue.backends[0].address.to_string(), "10.0.0.2:8443");
    assert_eq!(backends(&lab).len(), 2, "the old ones have ended");
}

#[test]
fn preview_testers_and_settings_come_and_go() {
    let lab = attached();
    let plain = config("shop", &[(1, 1)], &[(1, 1)]);
    let mut full = plain.clone();
    let deployment = &mut full.deployments[0];
    deployment.services[0].preview = Some(([203, 0, 113, 10], 9443).into());
    deployment.testers = vec![
        Prefix { addr: [198, 51, 100, 0].into(), len: 24 },
        Prefix { addr: "2001:db8:7::".parse::<std::net::Ipv6Addr>().unwrap().into(), len: 48 },
    ];
    deployment.on_switch = OnSwitch::Cut;
    deployment.drain_timeout = Some(std::time::Duration::from_secs(600));
    for config in [&plain, &full, &plain, &full] {
        apply(&lab, config);
        let rows = services(&lab);
        let is_full = config == &full;
        assert_eq!(rows.len(), if is_full { 2 } else { 1 });
        assert!(rows.values().all(|row| row.has_testers == u8::from(is_full)));
        let first = rows.values().next().unwrap();
        assert!(rows.values().all(|row| row.tables == first.tables && row.service == first.service));
    }
    let switched = lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(switched.on_switch, OnSwitch::Cut, "as the configuration says");
}

#[test]
fn an_apply_leaves_the_live_colour_alone() {
    let lab = attached();
    apply(&lab, &config("shop", &[(1, 1)], &[(1, 1)]));
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    apply(&lab, &config("shop", &[(1, 1), (2, 1)], &[(7, 1)]));
    let status = lab.instance().status(Some("shop")).unwrap();
    assert_eq!((status.deployments[0].live, status.deployments[0].generation), ("green", 2));
}

#[test]
fn an_empty_colour_cannot_be_applied() {
    let lab = attached();
    for (config, why) in [
        (config("shop", &[(1, 1)], &[]), "green is empty"),
        (config("shop", &[(1, 0)], &[(1, 1)]), "blue: all backends have weight 0"),
    ] {
        let error = lab.instance().apply(&config).unwrap_err();
        assert!(error.class() == ErrorClass::Usage && error.to_string().contains(why), "{error}");
    }
    assert!(services(&lab).is_empty());
}

#[test]
fn a_switch_is_refused_by_its_preconditions_and_changes_nothing() {
    let lab = attached();
    apply(&lab, &config("shop", &[(1, 1)], &[(1, 1)]));
    let instance = lab.instance();
    let refused = |result: Result<_, Error>| match result.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other}"),
    };
    let request = SwitchRequest { if_generation: Some(7), ..SwitchRequest::default() };
    assert!(matches!(refused(instance.switch("shop", &request)), Refusal::OtherGeneration { expected: 7, got: 1, .. }));
    assert!(matches!(
        refused(instance.rollback("shop", &SwitchRequest::default())),
        Refusal::NothingToRollBackTo { .. }
    ));
    let to_live = SwitchRequest { to: Some(Colour::Blue), ..SwitchRequest::default() };
    assert!(!instance.switch("shop", &to_live).unwrap().changed);
    let error = instance.switch("nothing", &SwitchRequest::default()).unwrap_err();
    assert!(error.class() == ErrorClass::Usage && error.to_string().contains("shop"), "{error}");

    detach(&lab.paths, &Target::Interfaces(vec!["v0".to_owned()])).unwrap();
    assert_eq!(refused(instance.switch("shop", &SwitchRequest::default())), Refusal::NoInterface);
    assert_eq!(instance.status(None).unwrap().deployments[0].generation, 1);
    let forced = SwitchRequest { force: true, ..SwitchRequest::default() };
    assert!(instance.switch("shop", &forced).unwrap().changed);
    assert_eq!(instance.status(None).unwrap().deployments[0].live, "green");
}

#[test]
fn a_switch_that_nobody_recorded_is_recorded_by_the_next_command() {
    let lab = attached();
    apply(&lab, &config("shop", &[(1, 1)], &[(1, 1)]));
    // As a load balancer of another language, or a bgctl that was killed at once after the store.
    let mut live: Array<_, LiveWord> = map(&lab, "live").try_into().unwrap();
    live.set(0, LiveWord::new(2, LiveFlags::DRAINING, 0, 10_000), 0).unwrap();
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    let journal = History::new(&lab.paths.state_dir).read(Some("shop")).unwrap();
    let actions: Vec<_> = journal.records.iter().map(|record| (record.action, record.to.unwrap().generation)).collect();
    assert_eq!(actions, [(Action::Apply, 1), (Action::Recovered, 2), (Action::Rollback, 3)]);
}

#[test]
fn an_emergency_does_not_fail_for_want_of_a_journal() {
    let lab = attached();
    apply(&lab, &config("shop", &[(1, 1)], &[(1, 1)]));
    // Neither a file that can be read, nor one that can be replaced.
    std::fs::remove_file(lab.paths.state_dir.join("live.json")).unwrap();
    std::fs::create_dir(lab.paths.state_dir.join("live.json")).unwrap();
    let error = lab.instance().switch("shop", &SwitchRequest::default()).unwrap_err();
    assert!(matches!(error, Error::NotRecorded { live: "green", generation: 2, .. }), "{error}");
    assert_eq!(lab.instance().status(None).unwrap().deployments[0].live, "green");
    std::fs::remove_dir(lab.paths.state_dir.join("live.json")).unwrap();
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    let journal = History::new(&lab.paths.state_dir).read(Some("shop")).unwrap();
    let actions: Vec<_> = journal.records.iter().map(|record| record.action).collect();
    assert_eq!(actions, [Action::Apply, Action::Recovered, Action::Rollback]);
}

#[test]
fn after_a_reboot_the_live_colour_is_what_it_was() {
    let lab = attached();
    let shop = config("shop", &[(1, 1)], &[(1, 1)]);
    apply(&lab, &shop);
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    // A reboot takes the pins and leaves the state directory.
    detach(&lab.paths, &Target::All).unwrap();
    lab.attach("v0", AttachMode::Tc).unwrap();
    apply(&lab, &shop);
    let status = lab.instance().status(None).unwrap();
    assert_eq!((status.deployments[0].live, status.deployments[0].generation), ("green", 2));
    assert_eq!(lab.instance().rollback("shop", &SwitchRequest::default()).unwrap().to.live, Colour::Blue);
}

#[test]
fn a_deployment_that_is_removed_is_forgotten() {
    let lab = attached();
    let shop = config("shop", &[(1, 1)], &[(1, 1)]);
    apply(&lab, &shop);
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    apply(&lab, &Config::default());
    assert!(services(&lab).is_empty() && backends(&lab).is_empty());
    apply(&lab, &shop);
    let status = lab.instance().status(None).unwrap();
    assert_eq!((status.deployments[0].live, status.deployments[0].generation), ("blue", 1));
}

#[test]
fn a_killed_apply_is_completed_by_a_rerun() {
    let lab = attached();
    let large = |salt: u8| {
        let mut config = config("shop", &[], &[]);
        let service = config.deployments[0].services[0].clone();
        config.deployments[0].services.clear();
        for number in 0..60_u16 {
            let mut service = service.clone();
            service.name = format!("s{number}");
            service.vip.set_port(1000 + number);
            for colour in Colour::ALL {
                service.backends[colour as usize] = (0..40)
                    .map(|n| bg_userspace::config::BackendSpec {
                        address: ([10, colour as u8, salt, n], 80).into(),
                        weight: 1 + u32::from(n % 3),
                    })
                    .collect();
            }
            config.deployments[0].services.push(service);
        }
        config
    };
    let text = |config: &Config| {
        let mut text = "[deployments.shop]\ninitial = \"blue\"\n".to_owned();
        for service in &config.deployments[0].services {
            let list = |colour: Colour| {
                let specs = service.backends(colour).iter();
                let specs = specs.map(|spec| format!("{{ address = \"{}\", weight = {} }}", spec.address, spec.weight));
                specs.collect::<Vec<_>>().join(", ")
            };
            text += &format!(
                "[[deployments.shop.services]]\nname = \"{}\"\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [{}]\ngreen = [{}]\n",
                service.name,
                service.vip,
                list(Colour::Blue),
                list(Colour::Green)
            );
        }
        text
    };
    let configs = [large(1), large(2)];
    let files = [lab.file("1.toml", &text(&configs[0])), lab.file("2.toml", &text(&configs[1]))];
    let [_, takes] = files.each_ref().map(|file| lab.time(&["apply", "-c", file.to_str().unwrap()]));
    let mut unfinished = 0;
    for round in 0..14_usize {
        lab.kill_after(takes * round as u32 / 14, &["apply", "-c", files[round % 2].to_str().unwrap()]);
        let instance = lab.instance();
        let rest = instance.plan(&configs[round % 2]).unwrap();
        unfinished += usize::from(!rest.is_empty());
        instance.apply(&configs[round % 2]).unwrap();
        assert!(instance.plan(&configs[round % 2]).unwrap().is_empty());
        let rows: Array<_, Backend> = map(&lab, "backends").try_into().unwrap();
        let in_use = (0..15_000).filter(|slot| rows.get(slot, 0).unwrap().identity.in_use == 1).count();
        assert_eq!(in_use, 60 * 2 * 40, "nothing is left over and nothing is missing");
        assert_eq!(services(&lab).len(), 60);
    }
    assert!(unfinished > 0, "no round was killed in time to leave something");
}
