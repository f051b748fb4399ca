//! The colour that is kept: where rollbacks go, what a reboot and another name leave, and that none of it needs a disk.

use std::{fs, thread, time::Duration};

use bg_common::Timing;
use bg_userspace::{
    AttachMode, Colour, ConfirmRequest, Error, FreezeWindow, Refusal, SplitRequest, SwitchRequest, Switched, Target,
    config::{Config, DivideBy, Gate, GateKind, OnSwitch, When},
    detach,
};

use crate::{
    flow_map::array,
    lab::Lab,
    state::{live, running, two},
    waiting::{SHOP, word},
};

const BLUE: Colour = Colour::Blue;
const GREEN: Colour = Colour::Green;
const HOUR: Duration = Duration::from_secs(3600);

fn to(colour: Colour) -> SwitchRequest {
    SwitchRequest { to: Some(colour), ..SwitchRequest::default() }
}

fn guarded(colour: Colour, within: Duration) -> SwitchRequest {
    SwitchRequest { confirm_within: Some(within), ..to(colour) }
}

fn switch(lab: &Lab, request: &SwitchRequest) -> Switched {
    lab.instance().switch("shop", request).unwrap()
}

fn split(lab: &Lab, green: u16) {
    lab.instance().split("shop", &SplitRequest { green, ..SplitRequest::default() }).unwrap();
}

fn rollback(lab: &Lab, name: &str) -> Result<Switched, Error> {
    lab.instance().rollback(name, &SwitchRequest::default())
}

/// Waits until the data path has taken a switch back.
fn expired(lab: &Lab) {
    while lab.instance().status(Some("shop")).unwrap().deployments[0].taken_back.is_none() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn reboot(lab: &Lab) {
    detach(&lab.paths, &Target::All).unwrap();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&two()).unwrap();
}

/// Both deployments, and those that have gates are the ones with these names. The copy of the gates cannot be read.
fn without_disk(names: &[&str]) -> Lab {
    let lab = running();
    lab.instance().apply(&with_gates(names)).unwrap();
    fs::remove_file(lab.paths.state_dir.join("gates.toml")).unwrap();
    lab
}

fn with_gates(names: &[&str]) -> Config {
    let mut config = two();
    for deployment in config.deployments.iter_mut().filter(|deployment| names.contains(&deployment.name.as_str())) {
        let kind = GateKind::Exec { command: vec!["/bin/true".to_owned()] };
        let (interval, timeout) = (Gate::INTERVAL, Gate::TIMEOUT);
        deployment.gates.push(Gate { when: When::Before, kind, interval, timeout });
    }
    config
}

#[test]
fn a_rollback_that_names_no_colour_reads_no_gates() {
    for names in [&["mail"][..], &["shop"], &["mail", "shop"]] {
        let lab = without_disk(names);
        let instance = lab.instance();
        assert!(matches!(instance.gates("shop"), Err(Error::GatesUnknown { .. })), "the copy is gone");
        // After a switch, out of one half, and after a schedule that was cancelled.
        for (is_tie, is_later) in [(false, false), (true, false), (false, true)] {
            switch(&lab, &to(BLUE).without_gates());
            if is_tie {
                split(&lab, 5000);
            }
            switch(&lab, &to(GREEN).without_gates());
            if is_later {
                switch(&lab, &SwitchRequest { at: Some(jiff::Timestamp::now() + HOUR), ..to(BLUE) });
                switch(&lab, &to(GREEN));
            }
            assert_eq!(rollback(&lab, "shop").unwrap().to.live, BLUE);
            assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(Refusal::RolledBackAlready { .. }))));
        }
        // What waits, and what was split away from.
        for away in [false, true] {
            switch(&lab, &guarded(GREEN, HOUR));
            if away {
                split(&lab, 2000);
                assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(Refusal::RolledBackAlready { .. }))));
            } else {
                assert_eq!(rollback(&lab, "shop").unwrap().green_share, 0.0);
            }
        }
        // What would need them says that it cannot read them.
        let split = SplitRequest { green: 9000, ..SplitRequest::default() };
        assert!(matches!(instance.split("shop", &split), Err(Error::GatesUnknown { .. })));
        assert!(matches!(instance.rollback("shop", &to(GREEN)), Err(Error::GatesUnknown { .. })));
    }
}

#[test]
fn a_rollback_on_the_way_goes_where_one_afterwards_does() {
    let lab = running();
    for share in [5000, 3000] {
        split(&lab, share);
        switch(&lab, &SwitchRequest { ramp: Some(HOUR), ..to(GREEN) });
        assert_eq!(rollback(&lab, "shop").unwrap().green_share, 0.0);
        // The second of two who roll back.
        assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(Refusal::RolledBackAlready { .. }))));
    }
    switch(&lab, &to(GREEN));
    switch(&lab, &SwitchRequest { at: Some(jiff::Timestamp::now() + HOUR), ..to(BLUE) });
    assert!(rollback(&lab, "shop").unwrap().changed, "the schedule is cancelled");
    assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(Refusal::RolledBackAlready { .. }))));
    assert_eq!(live(&lab).0, "green");
}

#[test]
fn what_is_kept_outlives_a_reboot() {
    let lab = running();
    switch(&lab, &to(GREEN));
    split(&lab, 5000);
    reboot(&lab);
    assert_eq!(live(&lab).0, "green", "one half has changed nothing about it");
    // Nobody has kept the ramp, although most new flows go where it leads.
    split(&lab, 4900);
    switch(&lab, &SwitchRequest { ramp: Some(HOUR), ..guarded(GREEN, HOUR) });
    let armed = word(&lab, SHOP);
    let mut map = array::<[Timing; 2]>(&lab, "timing");
    let mut slots = map.get(&SHOP, 0).unwrap();
    let timing = &mut slots[armed.terms_slot()];
    timing.activate_at = timing.made_at - timing.ramp / 2;
    map.set(SHOP, slots, 0).unwrap();
    assert_eq!(live(&lab).0, "green");
    lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
    reboot(&lab);
    assert_eq!(live(&lab).0, "blue");
    // What a reboot takes back is nothing to go back to.
    switch(&lab, &guarded(GREEN, HOUR));
    reboot(&lab);
    assert_eq!(live(&lab).0, "blue");
    assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(Refusal::RolledBackAlready { .. }))));
    // What somebody keeps is.
    switch(&lab, &guarded(GREEN, HOUR));
    lab.instance().confirm("shop", &ConfirmRequest::default()).unwrap();
    reboot(&lab);
    assert_eq!((live(&lab).0, rollback(&lab, "shop").unwrap().to.live), ("green", BLUE));
}

#[test]
fn what_is_kept_outlives_another_name() {
    let lab = running();
    switch(&lab, &to(GREEN));
    split(&lab, 5000);
    let mut next = two();
    next.deployments[1].name = "store".to_owned();
    lab.instance().apply(&next).unwrap();
    let store = lab.instance().status(Some("store")).unwrap().deployments.remove(0);
    assert_eq!((store.live, store.green_share), ("green", 1.0));
    assert_eq!(rollback(&lab, "store").unwrap().to.live, BLUE);
}

#[test]
fn a_judged_switch_does_not_go_back_by_itself_to_what_has_taken_effect_meanwhile() {
    let lab = running();
    let soon = Some(jiff::Timestamp::now() + Duration::from_millis(200));
    let scheduled = switch(&lab, &SwitchRequest { at: soon, ..guarded(GREEN, HOUR) });
    while live(&lab).0 != "green" {
        thread::sleep(Duration::from_millis(5));
    }
    // The same generation as when the gates were asked.
    let judged = SwitchRequest { if_generation: Some(scheduled.to.generation), from_kept: true, ..guarded(BLUE, HOUR) };
    let refused = lab.instance().switch("shop", &judged);
    assert!(matches!(refused, Err(Error::Refused(Refusal::NotKeptYet { .. }))), "{refused:?}");
    let ramp = SwitchRequest { ramp: Some(HOUR), confirm_within: None, ..judged.clone() };
    assert!(matches!(lab.instance().switch("shop", &ramp), Err(Error::Refused(Refusal::NotKeptYet { .. }))));
    switch(&lab, &SwitchRequest { confirm_within: None, ..judged });
    assert_eq!(live(&lab).0, "blue");
}

/// Packets write nothing down about it, and the row where it stands is the one that the next change overwrites.
#[test]
fn what_was_kept_before_a_switch_that_was_taken_back_is_written_down() {
    let lab = running();
    switch(&lab, &to(GREEN));
    split(&lab, 5000);
    switch(&lab, &guarded(BLUE, Duration::from_millis(50)));
    expired(&lab);
    let noted = || array::<[Timing; 2]>(&lab, "timing").get(&SHOP, 0).unwrap()[word(&lab, SHOP).terms_slot()].kept;
    split(&lab, 5000);
    assert_eq!(noted()[0], GREEN as u8 + 1);
    let mut map = array::<[Timing; 2]>(&lab, "timing");
    let mut slots = map.get(&SHOP, 0).unwrap();
    slots[1 - word(&lab, SHOP).terms_slot()] = Timing::default();
    map.set(SHOP, slots, 0).unwrap();
    reboot(&lab);
    assert_eq!(live(&lab).0, "green");
}

#[test]
fn a_drill_that_has_passed_leaves_the_way_back_and_the_canary() {
    let lab = running();
    let drill = || bg_userspace::drill::drill(&lab.instance(), "shop", &Default::default(), &[], &mut |_| ()).unwrap();
    switch(&lab, &to(GREEN));
    for _ in 0..2 {
        assert!(drill().passed);
        assert_eq!(live(&lab).0, "green");
    }
    assert_eq!(rollback(&lab, "shop").unwrap().to.live, BLUE);
    assert!(drill().passed);
    assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(Refusal::RolledBackAlready { .. }))));
    split(&lab, 3000);
    assert!(drill().passed);
    assert_eq!(lab.instance().status(Some("shop")).unwrap().deployments[0].green_share, 0.3);
}

#[test]
fn a_rollback_ends_the_wait_of_a_switch_back_to_what_is_kept() {
    let lab = running();
    switch(&lab, &guarded(GREEN, HOUR));
    let waiting = switch(&lab, &guarded(BLUE, HOUR));
    let ended = rollback(&lab, "shop").unwrap();
    assert!(ended.to.generation > waiting.to.generation);
    let shop = lab.instance().status(Some("shop")).unwrap().deployments.remove(0);
    assert_eq!((shop.live, shop.green_share, shop.confirm_deadline), ("blue", 0.0, None));
    assert!(matches!(rollback(&lab, "shop"), Err(Error::Refused(_))));
}

/// It goes back to what nobody has kept, as the data path does if the process is killed.
#[test]
fn a_window_that_fails_keeps_nothing() {
    let lab = running();
    switch(&lab, &guarded(GREEN, HOUR));
    let window = FreezeWindow { max: Duration::from_secs(20), before: None, after: Some("exit 1".to_owned()) };
    let cut = SwitchRequest { on_switch: Some(OnSwitch::Cut), ..to(BLUE) };
    let failed = lab.instance().switch_in_window("shop", &cut, &window);
    assert!(matches!(failed, Err(Error::Refused(Refusal::HookFailed { live: "green", .. }))), "{failed:?}");
    assert_eq!(live(&lab).0, "green");
    reboot(&lab);
    assert_eq!(live(&lab).0, "blue");
}

#[test]
fn no_split_keeps_without_gates_what_got_new_flows_before_there_were_some() {
    let lab = running();
    switch(&lab, &guarded(GREEN, HOUR));
    switch(&lab, &SwitchRequest { at: Some(jiff::Timestamp::now() + HOUR), ..to(BLUE) });
    lab.instance().apply(&with_gates(&["shop"])).unwrap();
    let split = |by| SplitRequest { green: 10_000, by, ..SplitRequest::default() };
    for by in [None, Some(DivideBy::Client), Some(DivideBy::Flow)] {
        let refused = lab.instance().split("shop", &split(by));
        assert!(matches!(refused, Err(Error::Refused(Refusal::GatesNotAsked { .. }))), "{by:?}: {refused:?}");
    }
    lab.instance().split("shop", &split(None).without_gates()).unwrap();
    reboot(&lab);
    assert_eq!(live(&lab).0, "green");
}

/// The journal has to do if the last live colours cannot be read.
#[test]
fn the_journal_tells_which_colour_is_kept_while_both_get_the_same() {
    let lab = running();
    switch(&lab, &to(GREEN));
    for by in [DivideBy::Flow, DivideBy::Client] {
        let split = SplitRequest { green: 5000, by: Some(by), ..SplitRequest::default() };
        assert!(lab.instance().split("shop", &split).unwrap().changed);
    }
    detach(&lab.paths, &Target::All).unwrap();
    fs::write(lab.paths.state_dir.join("live.json"), "{").unwrap();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&two()).unwrap();
    assert_eq!(live(&lab).0, "green");
}

#[test]
fn what_only_conditions_would_take_back_outlives_a_reboot_and_can_be_rolled_back() {
    let lab = running();
    switch(&lab, &SwitchRequest { revert_if: vec!["silence 1h".parse().unwrap()], ..to(GREEN) });
    reboot(&lab);
    assert_eq!((live(&lab).0, rollback(&lab, "shop").unwrap().to.live), ("green", BLUE));
}
