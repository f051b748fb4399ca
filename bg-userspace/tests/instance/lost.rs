//! Interfaces that lose the programs without bgctl: they are told until somebody attaches or detaches them.

use std::process::Command;

use bg_userspace::{
    AttachMode, AttachedMode, InterfaceState, Target, detach,
    doctor::{self, Level},
};

use crate::{
    lab::{Lab, config},
    lifecycle::{link, pins},
};

/// Attached to two interfaces, with two deployments; the first is never what is lost.
fn running(mode: AttachMode) -> Lab {
    let lab = Lab::new();
    lab.ip("link add a0 type veth peer name a1");
    lab.attach("a0", AttachMode::Tc).unwrap();
    lab.attach("v0", mode).unwrap();
    let mut both = config("mail", &[(1, 1)], &[(1, 1)]);
    let mut shop = config("shop", &[(2, 1)], &[(2, 1)]);
    shop.deployments[0].services[0].vip.set_port(8443);
    both.deployments.append(&mut shop.deployments);
    lab.instance().apply(&both).unwrap();
    lab
}

#[track_caller]
fn assert_lost(lab: &Lab, state: InterfaceState, remedy: &str) {
    let status = lab.instance().status(None).unwrap();
    let seen: Vec<_> = status.interfaces.iter().map(|it| (it.name.as_str(), it.state)).collect();
    assert_eq!(seen, [("a0", InterfaceState::Attached), ("v0", state)]);
    let (code, stdout, stderr) = lab.run(&["switch", "shop"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("shop:") && stderr.contains("v0") && stderr.contains(remedy), "{stderr}");
    assert!(!stderr.contains("a0"), "{stderr}");
    let report = doctor::examine(&lab.paths, &["a0".to_owned()], None).unwrap();
    let found = report.findings.iter().find(|finding| finding.check == "interface").unwrap();
    assert!(found.level == Level::Fail && found.message.contains("v0"), "{found:?}");
    assert!(found.remedy.as_ref().unwrap().contains(remedy), "{found:?}");
    let options = format!("--pin-root {}", lab.paths.pin_root.display());
    for words in [&["status"][..], &["status", "--json"], &["doctor", "a0"], &["doctor", "a0", "--json"]] {
        let (_, stdout, _) = lab.run(words);
        let told = stdout.lines().find(|line| line.contains(remedy));
        assert!(told.is_some_and(|line| line.contains(&options)), "{words:?}: {stdout}");
    }
}

#[track_caller]
fn assert_mended(lab: &Lab, mode: AttachedMode) {
    let (code, _, stderr) = lab.run(&["attach", "v0", "--mode", mode.name()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(lab.instance().lost_interfaces().unwrap().is_empty());
    let (_, _, stderr) = lab.run(&["switch", "shop"]);
    assert_eq!(stderr, "");
}

const MODES: [(AttachMode, AttachedMode); 2] =
    [(AttachMode::Native, AttachedMode::Native), (AttachMode::Tc, AttachedMode::Tc)];

#[test]
fn an_interface_that_was_deleted_is_gone_until_it_is_made_anew() {
    for (mode, attached) in MODES {
        let lab = running(mode);
        lab.ip("link del v0");
        assert_lost(&lab, InterfaceState::Gone, "bgctl detach v0");
        lab.ip("link add v0 type veth peer name v1");
        assert_lost(&lab, InterfaceState::Detached, &format!("bgctl attach v0 --mode {}", attached.name()));
        assert_mended(&lab, attached);
    }
}

#[test]
fn a_link_that_was_detached_by_hand_is_told() {
    let [native, tc] = MODES;
    for ((mode, attached), name) in [(native, "v0:native"), (tc, "v0:tc_ingress"), (tc, "v0:tc_egress")] {
        let lab = running(mode);
        let id = link(&lab, name).0.to_string();
        let output = Command::new("bpftool").args(["link", "detach", "id", &id]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_lost(&lab, InterfaceState::Detached, "bgctl attach v0");
        assert_mended(&lab, attached);
    }
}

/// A named namespace, which iproute2 can move interfaces to.
struct Elsewhere(String);

impl Elsewhere {
    fn new(lab: &Lab) -> Self {
        let name = format!("bgctl-test-{}-elsewhere", std::process::id());
        lab.ip(&format!("netns add {name}"));
        Self(name)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn an_interface_that_was_moved_away_is_gone_and_can_be_detached() {
    for (mode, _) in MODES {
        let lab = running(mode);
        let elsewhere = Elsewhere::new(&lab);
        lab.ip(&format!("link set v0 netns {}", elsewhere.0));
        assert_lost(&lab, InterfaceState::Gone, "bgctl detach v0");
        detach(&lab.paths, &Target::Interfaces(vec!["v0".to_owned()])).unwrap();
        assert!(lab.instance().lost_interfaces().unwrap().is_empty());
        assert_eq!(pins(&lab), ["a0:tc_egress", "a0:tc_ingress"]);
    }
}

/// A pin of the old mode must not be told as another loss.
#[test]
fn what_is_left_of_another_mode_goes_when_it_is_attached_again() {
    let lab = running(AttachMode::Native);
    lab.ip("link del v0");
    lab.ip("link add v0 type veth peer name v1");
    assert_mended(&lab, AttachedMode::Tc);
    assert_eq!(pins(&lab), ["a0:tc_egress", "a0:tc_ingress", "v0:tc_egress", "v0:tc_ingress"]);
}
