//! Switches that have not taken effect yet, or are not confirmed yet, and what came before them.

use std::time::Duration;

use bg_common::{LiveFlags, LiveWord, SwitchTerms, Timing};
use bg_userspace::{
    AttachMode, ConfirmRequest, FreezeRequest, SwitchRequest,
    config::{Config, OnSwitch},
};

use crate::{
    flow_map::array,
    lab::{Lab, config},
};

/// The one under test is not the first.
const SHOP: u32 = 1;

/// Two deployments, and a drain of each that ends after a minute.
fn draining() -> Lab {
    let [mut mail, mut shop] = ["mail", "shop"].map(|name| config(name, &[(1, 1)], &[(1, 1)]).deployments.remove(0));
    mail.services[0].vip = ([203, 0, 113, 20], 25).into();
    [&mut mail, &mut shop].into_iter().for_each(|deployment| {
        deployment.on_switch = OnSwitch::Drain;
        deployment.drain_timeout = Some(Duration::from_secs(60));
    });
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&Config { deployments: vec![mail, shop] }).unwrap();
    for name in ["mail", "shop"] {
        lab.instance().switch(name, &SwitchRequest::default()).unwrap();
    }
    lab
}

fn word(lab: &Lab, deployment: u32) -> LiveWord {
    array(lab, "live").get(&deployment, 0).unwrap()
}

fn terms(lab: &Lab, deployment: u32) -> [SwitchTerms; 2] {
    array(lab, "terms").get(&deployment, 0).unwrap()
}

/// Begins a ramp, and returns the word in force before it.
fn ramp(lab: &Lab) -> LiveWord {
    let request = SwitchRequest { ramp: Some(Duration::from_secs(600)), ..SwitchRequest::default() };
    lab.instance().switch("shop", &request).unwrap();
    let armed = word(lab, SHOP);
    assert!(armed.flags().has(LiveFlags::TIMED));
    array::<[Timing; 2]>(lab, "timing").get(&SHOP, 0).unwrap()[armed.terms_slot()].before
}

#[test]
fn a_ramp_to_the_colour_that_drains_lifts_the_deadline_of_that_drain() {
    let lab = draining();
    let others = terms(&lab, 0);
    let draining = word(&lab, SHOP);
    assert_ne!(terms(&lab, SHOP)[draining.terms_slot()].drain_deadline, 0);

    let before = ramp(&lab);
    assert_eq!(before, draining);
    assert_eq!(terms(&lab, SHOP)[before.terms_slot()].drain_deadline, 0);
    assert_eq!(terms(&lab, 0), others, "another deployment keeps its deadline");
}

#[test]
fn what_a_drain_had_ended_before_a_ramp_stays_ended() {
    let lab = draining();
    let draining = word(&lab, SHOP);
    let mut map = array::<[SwitchTerms; 2]>(&lab, "terms");
    let mut slots = terms(&lab, SHOP);
    // The deadline is when the drain began.
    let terms_in_force = &mut slots[draining.terms_slot()];
    terms_in_force.drain_deadline = terms_in_force.drain_began;
    map.set(SHOP, slots, 0).unwrap();

    let before = ramp(&lab);
    let flags = before.flags();
    assert!(flags.has(LiveFlags::CUT) && !flags.has(LiveFlags::DRAINING), "{flags:?}");
    let ended_before = terms(&lab, SHOP)[before.terms_slot()].ended_before;
    assert_eq!(ended_before, [before.generation(), 0], "the flows of blue, from before the switch to green");
}

#[test]
fn a_switch_to_a_colour_that_waits_for_its_confirmation_says_when_it_goes_back() {
    let lab = draining();
    let (code, ..) = lab.run(&["switch", "shop", "blue", "--confirm-within", "5m"]);
    assert_eq!(code, 0);
    let waiting = word(&lab, SHOP);

    let (code, stdout, stderr) = lab.run(&["switch", "shop", "blue"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("blue is live already") && stdout.contains("nothing changed; goes back at "), "{stdout}");
    let (_, stdout, _) = lab.run(&["switch", "shop", "blue", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["changed"], false);
    assert!(answer["confirm_deadline"].is_string(), "{answer}");
    assert_eq!(word(&lab, SHOP), waiting);
}

#[test]
fn a_freeze_outlives_switches_that_are_scheduled_cancelled_taken_back_and_confirmed() {
    let lab = draining();
    let instance = lab.instance();
    let other = word(&lab, 0);
    let freeze = FreezeRequest { max: Some(Duration::from_secs(600)), ..FreezeRequest::default() };
    let until = instance.freeze("shop", &freeze).unwrap().frozen_until;
    let is_frozen = |what: &str| {
        let status = instance.status(Some("shop")).unwrap();
        let shop = &status.deployments[0];
        assert_eq!((shop.phase, shop.frozen_until.is_some()), ("frozen", true), "{what}");
        let left = until.duration_since(shop.frozen_until.unwrap()).unsigned_abs();
        assert!(left < Duration::from_millis(10), "{what}: another end, {:?}", shop.frozen_until);
    };
    let soon = || Some(jiff::Timestamp::now() + Duration::from_secs(3600));
    instance.switch("shop", &SwitchRequest { at: soon(), ..SwitchRequest::default() }).unwrap();
    is_frozen("scheduled");
    let live = instance.switch("shop", &SwitchRequest::default()).unwrap().to.live;
    is_frozen("the schedule was cancelled");
    let guarded = SwitchRequest { confirm_within: Some(Duration::from_millis(50)), ..SwitchRequest::default() };
    instance.switch("shop", &guarded).unwrap();
    std::thread::sleep(Duration::from_millis(80));
    is_frozen("taken back");
    assert_eq!(
        instance.switch("shop", &SwitchRequest { to: Some(live), ..SwitchRequest::default() }).unwrap().to.live,
        live
    );
    let guarded = SwitchRequest { confirm_within: Some(Duration::from_secs(60)), ..SwitchRequest::default() };
    instance.switch("shop", &guarded).unwrap();
    instance.confirm("shop", &ConfirmRequest::default()).unwrap();
    is_frozen("confirmed");
    instance
        .switch("shop", &SwitchRequest { ramp: Some(Duration::from_secs(600)), ..SwitchRequest::default() })
        .unwrap();
    is_frozen("ramping");
    assert!(instance.thaw("shop", None).unwrap().changed);
    assert!(!word(&lab, SHOP).flags().has(LiveFlags::HOLD) && word(&lab, SHOP).flags().has(LiveFlags::TIMED));
    assert_eq!(word(&lab, 0), other);
}
