//! Which backends get new flows when some of them are down: what the tables hold, and who still knows it.

use std::{collections::BTreeMap, net::SocketAddr};

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use bg_common::{Backend, NO_BACKEND, ServiceKey, ServiceRow};
use bg_userspace::{
    AttachMode, BackendHealth, Colour, Health, HealthSet, SwitchRequest,
    config::{Config, model::AllDown, parse},
};

use crate::lab::{Lab, config};

fn map(lab: &Lab, name: &str) -> Map {
    MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).unwrap()
}

/// The backends at the entries of a colour's table, by the port of its virtual address.
fn table(lab: &Lab, port: u16, colour: Colour) -> Vec<SocketAddr> {
    let services: BpfHashMap<_, ServiceKey, ServiceRow> = map(lab, "services").try_into().unwrap();
    let found = services.iter().map(Result::unwrap).find(|(key, _)| key.port.host() == port).unwrap();
    let span = found.1.tables[colour as usize];
    let maglev: Array<_, [u32; 2]> = map(lab, "maglev").try_into().unwrap();
    let backends: Array<_, Backend> = map(lab, "backends").try_into().unwrap();
    let address = |entry: u32| {
        let row = backends.get(&maglev.get(&(entry / 2), 0).unwrap()[entry as usize % 2], 0).unwrap();
        assert_eq!((row.identity.in_use, row.colour), (1, colour as u8));
        SocketAddr::new(row.addr.to_ip(bg_common::Family::V4), row.port.host())
    };
    (span.base..span.base + span.len).map(address).collect()
}

/// How many entries each backend has, by the last byte of its address.
fn shares(table: &[SocketAddr]) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    for address in table {
        let std::net::IpAddr::V4(ip) = address.ip() else { unreachable!() };
        *shares.entry(ip.octets()[3]).or_default() += 1;
    }
    shares
}

fn health(deployment: &str, service: &str, colour: Colour, octet: u8, health: Health) -> BackendHealth {
    BackendHealth {
        deployment: deployment.to_owned(),
        service: service.to_owned(),
        colour,
        address: ([10, 0, colour as u8, octet], 8443).into(),
        health,
        share: 1.0,
        all_down: AllDown::Open,
    }
}

fn blue(octet: u8, to: Health) -> BackendHealth {
    health("shop", "web", Colour::Blue, octet, to)
}

fn attached(config: &Config) -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(config).unwrap();
    lab
}

/// Weight and health of each blue backend of the first service of a deployment, as the status has them.
fn told(lab: &Lab, deployment: &str) -> Vec<(u8, u32, String)> {
    let status = lab.instance().status(Some(deployment)).unwrap();
    let backends = &status.deployments[0].services[0].colours.blue.backends;
    let octet = |address: &SocketAddr| address.ip().to_string().rsplit('.').next().unwrap().parse().unwrap();
    backends.iter().map(|backend| (octet(&backend.address), backend.weight, backend.health.to_owned())).collect()
}

fn name(lab: &Lab) -> String {
    lab.instance().status(None).unwrap().deployments[0].services[0].name.clone()
}

fn shop() -> Config {
    let mut shop = config("shop", &[(1, 1), (2, 1), (3, 2)], &[(1, 1), (2, 1)]);
    shop.deployments[0].services[0].name = "web".to_owned();
    shop
}

const PORT: u16 = 443;

#[test]
fn a_backend_that_is_down_gets_no_new_flow_and_only_its_entries_move() {
    let lab = attached(&shop());
    let port = lab.instance().status(None).unwrap().deployments[0].services[0].vip.port();
    assert_eq!((port, name(&lab).as_str()), (PORT, "web"));
    let before = [Colour::Blue, Colour::Green].map(|colour| table(&lab, PORT, colour));
    let set = lab.instance().set_health(&[blue(1, Health::Down), blue(2, Health::Up), blue(9, Health::Down)]).unwrap();
    assert_eq!(set, HealthSet { changed: 2, missing: 1, unsettled: 0 });

    let after = table(&lab, PORT, Colour::Blue);
    assert!(!shares(&after).contains_key(&1));
    let stays = |old: &SocketAddr| old.ip().to_string() != "10.0.0.1";
    assert!(before[0].iter().zip(&after).all(|(old, new)| !stays(old) || old == new), "others moved");
    let shares = shares(&after);
    assert!(shares[&3] > shares[&2] * 3 / 2 && shares[&3] < shares[&2] * 5 / 2, "by weight: {shares:?}");
    assert_eq!(table(&lab, PORT, Colour::Green), before[1]);
    let expected =
        [(1, 1, "down"), (2, 1, "up"), (3, 2, "unknown")].map(|(n, weight, text)| (n, weight, text.to_owned()));
    assert_eq!(told(&lab, "shop"), expected, "the configured weights");

    lab.instance().set_health(&[blue(1, Health::Up)]).unwrap();
    assert_eq!(table(&lab, PORT, Colour::Blue), before[0], "everything is back");
}

#[test]
fn one_that_starts_slowly_gets_a_part() {
    let lab = attached(&shop());
    let before = table(&lab, PORT, Colour::Blue);
    lab.instance().set_health(&[BackendHealth { share: 0.2, ..blue(3, Health::Up) }]).unwrap();
    let after = table(&lab, PORT, Colour::Blue);
    let [old, new] = [&before, &after].map(|table| shares(table)[&3] as f64);
    assert!((0.08..0.35).contains(&(new / old)), "{new} of {old}");
    let status = lab.instance().status(None).unwrap();
    let backend = &status.deployments[0].services[0].colours.blue.backends[2];
    assert_eq!((backend.health, backend.slow_start, backend.weight), ("up", Some(0.2), 2));
}

#[test]
fn an_apply_keeps_the_health_of_backends_that_stay_and_sees_no_difference() {
    let lab = attached(&shop());
    lab.instance().set_health(&[blue(1, Health::Down), blue(2, Health::Up)]).unwrap();
    let before = table(&lab, PORT, Colour::Blue);
    assert!(lab.instance().plan(&shop()).unwrap().is_empty());
    lab.instance().apply(&shop()).unwrap();
    assert_eq!(table(&lab, PORT, Colour::Blue), before);
    assert_eq!(lab.instance().configuration().unwrap(), {
        let mut shop = shop();
        shop.deployments[0].initial = Colour::Blue;
        shop
    });

    // One is added, and one gets another weight: the table is a new one, and the backend that is down is not in it.
    let mut more = shop();
    more.deployments[0].services[0].backends[0] =
        config("x", &[(1, 4), (2, 1), (3, 2), (4, 1)], &[]).deployments[0].services[0].backends[0].clone();
    lab.instance().apply(&more).unwrap();
    assert_eq!(shares(&table(&lab, PORT, Colour::Blue)).into_keys().collect::<Vec<_>>(), [2, 3, 4]);
    let expected = [(1, 4, "down"), (2, 1, "up"), (3, 2, "unknown"), (4, 1, "unknown")];
    assert_eq!(told(&lab, "shop"), expected.map(|(n, weight, text)| (n, weight, text.to_owned())));

    // What is removed and added again is another backend, of which nothing is known.
    lab.instance().apply(&shop()).unwrap();
    let mut less = shop();
    less.deployments[0].services[0].backends[0].remove(0);
    lab.instance().apply(&less).unwrap();
    lab.instance().apply(&shop()).unwrap();
    assert_eq!(told(&lab, "shop")[0], (1, 1, "unknown".to_owned()));
    assert!(shares(&table(&lab, PORT, Colour::Blue)).contains_key(&1));
}

#[test]
fn if_all_are_down_all_get_new_flows() {
    let lab = attached(&shop());
    let before = table(&lab, PORT, Colour::Blue);
    for octet in 1..=3 {
        lab.instance().set_health(&[blue(octet, Health::Down)]).unwrap();
    }
    assert_eq!(table(&lab, PORT, Colour::Blue), before);
    lab.instance().set_health(&[blue(2, Health::Up)]).unwrap();
    assert_eq!(shares(&table(&lab, PORT, Colour::Blue)).into_keys().collect::<Vec<_>>(), [2]);
}

/// Two deployments, the first with two services, that share the addresses of their backends.
const SHARED: &str = r#"
[[deployments.mail.services]]
name = "web"
vip = "203.0.113.10:80"
protocol = "tcp"
mode = "nat"
blue = ["10.0.0.1:8443", "10.0.0.2:8443"]
green = ["10.0.1.1:8443"]
[[deployments.mail.services]]
name = "other"
vip = "203.0.113.10:81"
protocol = "tcp"
mode = "nat"
blue = ["10.0.0.1:8443", "10.0.0.2:8443"]
green = ["10.0.1.1:8443"]
[[deployments.shop.services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "tcp"
mode = "nat"
blue = ["10.0.0.1:8443", "10.0.0.2:8443"]
green = ["10.0.0.1:8443", "10.0.0.2:8443"]
"#;

#[test]
fn the_same_address_elsewhere_has_a_health_of_its_own() {
    let lab = attached(&parse("test.toml".as_ref(), SHARED).unwrap());
    let others = |lab: &Lab| [80, 81].map(|port| table(lab, port, Colour::Blue));
    let (before, green) = (others(&lab), table(&lab, 443, Colour::Green));
    lab.instance().set_health(&[blue(1, Health::Down)]).unwrap();
    assert_eq!(shares(&table(&lab, 443, Colour::Blue)).into_keys().collect::<Vec<_>>(), [2]);
    assert_eq!((others(&lab), table(&lab, 443, Colour::Green)), (before.clone(), green));
    assert_eq!(told(&lab, "mail")[0].2, "unknown");

    lab.instance().set_health(&[health("mail", "other", Colour::Blue, 2, Health::Down)]).unwrap();
    assert_eq!(table(&lab, 80, Colour::Blue), before[0]);
    assert_eq!(shares(&table(&lab, 81, Colour::Blue)).into_keys().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_dry_run_says_that_a_backend_that_is_down_is_not_ready() {
    let lab = attached(&shop());
    lab.instance().set_health(&[health("shop", "web", Colour::Green, 2, Health::Down)]).unwrap();
    let said = lab.instance().dry_run("shop", &SwitchRequest::default()).unwrap();
    let found = said.target.iter().find(|target| target.backend.ip().to_string() == "10.0.1.2").unwrap();
    assert_eq!((found.ready, found.why.as_deref()), (Some(false), Some("its health check fails")));
}

#[test]
fn health_can_be_forgotten_by_hand() {
    let lab = attached(&shop());
    let before = table(&lab, PORT, Colour::Blue);
    lab.instance().set_health(&[blue(1, Health::Down), blue(2, Health::Up)]).unwrap();
    let file = lab.file("shop.toml", &lab.run(&["show"]).1);
    let (code, out, err) = lab.run(&["apply", "--forget-health", "-c", file.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (0, "nothing to change\n"), "{err}");
    assert!(err.contains("forgot the health of 2 backends"), "{err}");
    assert_eq!(table(&lab, PORT, Colour::Blue), before);
    assert!(told(&lab, "shop").iter().all(|(.., health)| health == "unknown"));
}

/// The entries of the first service's blue table.
fn slots(lab: &Lab) -> Vec<u32> {
    let services: BpfHashMap<_, ServiceKey, ServiceRow> = map(lab, "services").try_into().unwrap();
    let span = services.iter().map(Result::unwrap).next().unwrap().1.tables[Colour::Blue as usize];
    let maglev: Array<_, [u32; 2]> = map(lab, "maglev").try_into().unwrap();
    let slot = |entry: u32| maglev.get(&(entry / 2), 0).unwrap()[entry as usize % 2];
    (span.base..span.base + span.len).map(slot).collect()
}

#[test]
fn if_all_are_down_new_flows_are_refused_if_that_was_asked_for() {
    let lab = attached(&shop());
    let before = table(&lab, PORT, Colour::Blue);
    let refuse = |octet, health| BackendHealth { all_down: AllDown::Refuse, ..blue(octet, health) };
    lab.instance().set_health(&[1, 2].map(|octet| refuse(octet, Health::Down))).unwrap();
    assert_eq!(shares(&table(&lab, PORT, Colour::Blue)).into_keys().collect::<Vec<_>>(), [3]);
    lab.instance().set_health(&[refuse(3, Health::Down)]).unwrap();
    assert!(slots(&lab).iter().all(|slot| *slot == NO_BACKEND));

    // A new table says the same.
    let mut heavier = shop();
    heavier.deployments[0].services[0].backends[0][0].weight = 7;
    lab.instance().apply(&heavier).unwrap();
    assert!(slots(&lab).len() > 2 && slots(&lab).iter().all(|slot| *slot == NO_BACKEND));
    lab.instance().apply(&shop()).unwrap();
    lab.instance().set_health(&[refuse(2, Health::Up)]).unwrap();
    assert_eq!(shares(&table(&lab, PORT, Colour::Blue)).into_keys().collect::<Vec<_>>(), [2]);
    lab.instance().set_health(&[refuse(2, Health::Down)]).unwrap();
    lab.instance().forget_health().unwrap();
    assert_eq!(table(&lab, PORT, Colour::Blue), before);
}
