//! Which interfaces a call of attach means, and that it attaches to all of them or to none.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, process::Command};

use bg_userspace::{AttachMode, AttachOptions, Error, Target, attach, detach};

use crate::{
    lab::Lab,
    lifecycle::{link, pins},
};

fn attach_all(lab: &Lab, interfaces: &[&str], mode: AttachMode) -> Result<Vec<String>, Error> {
    let names: Vec<_> = interfaces.iter().map(|name| (*name).to_owned()).collect();
    let options = AttachOptions { mode, ..AttachOptions::default() };
    Ok(attach(&lab.paths, &names, &options)?.into_iter().map(|attached| attached.name).collect())
}

#[test]
fn if_one_interface_refuses_none_is_attached() {
    let lab = Lab::new();
    // A bridge has no native XDP.
    lab.ip("link add b0 type bridge");
    let error = attach_all(&lab, &["v0", "v1", "b0"], AttachMode::Native).unwrap_err();
    assert!(matches!(&error, Error::Undone { interfaces, .. } if interfaces == &["v0", "v1"]), "{error}");
    assert!(!lab.paths.pin_root.exists());

    // What was attached before stays as it was.
    lab.attach("v0", AttachMode::Tc).unwrap();
    let before: Vec<_> = pins(&lab).iter().map(|name| (name.clone(), link(&lab, name).0)).collect();
    attach_all(&lab, &["v1", "v0", "b0"], AttachMode::Native).unwrap_err();
    let after: Vec<_> = pins(&lab).iter().map(|name| (name.clone(), link(&lab, name).0)).collect();
    assert_eq!(after, before);
}

#[test]
fn if_one_interface_of_a_file_refuses_its_mode_none_is_attached() {
    let lab = Lab::new();
    lab.ip("link add b0 type bridge");
    let file = lab.file("interfaces", "v0 tc\nb0 native\nv1 generic\n").display().to_string();
    let (code, _, stderr) = lab.run(&["attach", "--from", &file]);
    assert!(code == 1 && stderr.contains("b0"), "{code} {stderr}");
    assert!(!lab.paths.pin_root.exists());

    lab.file("interfaces", "v0 tc\nb0 tc\nv1 generic\n");
    let (code, stdout, stderr) = lab.run(&["attach", "--from", &file]);
    assert_eq!((code, stdout.lines().count()), (0, 3), "{stderr}");
}

#[test]
fn an_interface_that_is_named_twice_is_attached_once() {
    for (mode, pins_each) in [(AttachMode::Tc, 2), (AttachMode::Native, 3)] {
        let lab = Lab::new();
        lab.ip("link property add dev v0 altname v0-by-another-and-longer-name");
        let attached = attach_all(&lab, &["v1", "v0", "v0", "v0-by-another-and-longer-name"], mode).unwrap();
        assert_eq!(attached, ["v1", "v0"]);
        assert_eq!(pins(&lab).len(), 2 * pins_each);
    }
}

#[test]
fn an_interface_answers_to_its_alternative_names() {
    let lab = Lab::new();
    lab.ip("link property add dev v0 altname enp0s31f6-and-more");
    assert_eq!(attach_all(&lab, &["v1", "enp0s31f6-and-more"], AttachMode::Tc).unwrap(), ["v1", "v0"]);
    let detached = detach(&lab.paths, &Target::Interfaces(vec!["enp0s31f6-and-more".to_owned()])).unwrap();
    assert_eq!(detached.interfaces, ["v0"]);
    assert_eq!(pins(&lab), ["v1:tc_egress", "v1:tc_ingress"]);
}

#[test]
fn an_interface_with_a_name_that_is_not_utf_8_is_passed_over() {
    let lab = Lab::new();
    lab.attach("v1", AttachMode::Tc).unwrap();
    let mut ip = Command::new("ip");
    ip.args(["link", "add", "dev"]).arg(OsStr::from_bytes(b"caf\xe9")).args(["type", "veth", "peer", "name", "p0"]);
    assert!(ip.status().unwrap().success());
    for words in [&["status"][..], &["attach", "v0"], &["doctor", "v0"], &["detach", "v1"], &["detach", "--all"]] {
        let (code, stdout, stderr) = lab.run(words);
        let is_fit = code == 0 || (words[0] == "doctor" && stdout.contains("v0"));
        assert!(is_fit, "{words:?}: {code} {stderr}");
    }
}

#[test]
fn attaches_at_once_wait_for_each_other() {
    let lab = Lab::new();
    lab.ip("link add a0 type veth peer name a1");
    let start = |name| lab.bgctl().args(["attach", name, "--mode", "tc"]).spawn().unwrap();
    let attaching = ["v0", "v1", "a0", "a1"].map(start);
    for mut attach in attaching {
        assert!(attach.wait().unwrap().success());
    }
    assert_eq!(lab.instance().status(None).unwrap().interfaces.len(), 4);
}

#[test]
fn want_of_memory_is_called_so() {
    let lab = Lab::new();
    let options = AttachOptions { flows: Some(u32::MAX), mode: AttachMode::Tc, ..AttachOptions::default() };
    let error = attach(&lab.paths, &["v0".to_owned()], &options).unwrap_err();
    assert!(matches!(error, Error::NoMemory { .. }) && error.to_string().contains("--flows"), "{error}");
    assert!(!lab.paths.pin_root.exists());
}
