//! Services in mode `tee`: what the maps have for them, and what the commands make of it.

use std::net::{SocketAddr, TcpListener};

use bg_userspace::{
    AttachMode, BackendHealth, Colour, DrainRequest, Error, Health, Mode, Refusal,
    config::{BackendSpec, Config, Tee},
};

use crate::{
    lab::{Lab, config},
    view::View,
};

/// A deployment of one teed service, whose listeners the apply chooses.
fn teed(name: &str, vip: [u8; 4]) -> Config {
    let mut config = config(name, &[(1, 1), (2, 3)], &[(1, 1)]);
    let service = &mut config.deployments[0].services[0];
    (service.mode, service.vip) = (Mode::Tee, (vip, 443).into());
    config
}

/// A namespace with an address and a route to the backends.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.ip("address add 10.0.9.1/24 dev v0");
    lab.ip("route add 10.0.0.0/16 via 10.0.9.2");
    lab.attach("v0", AttachMode::Generic).unwrap();
    lab
}

fn listeners(lab: &Lab, deployment: &str) -> Option<[SocketAddr; 2]> {
    let config = lab.instance().configuration().unwrap();
    let found = config.deployments.iter().find(|found| found.name == deployment).unwrap();
    found.services[0].tee.listen
}

fn ports(blue: u16, green: u16) -> Option<[SocketAddr; 2]> {
    Some([blue, green].map(|port| ([10, 0, 9, 1], port).into()))
}

/// What becomes of a new connection.
fn explained(lab: &Lab) -> String {
    let (code, told, stderr) = lab.run(&[
        "explain",
        "--from",
        "198.51.100.1:4000",
        "--to",
        "203.0.113.10:443",
        "--protocol",
        "tcp",
        "--iface",
        "v0",
    ]);
    assert_eq!(code, 0, "{stderr}");
    told
}

#[test]
fn listeners_are_chosen_once_and_kept() {
    let lab = lab();
    // Another program has the first port.
    let taken = TcpListener::bind("10.0.9.1:17000").unwrap();
    let shop = teed("shop", [203, 0, 113, 10]);
    let plan = lab.instance().plan(&shop).unwrap().to_string();
    assert!(plan.contains("+ shop web: blue listens at 10.0.9.1:17001\n"), "{plan}");
    assert_eq!(lab.instance().apply(&shop).unwrap().to_string(), plan);
    assert_eq!(listeners(&lab, "shop"), ports(17_001, 17_002));
    drop(taken);
    // The controller listens there.
    let _own = ports(17_001, 17_002).unwrap().map(|address| TcpListener::bind(address).unwrap());
    assert!(lab.instance().plan(&shop).unwrap().is_empty(), "what it chose is kept");

    let mut both = shop.clone();
    both.deployments.extend(teed("mail", [203, 0, 113, 11]).deployments);
    lab.instance().apply(&both).unwrap();
    assert_eq!([listeners(&lab, "shop"), listeners(&lab, "mail")], [ports(17_001, 17_002), ports(17_000, 17_003)]);
    both.deployments.reverse();
    both.deployments[1].services[0].backends[0][0].weight = 5;
    let plan = lab.instance().apply(&both).unwrap().to_string();
    assert_eq!(plan, "~ shop web: blue 10.0.0.1:8443 weight 1 -> 5\n", "no listener changes with a backend");

    let named = Tee { listen: ports(18_000, 17_002), ..Tee::default() };
    both.deployments[1].services[0].tee = named;
    let plan = lab.instance().apply(&both).unwrap().to_string();
    let expected = "+ shop web: blue listens at 10.0.9.1:18000\n- shop web: blue listens no longer at 10.0.9.1:17001\n";
    assert_eq!(plan, expected);
    both.deployments[1].services[0].tee.listen = None;
    assert!(lab.instance().plan(&both).unwrap().is_empty());
    View::of(&lab);
}

#[test]
fn a_table_leads_to_the_listener_and_no_packet_finds_what_is_behind_it() {
    let lab = lab();
    lab.instance().apply(&teed("shop", [203, 0, 113, 10])).unwrap();
    let told = explained(&lab);
    assert!(told.contains("10.0.9.1:17000") && !told.contains("10.0.0.1"), "{told}");

    let status = lab.instance().status(None).unwrap();
    let service = &status.deployments[0].services[0];
    assert_eq!((service.mode, service.listen.unwrap().green), ("tee", "10.0.9.1:17001".parse().unwrap()));
    let backends: Vec<_> =
        service.colours.blue.backends.iter().map(|backend| (backend.address, backend.weight)).collect();
    assert_eq!(backends, [("10.0.0.1:8443".parse().unwrap(), 1), ("10.0.0.2:8443".parse().unwrap(), 3)]);

    let (code, _, stderr) = lab.run(&["drain", "shop", "--backend", "10.0.0.2:8443"]);
    assert!(code == 3 && stderr.contains("10.0.0.2:8443 is behind a listener"), "{code} {stderr}");
    let request = DrainRequest { backend: Some("10.0.9.1:17000".parse().unwrap()), ..DrainRequest::default() };
    let left = lab.instance().drain("shop", &request, |_| ()).unwrap();
    assert_eq!((left.colour, left.left), (Colour::Blue, 0));
    let refused = lab.instance().drain(
        "shop",
        &DrainRequest { backend: Some("10.0.0.1:8443".parse().unwrap()), ..request },
        |_| (),
    );
    assert!(matches!(refused, Err(Error::Refused(Refusal::BehindTee { .. }))), "{refused:?}");
}

#[test]
fn the_health_of_backends_leaves_the_table_of_the_listener_alone() {
    let lab = lab();
    // As many backends as listeners, so that the length of the table would fit.
    let mut config = teed("shop", [203, 0, 113, 10]);
    config.deployments[0].services[0].backends[0].truncate(1);
    lab.instance().apply(&config).unwrap();
    let before = View::of(&lab);
    let health = |health| BackendHealth {
        deployment: "shop".to_owned(),
        service: "web".to_owned(),
        colour: Colour::Blue,
        address: "10.0.0.1:8443".parse().unwrap(),
        health,
        share: 1.0,
        all_down: bg_userspace::config::model::AllDown::Open,
    };
    let shown =
        |lab: &Lab| lab.instance().status(None).unwrap().deployments[0].services[0].colours.blue.backends[0].health;
    for (known, name) in [(Health::Up, "up"), (Health::Down, "down")] {
        assert_eq!(lab.instance().set_health(&[health(known)]).unwrap().changed, 1);
        assert_eq!(shown(&lab), name);
        let told = explained(&lab);
        assert!(told.contains("10.0.9.1:17000") && !told.contains("10.0.0.1"), "{name}: {told}");
    }
    lab.instance().forget_health().unwrap();
    assert_eq!(View::of(&lab), before);
}

#[test]
fn a_dry_run_tells_that_nobody_listens() {
    let lab = lab();
    lab.ip("address add 10.0.1.1/32 dev lo");
    lab.ip("link set lo up");
    lab.instance().apply(&teed("shop", [203, 0, 113, 10])).unwrap();
    let _backend = TcpListener::bind("10.0.1.1:8443").unwrap();
    let target = |lab: &Lab| {
        let (_, told, _) = lab.run(&["switch", "shop", "--dry-run", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["target"].as_array().unwrap().clone()
    };
    let before = target(&lab);
    assert_eq!((&before[0]["backend"], &before[0]["ready"]), (&"10.0.1.1:8443".into(), &true.into()), "{before:?}");
    assert_eq!((&before[1]["backend"], &before[1]["ready"]), (&"10.0.9.1:17001".into(), &false.into()), "{before:?}");
    let why = before[1]["why"].as_str().unwrap();
    assert!(why.contains("Connection refused") && why.contains("the listener of `bgctl serve"), "{why}");
    let _listener = TcpListener::bind("10.0.9.1:17001").unwrap();
    assert_eq!(target(&lab)[1]["ready"], true);
}

#[test]
fn a_service_changes_its_mode_and_back() {
    let lab = lab();
    let nat = config("shop", &[(1, 1), (2, 3)], &[(1, 1)]);
    lab.instance().apply(&nat).unwrap();
    let plain = View::of(&lab);
    let teed = teed("shop", [203, 0, 113, 10]);
    let plan = lab.instance().apply(&teed).unwrap().to_string();
    for line in [
        "~ shop web: mode nat -> tee",
        "+ shop web: blue 10.0.0.2:8443 weight 3",
        "- shop web: blue 10.0.0.2:8443",
        "+ shop web: green listens at 10.0.9.1:17001",
    ] {
        assert!(plan.lines().any(|told| told == line), "{line} in\n{plan}");
    }
    assert!(lab.instance().plan(&teed).unwrap().is_empty());
    let plan = lab.instance().apply(&nat).unwrap().to_string();
    assert!(plan.contains("- shop web: blue listens no longer at 10.0.9.1:17000\n"), "{plan}");
    assert_eq!(View::of(&lab), plain);
}

#[test]
fn a_killed_apply_is_completed_with_the_same_listeners() {
    let lab = lab();
    let nat = config("shop", &[(1, 1), (2, 3)], &[(1, 1)]);
    let teed = teed("shop", [203, 0, 113, 10]);
    let [nat_file, teed_file] =
        [("nat.toml", &nat), ("teed.toml", &teed)].map(|(name, config)| lab.file(name, &config.to_toml()));
    let whole = lab.time(&["apply", "-c", teed_file.to_str().unwrap()]);
    let rounds = if std::env::var_os("BG_TEST_FULL").is_some() { 200 } else { 12 };
    for round in 0..rounds {
        lab.instance().apply(&nat).unwrap();
        lab.kill_after(whole * round / rounds, &["apply", "-c", teed_file.to_str().unwrap()]);
        lab.instance().apply(&teed).unwrap();
        assert_eq!(listeners(&lab, "shop"), ports(17_000, 17_001), "{round}");
        lab.kill_after(whole * round / rounds, &["apply", "-c", nat_file.to_str().unwrap()]);
        lab.instance().apply(&teed).unwrap();
        assert!(lab.instance().plan(&teed).unwrap().is_empty());
        View::of(&lab);
    }
}

#[test]
fn an_embedding_program_cannot_apply_what_cannot_be_teed() {
    let lab = lab();
    let refused = |change: fn(&mut bg_userspace::config::Service)| {
        let mut config = teed("shop", [203, 0, 113, 10]);
        change(&mut config.deployments[0].services[0]);
        lab.instance().apply(&config).unwrap_err().to_string()
    };
    assert!(refused(|service| service.protocol = bg_userspace::Protocol::Udp).contains("mode \"tee\" is for TCP"));
    assert!(
        refused(|service| service.tee.listen = ports(443, 443)).contains("is the address of two services, or twice")
    );
    let six = |service: &mut bg_userspace::config::Service| {
        service.tee.listen = Some(["[2001:db8::1]:1", "[2001:db8::1]:2"].map(|address| address.parse().unwrap()));
    };
    assert!(refused(six).contains("of different families"));
    let own = |service: &mut bg_userspace::config::Service| {
        service.tee.listen = ports(1, 2);
        service.backends[0].push(BackendSpec { address: ([10, 0, 9, 1], 2).into(), weight: 1 });
    };
    assert!(refused(own).contains("is a VIP, preview address or listener"));
}
