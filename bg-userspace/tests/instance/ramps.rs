//! Switches that go on with a ramp, and where they go back to.

use bg_common::{FULL_SHARE, LiveFlags, LiveWord, SwitchTerms, Timing, Trips};

use crate::{
    flow_map::array,
    lab::Lab,
    waiting::{SHOP, draining, trips, word},
};

/// A ramp to blue. Green is live.
const RAMP: [&str; 5] = ["switch", "shop", "blue", "--ramp", "100s"];

fn run(lab: &Lab, words: &[&str]) -> LiveWord {
    let (code, _, stderr) = lab.run(words);
    assert_eq!(code, 0, "{words:?}: {stderr}");
    word(lab, SHOP)
}

/// Begins a ramp, of which so many tenths have passed.
fn ramp(lab: &Lab, words: &[&str], tenths: u64) -> LiveWord {
    let armed = run(lab, words);
    let mut map = array::<[Timing; 2]>(lab, "timing");
    let mut slots = map.get(&SHOP, 0).unwrap();
    let timing = &mut slots[armed.terms_slot()];
    timing.activate_at = timing.made_at - timing.ramp / 10 * tenths;
    map.set(SHOP, slots, 0).unwrap();
    armed
}

fn is_partial(share: u16) -> bool {
    !matches!(share, 0 | FULL_SHARE)
}

#[test]
fn a_condition_takes_a_ramp_back_to_where_the_first_of_several_began() {
    let lab = draining();
    let other = word(&lab, 0);
    let watched = [&RAMP[..], &["--revert-if", "resets > 5% of 200"]].concat();
    let mut armed = ramp(&lab, &watched, 3);
    for _ in 0..2 {
        armed = ramp(&lab, &watched, 3);
    }
    let slot = armed.terms_slot();
    let before = array::<[Timing; 2]>(&lab, "timing").get(&SHOP, 0).unwrap()[slot].before;
    assert!(is_partial(before.target_share()), "it goes on from the share that the others have reached");

    let mut met = trips(&lab);
    (met[slot].opened, met[slot].reset) = (900, 900);
    array::<[Trips; 2]>(&lab, "trips").set(SHOP, met, 0).unwrap();
    let shop = lab.instance().status(Some("shop")).unwrap().deployments.remove(0);
    assert_eq!((shop.live, shop.green_share, shop.taken_back.is_some()), ("green", 1.0, true));
    let back = word(&lab, SHOP);
    assert_eq!((back.generation(), back.target_share()), (armed.generation() + 1, FULL_SHARE));
    // As after any switch that is taken back.
    assert_eq!(back.flags(), LiveFlags::DRAINING);
    let terms = array::<[SwitchTerms; 2]>(&lab, "terms").get(&SHOP, 0).unwrap()[back.terms_slot()];
    assert!(terms.drain_began != 0 && terms.drain_deadline != 0, "{terms:?}");
    assert_eq!(word(&lab, 0), other);
}

#[test]
fn a_switch_that_goes_on_with_a_ramp_goes_back_to_where_that_began() {
    let lab = draining();
    for guard in [&["--confirm-within", "1h"][..], &[]] {
        ramp(&lab, &RAMP, 7);
        let blue = run(&lab, &[&["switch", "shop", "blue"], guard].concat());
        assert_eq!((blue.previous_share(), blue.target_share()), (FULL_SHARE, 0));
        assert_eq!(run(&lab, &["rollback", "shop"]).target_share(), FULL_SHARE);
    }
    // It does not go on with it.
    ramp(&lab, &RAMP, 7);
    let green = run(&lab, &["switch", "shop", "green"]);
    assert!(is_partial(green.previous_share()) && green.target_share() == FULL_SHARE, "{green:?}");
}

#[test]
fn a_rollback_ends_a_ramp_where_it_began_and_cancels_what_has_not_begun() {
    let lab = draining();
    ramp(&lab, &RAMP, 3);
    ramp(&lab, &RAMP, 3);
    assert_eq!(run(&lab, &["rollback", "shop"]).target_share(), FULL_SHARE);

    ramp(&lab, &RAMP, 3);
    let later = (jiff::Timestamp::now() + std::time::Duration::from_secs(3600)).to_string();
    run(&lab, &["switch", "shop", "blue", "--at", &later]);
    let share = run(&lab, &["rollback", "shop"]).target_share();
    assert!(is_partial(share), "the ramp was cancelled by the schedule, which is cancelled: {share}");
}

#[test]
fn a_split_is_where_a_switch_begins() {
    let lab = draining();
    let later = (jiff::Timestamp::now() + std::time::Duration::from_secs(3600)).to_string();
    let split = || run(&lab, &["split", "shop", "--green", "30"]);
    split();
    run(&lab, &["switch", "shop", "green", "--at", &later]);
    assert_eq!(run(&lab, &["switch", "shop", "green", "--confirm-within", "1h"]).previous_share(), 3000);

    split();
    for _ in 0..2 {
        assert_eq!(ramp(&lab, &["switch", "shop", "green", "--ramp", "100s"], 3).previous_share(), 3000);
    }
}
