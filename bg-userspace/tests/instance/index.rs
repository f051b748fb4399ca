//! The indexes: what a packet finds of virtual addresses and backends, whatever has been applied, killed, applied again.

use std::{collections::BTreeSet, ops::Range};

use aya::maps::{Map, MapData};
use bg_common::{Backend, Be16, Flow, FlowBackend, FlowKey4, MAX_CHAIN, Mode, ServiceKey, ServiceRow, Vip};
use bg_ebpf::flow::table::Stored;
use bg_userspace::{
    AttachMode, Error, Protocol,
    config::{BackendSpec, Config, Service},
};

use crate::{
    flow_map::{FlowMap, array, vip_row},
    lab::{Lab, config},
    view::View,
};

/// Services on these ports, each with a preview address 10,000 ports above and a backend that all of them share.
fn shop(ports: std::ops::Range<u16>) -> Config {
    let mut config = config("shop", &[(1, 1)], &[(1, 1)]);
    let service = config.deployments[0].services.remove(0);
    config.deployments[0].services = ports
        .map(|port| {
            let mut service = service.clone();
            (service.name, service.protocol) = (format!("s{port}"), Protocol::Udp);
            service.vip.set_port(port);
            service.preview = Some(([203, 0, 113, 10], port + 10_000).into());
            let own = BackendSpec { address: ([10, 0, 0, 2], port).into(), weight: 1 };
            service.backends[0].push(own);
            service
        })
        .collect();
    config
}

fn salt(lab: &Lab, name: &str, config: &Config) -> u16 {
    let service = config.deployments[0].services.iter().find(|service| service.name == name).unwrap();
    let row = vip_row(lab, [203, 0, 113, 10], service.vip.port(), service.protocol as u8).unwrap();
    let vip = |row: u16| array::<Vip>(lab, "vips").get(&row.into(), 0).unwrap();
    assert_eq!(vip(row).salt, vip(row & !1).salt);
    vip(row).salt
}

#[test]
fn whatever_is_applied_packets_find_all_addresses_and_backends_and_no_others() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    for ports in [1..3, 1..40, 30..35, 50..51] {
        lab.instance().apply(&shop(ports.clone())).unwrap();
        let view = View::of(&lab);
        assert_eq!(view.ports(), ports.clone().chain(ports.start + 10_000..ports.end + 10_000).collect(), "{ports:?}");
        lab.attach("v0", AttachMode::Auto).unwrap();
        assert_eq!(View::of(&lab), view, "after another attach");
    }
    lab.instance().apply(&Config::default()).unwrap();
    assert_eq!(View::of(&lab).ports(), BTreeSet::new());
}

#[test]
fn a_killed_apply_is_completed_by_the_next() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&shop(1..200)).unwrap();
    let ranges = [100..300_u16, 1..200];
    let files = [0, 1].map(|nth| lab.file(&format!("{nth}.toml"), &shop(ranges[nth].clone()).to_toml()));
    let [takes, _] = files.each_ref().map(|file| lab.time(&["apply", "-c", file.to_str().unwrap()]));
    let mut unfinished = 0;
    for round in 0..16_usize {
        let config = shop(ranges[round % 2].clone());
        lab.kill_after(takes * round as u32 / 16, &["apply", "-c", files[round % 2].to_str().unwrap()]);
        // Services of both configurations are served all the while.
        for port in 100..200 {
            assert!(vip_row(&lab, [203, 0, 113, 10], port, Protocol::Udp as u8).is_some(), "{port}");
        }
        unfinished += usize::from(!lab.instance().plan(&config).unwrap().is_empty());
        lab.instance().apply(&config).unwrap();
        assert_eq!(View::of(&lab).ports().len(), 2 * ranges[round % 2].len());
    }
    assert!(unfinished > 0, "no round was killed in time to leave something");
}

#[test]
fn what_is_missing_in_an_index_is_something_to_be_finished() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let shop = shop(1..20);
    lab.instance().apply(&shop).unwrap();
    let view = View::of(&lab);
    for index in ["vip_index", "backend_index"] {
        let mut heads = array::<[u32; 2]>(&lab, index);
        let row = (0..heads.len()).find(|row| heads.get(row, 0).unwrap() != [0; 2]).unwrap();
        heads.set(row, [0; 2], 0).unwrap();
        assert_eq!(lab.instance().plan(&shop).unwrap().changes.len(), 1, "{index}");
        lab.instance().apply(&shop).unwrap();
        assert!(lab.instance().plan(&shop).unwrap().is_empty());
        assert_eq!(View::of(&lab), view);
    }
}

#[test]
fn services_that_share_a_backend_have_one_salt_and_keep_the_one_they_have() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let mut shop = one_backend_each(1..4);
    let salts = |shop: &Config| ["s1", "s2", "s3"].map(|name| salt(&lab, name, shop));
    lab.instance().apply(&shop).unwrap();
    let apart = salts(&shop);
    assert!(apart[0] != apart[1] && apart[1] != apart[2] && apart[0] != apart[2], "{apart:?}");
    // The second one gets a backend of the first, and a new one has backends of the second and third.
    let first = shop.deployments[0].services[0].backends[0][0];
    shop.deployments[0].services[1].backends[0].push(first);
    let (second, third) = (&shop.deployments[0].services[1], &shop.deployments[0].services[2]);
    let mut both = Service { name: "both".into(), vip: ([203, 0, 113, 10], 99).into(), preview: None, ..third.clone() };
    both.backends[1] = second.backends[1].clone();
    shop.deployments[0].services.push(both);
    lab.instance().apply(&shop).unwrap();
    assert_eq!(salts(&shop), apart, "open flows stand where it says");
    assert_eq!(salt(&lab, "both", &shop), apart[1].min(apart[2]));
    View::of(&lab);
}

/// A shop each of whose services has one backend, the same in both colours.
fn one_backend_each(ports: Range<u16>) -> Config {
    let mut shop = shop(ports);
    shop.deployments[0].services.iter_mut().for_each(|service| {
        service.backends[0].remove(0);
        service.backends[1] = service.backends[0].clone();
    });
    shop
}

#[test]
fn a_backend_that_many_services_did_not_share_at_first_is_refused_before_anything_is_changed() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let many = MAX_CHAIN as usize;
    let shop = one_backend_each(1..many as u16 + 4);
    lab.instance().apply(&shop).unwrap();
    let sorry = BackendSpec { address: ([10, 0, 1, 99], 80).into(), weight: 1 };
    let with_sorry = |count: usize| {
        let mut shop = shop.clone();
        shop.deployments[0].services.iter_mut().take(count).for_each(|service| service.backends[1] = vec![sorry]);
        shop
    };
    lab.instance().apply(&with_sorry(many)).unwrap();
    let view = View::of(&lab);
    let error = lab.instance().apply(&with_sorry(many + 1)).unwrap_err();
    assert!(matches!(error, Error::IndexFull { what: "backend", address, .. } if address == sorry.address), "{error}");
    assert_eq!(View::of(&lab), view);
    // Those that are added with it have it in common.
    lab.instance().apply(&Config::default()).unwrap();
    lab.instance().apply(&with_sorry(many + 3)).unwrap();
    assert_eq!(View::of(&lab).ports().len(), 2 * (many + 3));
}

/// Packets do not look for backends whose replies do not pass the host.
#[test]
fn backends_that_reply_to_clients_directly_are_in_no_list_that_could_be_full() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let mut shop = one_backend_each(1..MAX_CHAIN as u16 + 4);
    for (nth, service) in (1..).zip(&mut shop.deployments[0].services) {
        (service.mode, service.vip, service.preview) = (Mode::L2dsr, ([203, 0, 113, nth], 80).into(), None);
        let own = BackendSpec { address: ([10, 0, 2, nth], 80).into(), weight: 1 };
        service.backends = [vec![own], vec![own]];
    }
    lab.instance().apply(&shop).unwrap();
    let common = BackendSpec { address: ([10, 0, 1, 99], 80).into(), weight: 1 };
    shop.deployments[0].services.iter_mut().for_each(|service| service.backends[1] = vec![common]);
    lab.instance().apply(&shop).unwrap();
    assert!(lab.instance().plan(&shop).unwrap().is_empty());
}

#[test]
fn what_a_killed_apply_has_left_in_a_list_takes_no_room_there() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let many = MAX_CHAIN as usize;
    let mut shop = one_backend_each(1..many as u16 + 3);
    lab.instance().apply(&shop).unwrap();
    let common = BackendSpec { address: ([10, 0, 1, 99], 80).into(), weight: 1 };
    shop.deployments[0].services[..many].iter_mut().for_each(|service| service.backends[1] = vec![common]);
    lab.instance().apply(&shop).unwrap();
    // An apply that removes two services is killed when it has removed their keys.
    let map = MapData::from_pin(lab.paths.map("services")).and_then(Map::from_map_data).unwrap();
    let mut rows: aya::maps::HashMap<_, ServiceKey, ServiceRow> = map.try_into().unwrap();
    for service in shop.deployments[0].services.drain(..2) {
        for address in [Some(service.vip), service.preview].into_iter().flatten() {
            let (addr, port) = (address.ip().into(), Be16::new(address.port()));
            rows.remove(&ServiceKey { addr, port, protocol: service.protocol as u8, family: 4 }).unwrap();
        }
    }
    // As many others get the backend.
    shop.deployments[0].services[many - 2..].iter_mut().for_each(|service| service.backends[1] = vec![common]);
    lab.instance().apply(&shop).unwrap();
    assert!(lab.instance().plan(&shop).unwrap().is_empty());
    assert_eq!(View::of(&lab).ports().len(), 2 * many);
}

#[test]
fn a_backend_in_both_colours_leaves_one_of_them_though_its_list_is_full() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let mut shop = one_backend_each(1..MAX_CHAIN as u16 + 1);
    lab.instance().apply(&shop).unwrap();
    let common = BackendSpec { address: ([10, 0, 1, 99], 80).into(), weight: 1 };
    shop.deployments[0].services.iter_mut().for_each(|service| service.backends[0].push(common));
    lab.instance().apply(&shop).unwrap();
    // Of each service, blue's row is linked. Green's takes its place in the full list.
    shop.deployments[0].services[0].backends[1].push(common);
    lab.instance().apply(&shop).unwrap();
    shop.deployments[0].services[0].backends[0].pop();
    lab.instance().apply(&shop).unwrap();
    assert!(lab.instance().plan(&shop).unwrap().is_empty());
    View::of(&lab);
}

/// While an address changes hands, a packet that has found the old owner's row may open a flow at a backend of the new
/// one. It must not lead the clients of whoever gets that row next there.
#[test]
fn no_flow_names_the_row_of_an_address_that_is_gone() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let both = shop(1..3);
    lab.instance().apply(&both).unwrap();
    let rows = [1, 2].map(|port| vip_row(&lab, [203, 0, 113, 10], port, Protocol::Udp as u8).unwrap());
    let backends = array::<Backend>(&lab, "backends");
    let mut in_use = (0..8).map(|slot| (slot, backends.get(&slot, 0).unwrap()));
    let (slot, row) = in_use.find(|(_, row)| row.identity.in_use == 1 && 2 * row.service == rows[1]).unwrap();
    let flows = FlowMap::open(&lab);
    let key = |vip| FlowKey4 { client: 1, port: Be16::new(5000), vip };
    let flow = Flow { backend: FlowBackend::new(slot, row.identity.epoch), ..Flow::default() };
    for row in rows {
        assert_eq!(flows.insert(&key(row), &flow, 0), Stored::Yes);
    }
    lab.instance().apply(&shop(2..3)).unwrap();
    assert_eq!(flows.flows().iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(rows[1])]);
}
