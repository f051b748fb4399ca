//! Switches that have not taken effect yet, or are not confirmed yet, and what came before them.

use std::time::Duration;

use bg_common::{LiveFlags, LiveWord, SwitchTerms, Timing, Trips};
use bg_userspace::{
    AttachMode, ConfirmRequest, FreezeRequest, SwitchRequest,
    config::{Config, OnSwitch},
};

use crate::{
    flow_map::array,
    lab::{Lab, config},
};

/// The one under test is not the first.
pub(crate) const SHOP: u32 = 1;

/// Two deployments, and a drain of each that ends after a minute.
pub(crate) fn draining() -> Lab {
    let [mut mail, mut shop] = ["mail", "shop"].map(|name| config(name, &[(1, 1)], &[(1, 1)]).deployments.remove(0));
    mail.services[0].vip = ([203, 0, 113, 20], 25).into();
    [&mut mail, &mut shop].into_iter().for_each(|deployment| {
        deployment.on_switch = OnSwitch::Drain;
        deployment.drain_timeout = Some(Duration::from_secs(60));
    });
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&Config { deployments: vec![mail, shop], ..Config::default() }).unwrap();
    for name in ["mail", "shop"] {
        lab.instance().switch(name, &SwitchRequest::default()).unwrap();
    }
    lab
}

pub(crate) fn word(lab: &Lab, deployment: u32) -> LiveWord {
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

/// Packets end a drain while the command waits for its fence, and it is still the same switch.
#[test]
fn a_drain_that_ends_meanwhile_does_not_look_like_a_switch_that_was_taken_back() {
    let lab = draining();
    let mut ended = 0;
    for round in 0..8 {
        let generation = word(&lab, SHOP).generation() + 1;
        let is_done = std::sync::atomic::AtomicBool::new(false);
        let output = std::thread::scope(|scope| {
            let packets = scope.spawn(|| {
                let (mut map, mut ended) = (array::<LiveWord>(&lab, "live"), 0);
                while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                    let word = map.get(&SHOP, 0).unwrap();
                    if word.generation() == generation && word.flags().has(LiveFlags::DRAINING) {
                        map.set(SHOP, word.with_flags(word.flags().without(LiveFlags::DRAINING)), 0).unwrap();
                        ended += 1;
                    }
                }
                ended
            });
            let output = lab.run(&["switch", "shop", "--confirm-within", "1h"]);
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            ended += packets.join().unwrap();
            output
        });
        assert_eq!((output.0, output.2.as_str()), (0, ""), "round {round}");
        assert_eq!(word(&lab, SHOP).generation(), generation, "round {round}");
    }
    assert_ne!(ended, 0, "never in time");
}

pub(crate) fn trips(lab: &Lab) -> [Trips; 2] {
    array(lab, "trips").get(&SHOP, 0).unwrap()
}

#[test]
fn conditions_begin_with_nothing_counted_and_a_switch_that_does_nothing_arms_none() {
    let lab = draining();
    let others = word(&lab, 0);
    let guard = ["--revert-if", "resets > 5% of 200"];
    let before = (word(&lab, SHOP), trips(&lab));
    for (arguments, expected) in [
        (&["switch", "shop", "blue", "--if-generation", "77"][..], 3),
        (&["switch", "shop", "green"], 0),
        (&["switch", "shop", "blue", "--revert-if", "resets > 1% of 2"], 2),
        (&["switch", "shop", "blue", "--revert-if", "resets > 5%"], 2),
        (&["switch", "shop", "blue", "--freeze", "1s"], 2),
        (&["switch", "shop", "blue", "--dry-run"], 0),
    ] {
        let (code, ..) = lab.run(&[arguments, &guard].concat());
        assert_eq!(code, expected, "{arguments:?}");
        assert_eq!((word(&lab, SHOP), trips(&lab)), before, "{arguments:?}");
    }
    // Counters of an earlier guard, and of the very generation that is about to be, which was never published.
    let next = before.0.generation() + 1;
    let full = Trips { generation: next, opened: 900, reset: 900, judged: 900, missing: 900, ..Trips::default() };
    array::<[Trips; 2]>(&lab, "trips").set(SHOP, [full; 2], 0).unwrap();
    assert_eq!(lab.run(&[&["switch", "shop"], &guard[..]].concat()).0, 0);
    let armed = trips(&lab)[next as usize & 1];
    assert_eq!((armed.generation, armed.opened, armed.reset, armed.judged, armed.missing), (next, 0, 0, 0, 0));
    assert_eq!((armed.resets.share, armed.resets.least, armed.paused_until), (500, 200, 0));
    let guarded = word(&lab, SHOP);
    assert!(guarded.flags().has(LiveFlags::TIMED));
    // Other conditions for what is live already change nothing.
    assert_eq!(lab.run(&["switch", "shop", "blue", "--revert-if", "silence 1s"]).0, 0);
    assert_eq!((word(&lab, SHOP), trips(&lab)[next as usize & 1]), (guarded, armed));
    // Each of these ends them.
    assert_eq!(lab.run(&["confirm", "shop"]).0, 0);
    assert!(!word(&lab, SHOP).flags().has(LiveFlags::TIMED));
    for end in [&["rollback", "shop"][..], &["switch", "shop"], &["split", "shop", "--green", "30"]] {
        assert_eq!(lab.run(&[&["switch", "shop", "green", "--confirm-within", "1h"], &guard[..]].concat()).0, 0);
        assert!(word(&lab, SHOP).flags().has(LiveFlags::TIMED));
        assert_eq!(lab.run(end).0, 0, "{end:?}");
        assert!(!word(&lab, SHOP).flags().has(LiveFlags::TIMED), "{end:?}");
        let status = &lab.instance().status(Some("shop")).unwrap().deployments[0];
        assert!(status.revert_if.is_empty() && status.confirm_deadline.is_none(), "{end:?}");
        assert_eq!(lab.run(&["switch", "shop", "blue"]).0, 0);
    }
    assert_eq!(word(&lab, 0), others);
}

#[test]
fn a_freeze_and_a_thaw_do_not_put_off_what_takes_a_switch_back() {
    let lab = draining();
    let instance = lab.instance();
    let soon = Duration::from_millis(1500);
    let revert_if = vec!["silence 1h".parse().unwrap()];
    let request = SwitchRequest { confirm_within: Some(soon), revert_if, ..SwitchRequest::default() };
    let deadline = instance.switch("shop", &request).unwrap().confirm_deadline.unwrap();
    let word = word(&lab, SHOP);
    let is_as_before = |what: &str| {
        let timing = array::<[Timing; 2]>(&lab, "timing").get(&SHOP, 0).unwrap()[word.terms_slot()];
        let status = instance.status(Some("shop")).unwrap();
        let told = status.deployments[0].confirm_deadline;
        let apart = told.map(|told| told.duration_since(deadline).unsigned_abs());
        // Unless this takes so long that it has passed.
        assert!(apart.is_none_or(|apart| apart < Duration::from_millis(10)), "{what}: {told:?}, {timing:?}");
        assert_eq!(trips(&lab)[word.terms_slot()].paused_until, 0, "{what}");
    };
    is_as_before("switched");
    instance.freeze("shop", &FreezeRequest::default()).unwrap();
    is_as_before("frozen");
    instance.thaw("shop", None).unwrap();
    is_as_before("thawed");
    std::thread::sleep(soon);
    assert_eq!(instance.status(Some("shop")).unwrap().deployments[0].generation, word.generation() + 1);
}
