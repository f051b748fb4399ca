//! An instance and its state directory through the instance's lives: which colour is live after a reboot, and who is told
//! when the two do not belong together.

use std::{fs, path::Path};

use bg_userspace::{
    AttachMode, Colour, Error, ErrorClass, Instance, Paths, Refusal, SwitchRequest, Target, detach,
    history::{Action, History, HistoryError, LastLive},
};

use crate::{
    lab::Lab,
    state::{live, running, two},
};

fn switch(lab: &Lab, to: Colour) {
    let request = SwitchRequest { to: Some(to), ..SwitchRequest::default() };
    lab.instance().switch("shop", &request).unwrap();
}

/// Takes the pins, as a reboot does, and puts new ones there.
fn reboot(lab: &Lab) -> Vec<String> {
    detach(&lab.paths, &Target::All).unwrap();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let instance = lab.instance();
    instance.apply(&two()).unwrap();
    instance.warnings()
}

fn file(paths: &Paths) -> std::path::PathBuf {
    paths.state_dir.join(LastLive::FILE)
}

/// The file as a state directory of another time has it: late-mounted, or restored from a backup.
fn ahead(paths: &Paths) {
    let content = serde_json::json!({ "version": 1, "instance": { "identity": "07", "pin_root": paths.pin_root },
        "deployments": { "mail": { "generation": 1, "live": "blue" }, "shop": { "generation": 9, "live": "blue" } } });
    fs::write(file(paths), content.to_string()).unwrap();
}

#[test]
fn after_a_reboot_each_deployment_goes_on_where_it_was() {
    let lab = running();
    switch(&lab, Colour::Green);
    assert_eq!(reboot(&lab), [""; 0]);
    assert_eq!(live(&lab), ("green", 2));
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(reboot(&lab), [""; 0]);
    assert_eq!(live(&lab), ("blue", 3));
    let error = lab.instance().rollback("shop", &SwitchRequest::default()).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::RolledBackAlready { .. })), "{error}");
}

#[test]
fn what_another_life_has_left_does_not_win_over_what_runs() {
    let lab = running();
    switch(&lab, Colour::Green);
    ahead(&lab.paths);
    let told = lab.instance().check_state().join("\n");
    assert!(told.contains("\"shop\" is blue at generation 9 and not green at generation 2"), "{told}");
    assert!(!told.contains("mail"), "{told}");
    let instance = lab.instance();
    instance.apply(&two()).unwrap();
    assert!(instance.warnings().join("\n").contains("\"shop\" is blue at generation 9"));
    assert_eq!(lab.instance().check_state(), [""; 0]);
    assert_eq!((reboot(&lab).len(), live(&lab)), (0, ("green", 2)));

    // The same where the next thing that happens is a switch.
    ahead(&lab.paths);
    switch(&lab, Colour::Blue);
    switch(&lab, Colour::Green);
    assert_eq!((reboot(&lab).len(), live(&lab)), (0, ("green", 4)));
}

#[test]
fn a_backup_of_this_life_does_not_win_either() {
    let lab = running();
    let backup = fs::read(file(&lab.paths)).unwrap();
    switch(&lab, Colour::Green);
    fs::write(file(&lab.paths), backup).unwrap();
    lab.instance().apply(&two()).unwrap();
    assert_eq!((reboot(&lab).len(), live(&lab)), (0, ("green", 2)));
}

#[test]
fn a_flip_by_somebody_else_is_remembered_by_a_detach() {
    let lab = running();
    let map = aya::maps::MapData::from_pin(lab.paths.map("live")).and_then(aya::maps::Map::from_map_data).unwrap();
    let mut words: aya::maps::Array<_, bg_common::LiveWord> = map.try_into().unwrap();
    words.set(1, bg_common::LiveWord::new(2, bg_common::LiveFlags::NONE, 0, 10_000), 0).unwrap();
    assert_eq!((reboot(&lab).len(), live(&lab)), (0, ("green", 2)));
}

#[test]
fn a_switch_with_another_state_directory_is_recorded_where_the_instance_keeps_its_state() {
    let lab = running();
    let elsewhere = Paths { state_dir: lab.paths.state_dir.with_file_name("elsewhere"), ..lab.paths.clone() };
    let instance = Instance::open(&elsewhere).unwrap();
    let told = instance.check_state().join("\n");
    let named = |told: &str, paths: &Paths| told.contains(paths.state_dir.to_str().unwrap());
    assert!(named(&told, &lab.paths) && named(&told, &elsewhere), "{told}");
    instance.switch("shop", &SwitchRequest::default()).unwrap();
    let told = instance.warnings().join("\n");
    assert!(named(&told, &lab.paths) && named(&told, &elsewhere), "{told}");
    assert!(!elsewhere.state_dir.exists());
    assert_eq!((reboot(&lab).len(), live(&lab)), (0, ("green", 2)));

    // An apply moves it there, and says so.
    let instance = Instance::open(&elsewhere).unwrap();
    instance.apply(&two()).unwrap();
    assert!(instance.warnings().join("\n").contains("from now on"));
    assert_eq!(fs::read_link(lab.paths.pin_root.join("state")).unwrap(), elsewhere.state_dir);
    assert_eq!(Instance::open(&elsewhere).unwrap().check_state(), [""; 0]);
    assert!(!lab.instance().check_state().is_empty());
}

#[test]
fn a_path_that_leads_to_the_same_directory_is_no_other_one() {
    let lab = running();
    let link = lab.paths.state_dir.with_file_name("link");
    std::os::unix::fs::symlink(&lab.paths.state_dir, &link).unwrap();
    let instance = Instance::open(&Paths { state_dir: link, ..lab.paths.clone() }).unwrap();
    assert_eq!(instance.check_state(), [""; 0]);
    instance.switch("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(instance.warnings(), [""; 0]);
}

#[test]
fn two_instances_do_not_share_a_state_directory() {
    let lab = running();
    let mut other = lab.beside();
    let own = std::mem::replace(&mut other.paths.state_dir, lab.paths.state_dir.clone());
    other.ip("link add w0 type veth peer name w1");
    other.attach("w0", AttachMode::Tc).unwrap();
    let mut config = two();
    config.deployments[1].initial = Colour::Green;
    let before = fs::read(file(&lab.paths)).unwrap();
    let error = other.instance().apply(&config).unwrap_err();
    assert!(matches!(error, Error::History(HistoryError::Shared { .. })), "{error}");
    assert_eq!(error.class(), ErrorClass::Refused);
    assert!(other.instance().status(None).unwrap().deployments.is_empty(), "nothing has been changed");
    assert_eq!(fs::read(file(&lab.paths)).unwrap(), before);
    assert!(other.instance().check_state().join("\n").contains(lab.paths.pin_root.to_str().unwrap()));

    // The other one's own directory will do, and so does this one when its instance is gone.
    let shared = std::mem::replace(&mut other.paths.state_dir, own);
    other.instance().apply(&config).unwrap();
    assert_eq!(live(&other), ("green", 1));
    detach(&lab.paths, &Target::All).unwrap();
    other.paths.state_dir = shared;
    other.instance().apply(&config).unwrap();
    assert_eq!(live(&other), ("green", 1));
}

#[test]
fn a_file_that_cannot_be_understood_keeps_no_deployment_from_coming_up() {
    let lab = running();
    switch(&lab, Colour::Green);
    let whole = fs::read_to_string(file(&lab.paths)).unwrap();
    let damaged = |path: &Path| fs::read_to_string(path.join(LastLive::DAMAGED)).unwrap();
    for content in [whole.replace("green", "grey"), whole[..whole.len() / 2].to_owned(), "[]".to_owned()] {
        detach(&lab.paths, &Target::All).unwrap();
        fs::write(file(&lab.paths), &content).unwrap();
        lab.attach("v0", AttachMode::Tc).unwrap();
        let instance = lab.instance();
        instance.apply(&two()).unwrap();
        assert_eq!(live(&lab), ("green", 2), "the history knows it");
        let told = instance.warnings().join("\n");
        assert_eq!(told.matches("cannot be understood").count(), 1, "told once: {told}");
        assert!(told.contains("according to the history, green of \"shop\""), "{told}");
        assert_eq!(damaged(&lab.paths.state_dir), content);
        assert_eq!(lab.instance().check_state(), [""; 0]);
    }
    // Without a history there is nothing but `initial`.
    detach(&lab.paths, &Target::All).unwrap();
    fs::write(file(&lab.paths), "").unwrap();
    fs::remove_file(lab.paths.state_dir.join(History::FILE)).unwrap();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&two()).unwrap();
    assert_eq!(live(&lab), ("blue", 1));
}

#[test]
fn who_attached_and_detached_is_in_the_history() {
    let lab = running();
    lab.attach("v1", AttachMode::Tc).unwrap();
    detach(&lab.paths, &Target::Interfaces(vec!["v1".to_owned()])).unwrap();
    detach(&lab.paths, &Target::All).unwrap();
    let journal = History::new(&lab.paths.state_dir).read(None).unwrap();
    let records = journal.records.iter().filter(|record| record.deployment.is_empty());
    let events: Vec<_> = records.map(|record| (record.action, record.interfaces.join(","))).collect();
    let event = |action, interface: &str| (action, interface.to_owned());
    assert_eq!(
        events,
        [
            event(Action::Attach, "v0"),
            event(Action::Attach, "v1"),
            event(Action::Detach, "v1"),
            event(Action::Detach, "v0"),
        ]
    );
    let ended = lab.bgctl().arg("history").output().unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    assert!(text.lines().any(|line| line.contains("detach") && line.contains("v0")), "{text}");
    // Whoever reads the JSON finds the same keys in every record.
    let (_, json, _) = lab.run(&["history", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names: Vec<_> =
        json["records"].as_array().unwrap().iter().map(|record| record["deployment"].as_str()).collect();
    assert!(names.contains(&Some("")) && names.contains(&Some("shop")) && !names.contains(&None), "{names:?}");
}

#[test]
fn a_history_that_was_tampered_with_is_found() {
    let lab = running();
    switch(&lab, Colour::Green);
    switch(&lab, Colour::Blue);
    let journal = lab.paths.state_dir.join(History::FILE);
    let verify = || {
        let (code, text, _) = lab.run(&["history", "--verify"]);
        (code, text)
    };
    let (code, text) = verify();
    assert!(code == 0 && text.contains("5 records with a hash, the chain is whole"), "{code}: {text}");
    let pin = lab.paths.pin_root.join("history").display().to_string();
    assert!(text.contains("history.head") && text.contains(&pin), "{text}");
    let (_, json, _) = lab.run(&["history", "--verify", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["whole"], &json["records"], &json["head"]["number"]), (&true.into(), &5.into(), &5.into()));

    let whole = fs::read_to_string(&journal).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    for (tampered, line) in [
        (whole.replacen("\"generation\":2,\"live\":\"green\"", "\"generation\":2,\"live\":\"blue\"", 1), "line 4"),
        (lines[1..].join("\n") + "\n", "line 1"),
        (lines[..4].join("\n") + "\n", "line 4"),
        ([lines[0], lines[2], lines[1], lines[3], lines[4], ""].join("\n"), "line 2"),
        (whole.clone() + lines[4] + "\n", "line 6"),
    ] {
        assert_ne!(tampered, whole);
        fs::write(&journal, tampered).unwrap();
        let (code, text) = verify();
        assert!(code == 1 && text.contains(line) && text.contains("broken"), "{line}: {code}: {text}");
    }
    fs::write(&journal, whole).unwrap();
    assert_eq!(verify().0, 0);
    // What an instance has pinned goes with it, and what is beside the journal stays.
    detach(&lab.paths, &Target::All).unwrap();
    assert!(!lab.paths.pin_root.exists());
    let (code, text) = verify();
    assert!(code == 0 && text.contains("6 records") && text.contains("history.head"), "{code}: {text}");
}

#[test]
fn the_second_of_two_who_roll_back_is_asked_what_he_means() {
    let lab = running();
    switch(&lab, Colour::Green);
    // The history has no part in it.
    fs::remove_dir_all(&lab.paths.state_dir).unwrap();
    let rollback = |request: SwitchRequest| lab.instance().rollback("shop", &request);
    rollback(SwitchRequest::default()).unwrap();
    let error = rollback(SwitchRequest::default()).unwrap_err();
    assert_eq!((live(&lab), error.class()), (("blue", 3), ErrorClass::Refused));
    let error = error.to_string();
    assert!(error.contains("rollback shop green") && error.contains("--if-generation 3"), "{error}");

    let to = |colour| SwitchRequest { to: Some(colour), ..SwitchRequest::default() };
    assert!(!rollback(to(Colour::Blue)).unwrap().changed, "both mean the same");
    // An apply that changes its settings is no change of colour.
    let mut next = two();
    next.deployments[1].on_switch = bg_userspace::config::OnSwitch::Cut;
    lab.instance().apply(&next).unwrap();
    rollback(SwitchRequest::default()).unwrap_err();
    rollback(SwitchRequest { if_generation: Some(3), ..SwitchRequest::default() }).unwrap();
    assert_eq!(live(&lab), ("green", 4));
    rollback(to(Colour::Blue)).unwrap();
    assert_eq!(live(&lab), ("blue", 5));
    // After a switch there is something to be taken back.
    switch(&lab, Colour::Green);
    rollback(SwitchRequest::default()).unwrap();
    assert_eq!(live(&lab), ("blue", 7));
    // Another name does not make it another change.
    next.deployments[1].name = "store".to_owned();
    lab.instance().apply(&next).unwrap();
    let error = lab.instance().rollback("store", &SwitchRequest::default()).unwrap_err().to_string();
    assert!(error.contains("rollback store green"), "{error}");
}
