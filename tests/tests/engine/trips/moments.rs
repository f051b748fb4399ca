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
    for (clock, late) in [(0, 0), (0, 5), (1, 0), (1, 5)] {
        let scheduled = Timing { activate_at: BOOT + SECOND, clock, ..Timing::default() };
        let mut watched = watched_with(RESETS, scheduled);
        watched.flows(WEB, 300, Does::Reset);
        watched.assert_stays();
        assert_eq!(watched.host.trips(SHOP)[0].opened, 0);
        watched.pass(TICKS + late);
        watched.flows(WEB, 200, Does::Reset);
        assert_eq!(watched.host.timings(SHOP)[0].activate_at, 0);
        assert_eq!(watched.host.trips(SHOP)[0].began_at, BOOT + SECOND, "though nobody came for {late} ticks");
        // Other packets may still need the terms of the word before.
        watched.assert_stays();
        watched.pass(1);
        watched.judge();
        watched.assert_taken_back(Conditions::RESETS);
    }
}

/// A ramp of ten seconds that began now, at blue.
fn ramp(trips: Trips) -> Watched {
    watched_with(trips, Timing { activate_at: BOOT, ramp: 10 * SECOND, ..Timing::default() })
}

#[test]
fn a_ramp_is_judged_by_its_flows_on_the_new_colour_and_called_off() {
    const BLUE_DNS6: &str = "[2001:db8:1::11]:5353";
    for (vip, blue, is_cut) in
        [(WEB, BLUE, false), (DNS6, BLUE_DNS6, false), (WEB, BLUE, true), (DNS6, BLUE_DNS6, true)]
    {
        let ramp = Timing { activate_at: BOOT, ramp: 10 * SECOND, ..Timing::default() };
        let mut watched = watched_with(UNANSWERED, Timing { drain_timeout: 50, on_switch: is_cut.into(), ..ramp });
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
        let kept = kept.expect("one of 200");
        watched.answer(&kept, SYN | ACK);
        let segment = PacketSpec { flags: ACK, ..kept.first.clone() };
        assert_eq!(sent_to(&watched.host, &segment), kept.backend);
        watched.pass(TICKS);
        watched.assert_stays();
        watched.pass(1);
        assert_eq!(watched.open(vip).backend, at(blue));
        let word = watched.host.word(SHOP);
        assert_eq!((word.generation(), word.target_share(), word.previous()), (3, 0, Colour::Green));
        // As it is with any switch that is taken back.
        let now = watched.host.tick.get();
        let drain = SwitchTerms { drain_deadline: now + 50, drain_began: now, ..SwitchTerms::default() };
        let cut = SwitchTerms { ended_before: [0, 3], ..SwitchTerms::default() };
        let expected = if is_cut { (LiveFlags::CUT, cut) } else { (LiveFlags::DRAINING, drain) };
        assert_eq!((word.flags(), watched.host.terms(SHOP)[1]), expected);
        let timing = watched.host.timings(SHOP)[1];
        assert_eq!((timing.generation, timing.cause), (3, Cause::Tripped as u8));
        assert_eq!(timing.conditions, Conditions::UNANSWERED.0);
        for _ in 0..50 {
            assert_eq!(watched.open(vip).backend, at(blue));
        }
        if !is_cut {
            watched.answer(&kept, ACK);
            assert_eq!(sent_to(&watched.host, &segment), kept.backend);
            watched.pass(50);
        }
        if kept.is_tcp {
            is_reset(&watched.host, &segment);
        } else {
            assert_eq!(sent_to(&watched.host, &segment), at(blue));
        }
    }
}

#[test]
fn a_connection_of_a_ramp_that_was_called_off_gets_back_to_its_colour_though_its_row_is_lost() {
    let mut watched = ramp(RESETS);
    watched.pass(5 * TICKS);
    let (mut on_green, mut kept) = (0, None);
    while on_green < 200 {
        let opened = watched.open(WEB);
        if opened.backend == at(GREEN) {
            on_green += 1;
            watched.answer(&opened, if kept.is_some() { RST | ACK } else { SYN | ACK });
            kept.get_or_insert(opened);
        }
    }
    watched.judge();
    assert!(watched.is_back());
    watched.host.forget_flows();
    let kept = kept.expect("one of 200");
    let segment = PacketSpec { flags: ACK, ..kept.first.clone() };
    assert_eq!(sent_to(&watched.host, &segment), at(BLUE));
    let refusal = PacketSpec::tcp(at(BLUE), kept.client, RST);
    assert_eq!(watched.host.egress(&refusal.frame()).action, Action::Drop);
    assert_eq!(watched.host.events(Event::SecondChance), 1);
    assert_eq!(sent_to(&watched.host, &segment), at(GREEN));
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

/// Gives the generation before a ramp conditions of its own, as a switch to blue has left them, which may not have been confirmed.
fn after_conditions_for_blue(watched: &Watched, flags: LiveFlags) {
    let before = watched.host.timings(SHOP)[0].before.with_flags(flags);
    let left = Trips { second: TICKS as u16, colour: Colour::Blue as u16, resets: limit(0, 1), ..EMPTY };
    watched.host.set_trips(SHOP, before, left);
    let timing = watched.host.timings(SHOP)[0];
    watched.host.set_timing(SHOP, watched.word, Timing { before, ..timing });
}

#[test]
fn a_ramp_is_judged_by_its_own_conditions_though_the_switch_before_it_had_some() {
    for (vip, blue) in [(WEB, BLUE), (WEB6, "[2001:db8:1::11]:8443")] {
        for flags in [LiveFlags::NONE, LiveFlags::TIMED] {
            let mut watched = ramp(RESETS);
            after_conditions_for_blue(&watched, flags);
            watched.pass(5 * TICKS);
            let mut on_green = 0;
            while on_green < 200 {
                watched.assert_stays();
                let opened = watched.open(vip);
                on_green += u32::from(opened.backend != at(blue));
                // Blue is as bad, and nobody watches it.
                watched.answer(&opened, RST | ACK);
            }
            let trips = watched.host.trips(SHOP)[0];
            assert_eq!((trips.opened, trips.reset), (200, 200));
            watched.judge();
            let word = watched.host.word(SHOP);
            assert_eq!((word.generation(), word.flags(), word.target_share()), (3, LiveFlags::DRAINING, 0));
            for _ in 0..50 {
                assert_eq!(watched.open(vip).backend, at(blue));
            }
        }
    }
}

#[test]
fn until_a_schedule_takes_effect_nothing_counts_though_the_switch_before_it_was_guarded() {
    let mut watched = watched_with(RESETS, Timing { activate_at: BOOT + SECOND, ..Timing::default() });
    after_conditions_for_blue(&watched, LiveFlags::TIMED);
    watched.flows(WEB, 300, Does::Reset);
    watched.assert_stays();
    assert_eq!(watched.host.trips(SHOP).map(|trips| (trips.opened, trips.reset)), [(0, 0); 2]);
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

#[test]
fn answers_to_a_switch_that_a_ramp_replaces_do_not_count_for_the_ramp() {
    for is_over in [false, true] {
        let mut watched = watched(Trips { resets: limit(5, 1000), ..EMPTY });
        let late: Vec<_> = (0..100).map(|_| watched.open(WEB)).collect();
        let ramp = LiveWord::new(3, watched.word.flags(), FULL_SHARE, 0);
        let conditions = Conditions::RESETS.0;
        let timing = Timing { activate_at: BOOT, ramp: 10 * SECOND, conditions, generation: 3, ..Timing::default() };
        let trips = Trips { second: TICKS as u16, colour: Colour::Blue as u16, unjudged_tick: NOW.into(), ..RESETS };
        watched.host.set_trips(SHOP, ramp, trips);
        watched.host.set_timing(SHOP, ramp, Timing { before: watched.word, ..timing });
        watched.host.set_live(SHOP, ramp, SwitchTerms::default());
        if is_over {
            watched.host.set_trips(SHOP, LiveWord::new(0, LiveFlags::NONE, 0, 0), Trips::default());
        }
        late.iter().for_each(|opened| watched.answer(opened, RST | ACK));
        let [before, after] = watched.host.trips(SHOP);
        assert_eq!((before.reset, after.reset), (if is_over { 0 } else { 100 }, 0));
    }
}
