//! Neighbours that the kernel keeps resolved on behalf of an instance.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use bg_userspace::{AttachMode, SwitchRequest};

use crate::lab::{Lab, config};

/// Addresses of backends that the kernel keeps resolved.
fn kept() -> Vec<String> {
    let output = Command::new("ip").args(["neighbour", "show"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let managed = text.lines().filter(|line| line.contains("managed"));
    let mut addresses: Vec<_> = managed.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    addresses.sort();
    addresses
}

/// Waits until these are kept: the kernel tells of a carrier that is lost or found by work of its own, which comes later.
#[track_caller]
fn until_kept(expected: &[&str]) {
    let end = Instant::now() + Duration::from_secs(5);
    while kept() != expected && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(kept(), expected);
}

/// At boot routes may come after the apply.
#[test]
fn neighbours_of_both_colours_are_kept_by_an_apply_or_else_by_the_next_switch() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let mut both = config("mail", &[(9, 1)], &[(9, 1)]);
    let mut shop = config("shop", &[(1, 1), (2, 1)], &[(3, 1)]);
    shop.deployments[0].services[0].vip.set_port(8443);
    both.deployments.append(&mut shop.deployments);
    lab.instance().apply(&both).unwrap();
    assert_eq!(kept(), [""; 0]);

    lab.ip("address add 10.0.0.254/16 dev v0");
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(kept(), ["10.0.0.1", "10.0.0.2", "10.0.1.3"]);
    lab.instance().apply(&both).unwrap();
    assert_eq!(kept(), ["10.0.0.1", "10.0.0.2", "10.0.0.9", "10.0.1.3", "10.0.1.9"]);

    // A carrier that was lost takes them along.
    lab.ip("link set v1 down");
    until_kept(&[]);
    lab.ip("link set v1 up");
    let has_carrier = || {
        let output = Command::new("ip").args(["-brief", "link", "show", "v0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains(" UP ")
    };
    let end = Instant::now() + Duration::from_secs(5);
    while !has_carrier() {
        assert!(Instant::now() < end, "no carrier");
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(kept(), ["10.0.0.1", "10.0.0.2", "10.0.1.3"]);
}
