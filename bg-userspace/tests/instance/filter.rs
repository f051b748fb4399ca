//! The filter before the services: a bit that is set says that no address in use has its hash.

use std::collections::HashSet;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use bg_common::{Be16, FILTER_BITS, ServiceKey, ServiceRow};
use bg_ebpf::choice::filter_hash;
use bg_userspace::{AttachMode, Protocol, config::Config};

use crate::lab::{Lab, config};

fn map<T: TryFrom<Map, Error = aya::maps::MapError>>(lab: &Lab, name: &str) -> T {
    MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).and_then(T::try_from).unwrap()
}

/// Hashes whose bit is clear.
fn let_through(lab: &Lab) -> HashSet<u32> {
    let filter: Array<_, u64> = map(lab, "vip_filter");
    let words: Vec<u64> = filter.iter().map(Result::unwrap).collect();
    assert_eq!(words.len(), FILTER_BITS as usize / 64);
    (0..FILTER_BITS).filter(|hash| words[*hash as usize / 64] >> (hash % 64) & 1 == 0).collect()
}

fn published(lab: &Lab) -> HashSet<u32> {
    let services: BpfHashMap<_, ServiceKey, ServiceRow> = map(lab, "services");
    services.keys().map(|key| filter_hash(&key.unwrap())).collect()
}

/// Services on these ports, each with a preview address 10,000 ports above.
fn shop(ports: std::ops::Range<u16>) -> Config {
    let mut config = config("shop", &[(1, 1)], &[(1, 1)]);
    let service = config.deployments[0].services.remove(0);
    config.deployments[0].services = ports
        .map(|port| {
            let mut service = service.clone();
            (service.name, service.protocol) = (format!("s{port}"), Protocol::Udp);
            service.vip.set_port(port);
            service.preview = Some(([203, 0, 113, 10], port + 10_000).into());
            service
        })
        .collect();
    config
}

fn hashes(ports: std::ops::Range<u16>) -> HashSet<u32> {
    let key = |port| ServiceKey {
        addr: std::net::IpAddr::from([203, 0, 113, 10]).into(),
        port: Be16::new(port),
        protocol: Protocol::Udp as u8,
        family: 4,
    };
    ports.flat_map(|port| [port, port + 10_000]).map(|port| filter_hash(&key(port))).collect()
}

#[test]
fn what_is_published_is_let_through_and_nothing_else() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    assert_eq!(let_through(&lab).len(), FILTER_BITS as usize, "nothing is known yet");
    for ports in [1..3, 1..40, 30..35, 50..51] {
        lab.instance().apply(&shop(ports.clone())).unwrap();
        assert_eq!(let_through(&lab), hashes(ports.clone()), "{ports:?}");
        lab.attach("v0", AttachMode::Auto).unwrap();
        assert_eq!(let_through(&lab), hashes(ports), "after another attach");
    }
    lab.instance().apply(&Config::default()).unwrap();
    assert!(let_through(&lab).is_empty());
}

#[test]
fn a_killed_apply_leaves_no_address_in_use_behind_the_filter() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&shop(1..200)).unwrap();
    let toml = |ports: std::ops::Range<u16>| {
        let mut text = "[deployments.shop]\ninitial = \"blue\"\n".to_owned();
        for port in ports {
            text += &format!(
                "[[deployments.shop.services]]\nname = \"s{port}\"\nvip = \"203.0.113.10:{port}\"\nprotocol = \"udp\"\n\
                 preview = \"203.0.113.10:{}\"\nmode = \"nat\"\nblue = [\"10.0.0.1:8443\"]\ngreen = [\"10.0.1.1:8443\"]\n",
                port + 10_000
            );
        }
        text
    };
    let ranges = [100..300_u16, 1..200];
    let files = [lab.file("1.toml", &toml(ranges[0].clone())), lab.file("2.toml", &toml(ranges[1].clone()))];
    let mut unfinished = 0;
    for round in 0..16_usize {
        let mut child = lab
            .bgctl()
            .args(["apply", "-c"])
            .arg(&files[round % 2])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round as u64 * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        let let_through = let_through(&lab);
        assert!(published(&lab).is_subset(&let_through));
        unfinished += usize::from(let_through != hashes(ranges[round % 2].clone()));
        // Also if there was nothing else left to do.
        lab.instance().apply(&shop(ranges[round % 2].clone())).unwrap();
        assert_eq!(self::let_through(&lab), hashes(ranges[round % 2].clone()));
    }
    assert!(unfinished > 0, "no round was killed in time to leave something");
}
