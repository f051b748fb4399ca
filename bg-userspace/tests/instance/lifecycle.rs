//! Pins and links through their life: attached, updated in place, refused, left half-made, taken off.

use crate::lab::{Lab, config};
use aya::{
    maps::{Array, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use bg_common::Meta;
use bg_userspace::{
    AttachMode, AttachOptions, AttachedMode, Error, ErrorClass, Instance, Refusal, Target, attach, config::Config,
    detach, detach_within,
};
use std::os::fd::{AsFd as _, AsRawFd as _};

/// Ids of a pinned link and of the program that it runs.
pub(crate) fn link(lab: &Lab, name: &str) -> (u32, u32) {
    let link: FdLink = PinnedLink::from_pin(lab.paths.links().join(name)).expect("a pinned link").into();
    let info = link.info().unwrap();
    (info.id(), info.program_id())
}

pub(crate) fn pins(lab: &Lab) -> Vec<String> {
    let names = std::fs::read_dir(lab.paths.links()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_mode_puts_its_programs_where_they_belong() {
    let lab = Lab::new();
    for (mode, expected, xdp) in [
        (AttachMode::Auto, AttachedMode::Tc, None),
        (AttachMode::Native, AttachedMode::Native, Some("v0:native")),
        (AttachMode::Tc, AttachedMode::Tc, None),
        (AttachMode::Generic, AttachedMode::Generic, Some("v0:generic")),
    ] {
        let attached = lab.attach("v0", mode).unwrap();
        assert_eq!(attached[0].mode, expected);
        // tc does what XDP leaves to it.
        let expected_pins: Vec<_> = xdp.into_iter().chain(["v0:tc_egress", "v0:tc_ingress"]).collect();
        assert_eq!(pins(&lab), expected_pins);
        let status = lab.instance().status(None).unwrap();
        assert_eq!((status.interfaces[0].name.as_str(), status.interfaces[0].mode), ("v0", expected));
    }
}

#[test]
fn attaching_again_gives_the_same_links_the_new_program() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Native).unwrap();
    lab.attach("v1", AttachMode::Tc).unwrap();
    let names = ["v0:native", "v0:tc_egress", "v1:tc_ingress", "v1:tc_egress"];
    let before = names.map(|name| link(&lab, name));
    let attached = lab.attach("v0", AttachMode::Auto).unwrap();
    assert!(attached[0].updated && attached[0].mode == AttachedMode::Native);
    for (name, (id, program)) in names.into_iter().zip(before) {
        let now = link(&lab, name);
        assert_eq!(now.0, id, "{name} was never taken off");
        assert_ne!(now.1, program, "{name} runs the new program");
    }
}

#[test]
fn native_and_generic_do_not_stand_side_by_side() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Native).unwrap();
    let error = lab.attach("v0", AttachMode::Generic).unwrap_err();
    assert!(matches!(error, Error::ModeChange { .. }), "{error}");
    assert_eq!(
        lab.instance().status(None).unwrap().interfaces[0].mode,
        AttachedMode::Native,
        "nothing has been changed"
    );
}

#[test]
fn another_xdp_program_is_left_where_it_is() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Native).unwrap();
    let mut other = lab.paths.clone();
    other.pin_root = lab.paths.pin_root.with_file_name("bgctl-test-none");
    let options = AttachOptions { mode: AttachMode::Native, ..AttachOptions::default() };
    let error = attach(&other, &["v0".to_owned()], &options).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::OtherInstance { .. })), "{error}");
    // Behind another instance's XDP program there is no place, however much one insists.
    let error = attach(&other, &["v0".to_owned()], &AttachOptions { force: true, ..options }).unwrap_err();
    assert!(matches!(&error, Error::OtherXdpProgram { program, .. } if program.name == "ingress"), "{error}");
    let detach = format!("bpftool link detach id {}", link(&lab, "v0:native").0);
    assert!(error.to_string().contains("v0") && error.to_string().contains(&detach), "{error}");
    assert!(!other.pin_root.exists(), "nothing has been made");
}

#[test]
fn what_is_no_ethernet_interface_is_refused() {
    let lab = Lab::new();
    let error = lab.attach("nothing", AttachMode::Auto).unwrap_err();
    assert!(error.class() == ErrorClass::Usage && error.to_string().contains("v0"), "{error}");
    lab.ip("tuntap add dev t0 mode tun");
    let error = lab.attach("t0", AttachMode::Auto).unwrap_err();
    assert!(matches!(error, Error::NotEthernet { arphrd: 65534, .. }), "{error}");
    assert!(!lab.paths.pin_root.exists(), "nothing has been made");
}

#[test]
fn the_next_program_is_one_that_can_be_called() {
    let lab = Lab::new();
    let attach = |next: std::path::PathBuf| {
        let options = AttachOptions { mode: AttachMode::Native, next: Some(next), ..AttachOptions::default() };
        attach(&lab.paths, &["v0".to_owned()], &options)
    };
    let error = attach("/sys/fs/bpf/nothing".into()).unwrap_err();
    assert!(matches!(error, Error::Next { .. }) && error.class() == ErrorClass::Usage, "{error}");
    lab.attach("v0", AttachMode::Native).unwrap();
    // Any XDP program will do; this one is at hand.
    attach(lab.paths.program("read_clock")).unwrap();
    let error = attach(lab.paths.program("tc_egress")).unwrap_err();
    assert!(matches!(error, Error::Next { .. }), "{error}");
}

#[test]
fn a_failed_first_attach_leaves_nothing() {
    let lab = Lab::new();
    lab.ip("link add v2 type bridge");
    let error = lab.attach("v2", AttachMode::Native).unwrap_err();
    assert!(matches!(error, Error::Attach { mode: "native", .. }), "{error}");
    assert!(error.to_string().contains("--mode tc"), "{error}");
    assert!(!lab.paths.pin_root.exists());
}

#[test]
fn an_interface_with_a_dot_in_its_name_can_be_attached() {
    let lab = Lab::new();
    lab.ip("link add v2.100 type veth peer name v3");
    lab.attach("v2.100", AttachMode::Tc).unwrap();
    assert_eq!(lab.instance().status(None).unwrap().interfaces[0].name, "v2.100");
    detach(&lab.paths, &Target::Interfaces(vec!["v2.100".to_owned()])).unwrap();
    assert_eq!(pins(&lab), [""; 0]);
}

#[test]
fn pins_of_another_abi_version_are_refused_and_can_be_removed() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let map = MapData::from_pin(lab.paths.map("meta")).and_then(Map::from_map_data).unwrap();
    let mut meta: Array<_, Meta> = map.try_into().unwrap();
    let there = meta.get(&0, 0).unwrap();
    meta.set(0, Meta { abi_version: 99, ..there }, 0).unwrap();
    let before = link(&lab, "v0:tc_ingress");
    for error in [lab.attach("v0", AttachMode::Auto).unwrap_err(), Instance::open(&lab.paths).unwrap_err()] {
        assert!(matches!(error, Error::OtherAbi { got: 99, .. }), "{error}");
        assert!(error.to_string().contains("bgctl detach --all"), "{error}");
    }
    assert_eq!(link(&lab, "v0:tc_ingress"), before, "nothing has been changed");
    detach(&lab.paths, &Target::All).unwrap();
    assert!(!lab.paths.pin_root.exists());
}

#[test]
fn a_half_made_instance_is_made_anew() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    detach(&lab.paths, &Target::Interfaces(vec!["v0".to_owned()])).unwrap();
    // As a killed attach or detach leaves it: some maps, no meta.
    for map in ["meta", "services", "flows6"] {
        std::fs::remove_file(lab.paths.map(map)).unwrap();
    }
    assert!(matches!(Instance::open(&lab.paths), Err(Error::NoInstance { .. })));
    lab.attach("v0", AttachMode::Tc).unwrap();
    assert_eq!(lab.instance().status(None).unwrap().interfaces.len(), 1);
}

#[test]
fn an_instance_keeps_its_size() {
    let lab = Lab::new();
    let attach = |flows, services, backends| {
        let options = AttachOptions { flows, services, backends, mode: AttachMode::Tc, ..AttachOptions::default() };
        attach(&lab.paths, &["v0".to_owned()], &options)
    };
    let refused = |what: &str, result: Result<_, Error>| match result {
        Err(Error::OtherSize { what: told, expected, got }) if told == what => (expected, got),
        other => panic!("{what}: {other:?}"),
    };
    attach(Some(1000), Some(3), Some(40)).unwrap();
    assert_eq!(refused("flows", attach(Some(2000), None, None)), (2000, 1024));
    assert_eq!(refused("services", attach(None, Some(4), None)), (4, 3));
    assert_eq!(refused("backends", attach(None, None, Some(39))), (39, 40));
    attach(Some(1000), Some(3), Some(40)).unwrap();
    // The room for flows is rounded up, and what is asked for compared with what that gives.
    attach(Some(1024), None, None).unwrap();
    attach(None, None, None).unwrap();
}

#[test]
fn a_configuration_that_has_no_room_is_refused_with_the_option_that_makes_some() {
    let lab = Lab::new();
    let options =
        AttachOptions { services: Some(2), backends: Some(5), mode: AttachMode::Tc, ..AttachOptions::default() };
    attach(&lab.paths, &["v0".to_owned()], &options).unwrap();
    let instance = lab.instance();
    let refused = |config: &Config| {
        let error = instance.apply(config).unwrap_err();
        assert!(matches!(error, Error::NoRoom { .. }), "{error}");
        error.to_string()
    };
    let with = |backends: u8| config("shop", &(1..=backends).map(|host| (host, 1)).collect::<Vec<_>>(), &[(1, 1)]);
    instance.apply(&with(4)).unwrap();
    assert!(refused(&with(5)).contains("a larger --backends"));
    let mut three = with(1);
    for port in [444, 445] {
        let mut service = three.deployments[0].services[0].clone();
        (service.name, service.vip) = (port.to_string(), ([203, 0, 113, 10], port).into());
        three.deployments[0].services.push(service);
    }
    assert!(refused(&three).contains("a larger --services"));
    // All rows are used, the last ones, too.
    three.deployments[0].services.pop();
    instance.apply(&three).unwrap();
    instance.apply(&with(4)).unwrap();
    assert!(instance.plan(&with(4)).unwrap().is_empty());
}

#[test]
fn an_instance_of_defaults_takes_less_than_a_hundred_megabytes() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let taken = |map: std::path::PathBuf| {
        let map = aya::maps::MapData::from_pin(&map).unwrap();
        let fd = map.fd().as_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap().trim().parse::<u64>().unwrap()
    };
    let maps = std::fs::read_dir(lab.paths.maps()).unwrap().map(|entry| entry.unwrap().path());
    let bytes: u64 = maps.map(taken).sum();
    assert!(bytes < 100_000_000, "{bytes}");
    // What is told beforehand is what the kernel counts.
    let (_, told, _) = lab.run(&["doctor", "v0"]);
    let told = told.lines().find_map(|line| line.split_once("the maps take ")).unwrap().1.to_owned();
    let mib: f64 = told.split(' ').next().unwrap().parse().unwrap();
    let counted = bytes as f64 / f64::from(1 << 20);
    assert!((mib - counted).abs() < 0.02 * counted, "told {told}, counted {counted}");
    println!("{told}; the kernel counts {counted:.2} MiB");
}

#[test]
fn two_at_once_are_told_of_each_other() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let lock = std::fs::File::open(&lab.paths.pin_root).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let patience = std::time::Duration::from_millis(200);
    let error = detach_within(&lab.paths, &Target::All, patience).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let options = AttachOptions { mode: AttachMode::Tc, wait: Some(patience), ..AttachOptions::default() };
    let error = attach(&lab.paths, &["v0".to_owned()], &options).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(lock);
    detach(&lab.paths, &Target::All).unwrap();
}

#[test]
fn a_killed_attach_or_detach_is_completed_by_a_rerun() {
    let lab = Lab::new();
    const ATTACH: [&str; 6] = ["attach", "v0", "--mode", "native", "--flows", "1000"];
    const DETACH: [&str; 2] = ["detach", "--all"];
    let options = AttachOptions { mode: AttachMode::Native, flows: Some(1000), ..AttachOptions::default() };
    let [attaching, detaching] = [&ATTACH[..], &DETACH].map(|words| lab.time(words));
    for round in 0..12 {
        lab.kill_after(attaching * round / 12, &ATTACH);
        attach(&lab.paths, &["v0".to_owned()], &options).unwrap();
        assert_eq!(lab.instance().status(None).unwrap().interfaces.len(), 1);
        lab.kill_after(detaching * round / 12, &DETACH);
        if round % 2 == 0 {
            detach(&lab.paths, &Target::All).unwrap();
            assert!(!lab.paths.pin_root.exists());
        }
    }
}

#[test]
fn a_file_names_the_interfaces_and_what_is_missing_keeps_nobody_else_waiting() {
    let lab = Lab::new();
    let file = lab.file("interfaces", "# clients\nv0 native\n# backends\nw* # not there yet\n");
    let attach = |more: &[&str]| lab.bgctl().arg("attach").arg("--from").arg(&file).args(more).output().unwrap();
    let names = |lab: &Lab| {
        let status = lab.instance().status(None).unwrap();
        status.interfaces.into_iter().map(|interface| (interface.name, interface.mode)).collect::<Vec<_>>()
    };
    let native = |name: &str| (name.to_owned(), AttachedMode::Native);

    // What is there is attached, and what is not is told.
    let output = attach(&["--wait", "100ms"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{message}");
    assert!(message.contains("no interface matches w*"), "{message}");
    assert_eq!(names(&lab), [native("v0")]);
    assert_eq!(attach(&[]).status.code(), Some(1), "nobody has asked to wait");

    // It is waited for.
    let mut waiting = lab.bgctl();
    let mut waiting = waiting.args(["attach", "--mode", "tc", "--wait", "60s", "--from"]).arg(&file).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    lab.ip("link add w0 type veth peer name x0");
    assert!(waiting.wait().unwrap().success());
    assert_eq!(names(&lab), [native("v0"), ("w0".to_owned(), AttachedMode::Tc)], "--mode is for lines without one");

    // Nothing that matches leaves nothing behind.
    detach(&lab.paths, &Target::All).unwrap();
    std::fs::write(&file, "no-such-thing\n").unwrap();
    let output = attach(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing to attach to"), "{output:?}");
    assert!(!lab.paths.pin_root.exists());
}
