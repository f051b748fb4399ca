//! What an apply that was killed at one given instant leaves, made by hand, and that a rerun removes it.

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use bg_common::{DeploymentRow, Role, ServiceInfo, ServiceKey, ServiceRow, Vip};
use bg_userspace::{AttachMode, Protocol, SwitchRequest, config::Config};

use crate::{
    lab::{Lab, config},
    state,
};

const PREVIEW: u16 = 9443;

/// The maps of services, to be written as a killed apply has.
struct Maps {
    services: BpfHashMap<MapData, ServiceKey, ServiceRow>,
    vips: Array<MapData, Vip>,
    info: Array<MapData, ServiceInfo>,
}

impl Maps {
    fn open(lab: &Lab) -> Self {
        let map = |name| MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).unwrap();
        Self {
            services: map("services").try_into().unwrap(),
            vips: map("vips").try_into().unwrap(),
            info: map("service_info").try_into().unwrap(),
        }
    }

    fn row(&self, port: u16) -> ServiceRow {
        self.services.get(&key(port), 0).unwrap()
    }

    fn vip(&self, service: u16, role: Role) -> ServiceKey {
        self.vips.get(&(2 * u32::from(service) + role as u32), 0).unwrap().key
    }

    /// Ports of all published addresses.
    fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<_> = self.services.keys().map(|key| key.unwrap().port.host()).collect();
        ports.sort_unstable();
        ports
    }
}

fn key(port: u16) -> ServiceKey {
    ServiceKey {
        addr: std::net::IpAddr::from([203, 0, 113, 10]).into(),
        port: bg_common::Be16::new(port),
        protocol: Protocol::Tcp as u8,
        family: 4,
    }
}

fn with_preview(name: &str, preview: Option<u16>) -> Config {
    let mut config = config(name, &[(1, 1)], &[(1, 1)]);
    config.deployments[0].services[0].preview = preview.map(|port| ([203, 0, 113, 10], port).into());
    config
}

/// One whose only service has another address, and so gets whatever index is free.
fn elsewhere() -> Config {
    let mut config = config("other", &[(7, 1)], &[(8, 1)]);
    config.deployments[0].services[0].vip.set_port(8080);
    config
}

fn running(config: &Config) -> (Lab, Maps) {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(config).unwrap();
    let maps = Maps::open(&lab);
    (lab, maps)
}

/// Applies, and proves that there was something to do and nothing is left to do.
fn rerun(lab: &Lab, config: &Config) {
    let instance = lab.instance();
    assert!(!instance.plan(config).unwrap().is_empty());
    instance.apply(config).unwrap();
    assert!(instance.plan(config).unwrap().is_empty(), "{}", instance.plan(config).unwrap());
}

#[test]
fn between_the_two_addresses_of_a_service_that_goes() {
    for next in [Config::default(), elsewhere(), with_preview("shop", Some(PREVIEW))] {
        let (lab, mut maps) = running(&with_preview("shop", Some(PREVIEW)));
        maps.services.remove(&key(443)).unwrap();
        rerun(&lab, &next);
        let services = next.deployments.iter().flat_map(|deployment| &deployment.services);
        let mut ports: Vec<_> =
            services.flat_map(|service| [Some(service.vip), service.preview]).flatten().map(|at| at.port()).collect();
        ports.sort_unstable();
        assert_eq!(maps.ports(), ports);
    }
}

#[test]
fn between_a_new_preview_address_and_the_end_of_the_old_one() {
    let (lab, mut maps) = running(&with_preview("shop", Some(PREVIEW)));
    let row = maps.row(PREVIEW);
    maps.services.insert(key(9444), row, 0).unwrap();
    let vip = Vip { key: key(9444), ..Vip::default() };
    maps.vips.set(2 * u32::from(row.service) + 1, vip, 0).unwrap();
    rerun(&lab, &with_preview("shop", Some(9444)));
    assert_eq!(maps.ports(), [443, 9444]);
    assert_eq!(maps.vip(row.service, Role::Preview), key(9444));
}

#[test]
fn after_a_service_has_taken_over_the_address_of_another() {
    let (lab, mut maps) = running(&with_preview("old", Some(PREVIEW)));
    let (row, other) = (maps.row(443), 5);
    let info = maps.info.get(&row.service.into(), 0).unwrap();
    maps.info.set(other, info, 0).unwrap();
    maps.vips.set(2 * other, Vip { key: key(443), ..Vip::default() }, 0).unwrap();
    maps.services.insert(key(443), ServiceRow { service: other as u16, ..row }, 0).unwrap();
    rerun(&lab, &with_preview("new", None));
    assert_eq!(maps.ports(), [443]);
}

#[test]
fn a_preview_address_that_goes_leaves_no_row() {
    let (lab, maps) = running(&with_preview("shop", Some(PREVIEW)));
    let service = maps.row(443).service;
    assert_eq!(maps.vip(service, Role::Preview), key(PREVIEW));
    lab.instance().apply(&with_preview("shop", None)).unwrap();
    assert_eq!(maps.vip(service, Role::Preview), ServiceKey::default(), "or its flows would stay");
    assert_eq!(maps.vip(service, Role::Vip), key(443));
    lab.instance().apply(&Config::default()).unwrap();
    assert_eq!(maps.vip(service, Role::Vip), ServiceKey::default());
}

#[test]
fn the_receipt_of_a_killed_switch_does_not_stay_open() {
    let lab = state::running();
    let map = MapData::from_pin(lab.paths.map("deployments")).and_then(Map::from_map_data).unwrap();
    let mut rows: Array<MapData, DeploymentRow> = map.try_into().unwrap();
    let killed = DeploymentRow { receipt: DeploymentRow::receipt_of(2), ..rows.get(&1, 0).unwrap() };
    rows.set(1, killed, 0).unwrap();
    // Of another deployment.
    lab.instance().status(Some("mail")).unwrap();
    assert_eq!(rows.get(&1, 0).unwrap(), DeploymentRow { receipt: 0, ..killed });
    rows.set(1, killed, 0).unwrap();
    lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
    assert_eq!(rows.get(&1, 0).unwrap().receipt, 0);
}
