//! Conditions beside ramps, schedules, deadlines and commands.

use super::*;

#[test]
fn a_confirmed_switch_is_judged_no_more() {
    let mut watched = watched(RESETS);
    watched.flows(WEB, 199, Does::Reset);
    let confirmed = watched.word.with_flags(watched.word.flags().without(LiveFlags::TIMED));
    watched.host.set_live(SHOP, confirmed, SwitchTerms::default());
    watched.flows(WEB, 199, Does::Reset);
    assert_eq!(watched.host.word(SHOP), confirmed);
}

#[test]
fn a_command_that_is_about_to_act_is_not_disturbed() {
    let mut watched = watched(Trips { paused_until: BOOT + SECOND, ..RESETS });
    watched.flows(WEB, 200, Does::Reset);
    watched.assert_stays();
    watched.pass(TICKS);
    watched.judge();
    watched.assert_taken_back(Conditions::RESETS);
}

#[test]
fn conditions_and_a_deadline_go_together() {
    let deadline = Timing { window: SECOND, revert_at: BOOT + SECOND, ..Timing::default() };
    let mut watched = watched_with(RESETS, deadline);
    watched.flows(WEB, 100, Does::Reset);
    watched.assert_stays();
    watched.pass(TICKS);
    watched.judge();
    let timing = watched.host.timings(SHOP)[1];
    assert_eq!((timing.cause, timing.conditions), (Cause::Expired as u8, 0));

    let mut watched = watched_with(RESETS, deadline);
    watched.flows(WEB, 200, Does::Reset);
    watched.judge();
    watched.assert_taken_back(Conditions::RESETS);
}

#[test]
fn a_scheduled_switch_is_judged_once_it_has_taken_effect() {
    let scheduled = Timing { activate_at: BOOT + SECOND, ..Timing::default() };
    let mut watched = watched_with(RESETS, scheduled);
    watched.flows(WEB, 300, Does::Reset);
    watched.assert_stays();
    assert_eq!(watched.host.trips(SHOP)[0].opened, 0);
    watched.pass(TICKS);
    watched.flows(WEB, 200, Does::Reset);
    assert_eq!(watched.host.timings(SHOP)[0].activate_at, 0);
    // Other packets may still need the terms of the word before.
    watched.assert_stays();
    watched.pass(1);
    watched.judge();
    watched.assert_taken_back(Conditions::RESETS);
}

/// A ramp of ten seconds that began now, at blue.
fn ramp(trips: Trips) -> Watched {
    watched_with(trips, Timing { activate_at: BOOT, ramp: 10 * SECOND, ..Timing::default() })
}

#[test]
fn a_ramp_is_judged_by_its_flows_on_the_new_colour_and_called_off() {
    for (vip, blue) in [(WEB, BLUE), (DNS6, "[2001:db8:1::11]:5353")] {
        let mut watched = ramp(UNANSWERED);
        watched.pass(5 * TICKS);
        let (mut on_green, mut kept) = (0, None);
        while on_green < 200 {
            let opened = watched.open(vip);
            if opened.backend == at(blue) {
                watched.answer(&opened, SYN | ACK);
            } else {
                on_green += 1;
                kept = Some(opened);
            }
        }
        assert_eq!(watched.host.trips(SHOP)[0].opened, 200);
        watched.pass(TICKS);
        watched.assert_stays();
        watched.pass(1);
        let terms = watched.host.terms(SHOP);
        watched.judge();
        let word = watched.host.word(SHOP);
        assert_eq!((word.generation(), word.flags(), word.target_share()), (3, LiveFlags::NONE, 0));
        assert_eq!(word.previous(), Colour::Green);
        assert_eq!(watched.host.terms(SHOP), terms, "those in force");
        let timing = watched.host.timings(SHOP)[1];
        assert_eq!((timing.generation, timing.cause), (3, Cause::Tripped as u8));
        assert_eq!(timing.conditions, Conditions::UNANSWERED.0);
        for _ in 0..50 {
            assert_eq!(watched.open(vip).backend, at(blue));
        }
        // Its open flows stay.
        let kept = kept.expect("one of 200");
        watched.answer(&kept, SYN | ACK);
        assert_eq!(sent_to(&watched.host, &PacketSpec { flags: ACK, ..kept.first }), kept.backend);
    }
}

#[test]
fn what_a_ramp_has_counted_goes_on_counting_when_it_has_ended() {
    let mut watched = ramp(RESETS);
    watched.pass(9 * TICKS);
    let mut late = Vec::new();
    while late.len() < 150 {
        let opened = watched.open(WEB);
        late.extend((opened.backend == at(GREEN)).then_some(opened));
    }
    watched.pass(TICKS);
    watched.judge();
    assert_eq!(watched.host.timings(SHOP)[0].activate_at, 0);
    late.iter().for_each(|opened| watched.answer(opened, RST | ACK));
    watched.flows(WEB, 49, Does::Answer);
    watched.pass(1);
    watched.judge();
    watched.assert_stays();
    watched.flow(WEB, Does::Answer);
    watched.judge();
    watched.assert_taken_back(Conditions::RESETS);
}

#[test]
fn a_failing_old_colour_does_not_end_a_ramp() {
    let mut watched = ramp(Trips { silence: SECOND, unanswered: limit(0, 1), ..RESETS });
    for round in 0..400 {
        let opened = watched.open(WEB);
        if opened.backend == at(GREEN) {
            watched.answer(&opened, SYN | ACK);
        } else if round % 2 == 0 {
            watched.answer(&opened, RST | ACK);
        }
        watched.pass(u32::from(round % 4 == 0));
        assert_eq!(watched.host.word(SHOP), watched.word);
    }
}
