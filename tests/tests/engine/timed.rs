//! A live word that changes by itself: a schedule, a ramp, a confirmation that does not come; and shares that divide clients.

use crate::*;
use bg_common::{Cause, Colour, FULL_SHARE, Timing};

const SECOND: u64 = 1_000_000_000;
/// A moment of `CLOCK_BOOTTIME`, and the same one of `CLOCK_TAI`.
const BOOT: u64 = 5_000 * SECOND;
const TAI: u64 = 1_800_000_000 * SECOND;

/// Blue is live at generation 1, and open flows are cut by default.
fn at_the_beginning() -> Host {
    let host = host();
    host.set_clocks([BOOT, TAI]);
    host
}

fn later(host: &Host, nanos: u64) {
    host.set_clocks([BOOT + nanos, TAI + nanos]);
}

/// Makes green live, or arms that, with this timing.
fn to_green(host: &Host, is_cut: bool, timing: Timing) -> LiveWord {
    let word = host.word(0);
    let mut terms = SwitchTerms::default();
    let mut flags = LiveFlags::TIMED.with(if is_cut { LiveFlags::CUT } else { LiveFlags::DRAINING });
    if is_cut {
        terms.ended_before[Colour::Blue as usize] = word.generation() + 1;
    }
    flags = flags.with(LiveFlags(word.flags().0 & LiveFlags::CUT.0));
    let new = LiveWord::new(word.generation() + 1, flags, word.target_share(), FULL_SHARE);
    host.set_timing(0, new, Timing { before: word, on_switch: is_cut.into(), generation: new.generation(), ..timing });
    host.set_live(0, new, terms);
    new
}

/// Where a new flow of this client's port goes.
fn new_flow(host: &Host, port: u16) -> SocketAddr {
    sent_to(host, &tcp(&format!("192.0.2.1:{port}"), WEB, SYN))
}

#[test]
fn without_a_confirmation_new_flows_go_back_at_the_deadline() {
    for is_cut in [false, true] {
        let host = at_the_beginning();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        let guarded = Timing { window: SECOND, revert_at: BOOT + SECOND, ..Timing::default() };
        let green = to_green(&host, is_cut, guarded);
        assert_eq!(new_flow(&host, 1), at(GREEN));
        later(&host, SECOND - 1);
        assert_eq!(new_flow(&host, 2), at(GREEN));
        assert_eq!(host.word(0), green, "nothing has come due");

        later(&host, SECOND);
        assert_eq!(new_flow(&host, 3), at(BLUE));
        let word = host.word(0);
        assert_eq!((word.generation(), word.live(), word.previous()), (3, Colour::Blue, Colour::Green));
        assert!(!word.flags().has(LiveFlags::TIMED));
        let timing = host.timings(0)[word.terms_slot()];
        assert_eq!((timing.generation, timing.cause, timing.made_at), (3, Cause::Expired as u8, BOOT + SECOND));
        // As the switch did with blue's flows, so the way back does with green's.
        let ack = tcp("192.0.2.1:1", WEB, ACK);
        let of_blue = tcp(CLIENT, WEB, ACK);
        if is_cut {
            is_reset(&host, &ack);
            is_reset(&host, &of_blue);
        } else {
            assert_eq!((sent_to(&host, &ack), sent_to(&host, &of_blue)), (at(GREEN), at(BLUE)));
        }
    }
}

#[test]
fn a_share_that_comes_back_ends_no_flow_by_a_deadline() {
    for (share, deadline) in [(0, NOW + 50), (3000, 0)] {
        let host = at_the_beginning();
        host.set_live(0, LiveWord::new(2, LiveFlags::NONE, 0, share), SwitchTerms::default());
        let guarded = Timing { window: SECOND, revert_at: BOOT + SECOND, drain_timeout: 50, ..Timing::default() };
        to_green(&host, false, guarded);
        later(&host, SECOND);
        new_flow(&host, 1);
        let word = host.word(0);
        assert_eq!((word.generation(), word.target_share(), word.flags()), (4, share, LiveFlags::DRAINING));
        assert_eq!(host.terms(0)[word.terms_slot()].drain_deadline, deadline);
    }
}

#[test]
fn an_open_flow_is_enough_to_go_back() {
    let host = at_the_beginning();
    let guarded = Timing { window: SECOND, revert_at: BOOT + SECOND, ..Timing::default() };
    to_green(&host, true, guarded);
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    later(&host, 2 * SECOND);
    is_reset(&host, &tcp(CLIENT, WEB, ACK));
    assert_eq!(host.word(0).generation(), 3);
}

#[test]
fn a_confirmed_switch_stays() {
    let host = at_the_beginning();
    let guarded = Timing { window: SECOND, revert_at: BOOT + SECOND, ..Timing::default() };
    let green = to_green(&host, false, guarded);
    let confirmed = green.with_flags(green.flags().without(LiveFlags::TIMED));
    host.set_live(0, confirmed, host.terms(0)[green.terms_slot()]);
    later(&host, 100 * SECOND);
    assert_eq!(new_flow(&host, 1), at(GREEN));
    assert_eq!(host.word(0), confirmed);
}

#[test]
fn a_scheduled_switch_takes_effect_at_its_instant_by_its_clock() {
    for (clock, now) in [(0, BOOT), (1, TAI)] {
        let host = at_the_beginning();
        sent_to(&host, &udp(CLIENT, DNS));
        let scheduled = Timing { activate_at: now + SECOND, clock, ..Timing::default() };
        let armed = to_green(&host, true, scheduled);
        later(&host, SECOND - 1);
        assert_eq!(new_flow(&host, 1), at(BLUE));
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS), "nothing is cut before");
        assert_eq!(host.word(0), armed);
        later(&host, SECOND);
        assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS), "cut");
        assert_eq!(new_flow(&host, 2), at(GREEN));
        assert_eq!(host.word(0), armed.with_flags(LiveFlags::CUT), "packets need not ask any more");
    }
}

#[test]
fn a_step_of_the_wall_clock_moves_no_deadline() {
    let host = at_the_beginning();
    to_green(&host, false, Timing { window: SECOND, revert_at: BOOT + SECOND, clock: 1, ..Timing::default() });
    host.set_clocks([BOOT, TAI + 3600 * SECOND]);
    assert_eq!(new_flow(&host, 1), at(GREEN));
    host.set_clocks([BOOT + SECOND, TAI - 3600 * SECOND]);
    assert_eq!(new_flow(&host, 2), at(BLUE));
}

#[test]
fn the_time_for_a_confirmation_begins_when_the_switch_takes_effect() {
    let host = at_the_beginning();
    to_green(&host, false, Timing { activate_at: TAI + SECOND, clock: 1, window: SECOND, ..Timing::default() });
    // The first packet comes late, and the time has begun without it.
    later(&host, SECOND + SECOND / 2);
    assert_eq!(new_flow(&host, 1), at(GREEN));
    assert_eq!(host.timings(0)[0].revert_at, BOOT + 2 * SECOND);
    later(&host, 2 * SECOND);
    assert_eq!(new_flow(&host, 2), at(BLUE));

    // Nobody came in between: both happen at once.
    let host = at_the_beginning();
    to_green(&host, false, Timing { activate_at: TAI + SECOND, clock: 1, window: SECOND, ..Timing::default() });
    later(&host, 3 * SECOND);
    assert_eq!(new_flow(&host, 1), at(BLUE));
    assert_eq!(host.word(0).generation(), 3);
}

#[test]
fn a_drain_that_packets_begin_has_a_deadline_too() {
    let mut host = at_the_beginning();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    to_green(&host, false, Timing { activate_at: BOOT + SECOND, drain_timeout: 50, ..Timing::default() });
    later(&host, SECOND);
    host.later(NOW + 7);
    new_flow(&host, 1);
    let terms = host.terms(0)[0];
    assert_eq!((terms.drain_deadline, terms.drain_began), (NOW + 57, NOW + 7));
    host.later(NOW + 58);
    is_reset(&host, &tcp(CLIENT, WEB, ACK));
}

#[test]
fn a_ramp_moves_the_share_by_the_clock_and_nobody_back() {
    let host = at_the_beginning();
    let ramp = Timing { activate_at: BOOT, ramp: 100 * SECOND, ..Timing::default() };
    let armed = to_green(&host, true, ramp);
    let mut green: Vec<bool> = vec![false; 400];
    for step in 0..=10_u16 {
        later(&host, u64::from(step) * 10 * SECOND);
        host.forget_flows();
        let now: Vec<bool> = (0..400).map(|port| new_flow(&host, port + 1) == at(GREEN)).collect();
        let share = now.iter().filter(|is_green| **is_green).count();
        let expected = usize::from(step) * 40;
        assert!(share.abs_diff(expected) <= 40, "{share} of 400 at step {step}");
        assert!(green.iter().zip(&now).all(|(before, now)| now >= before), "a flow went back at step {step}");
        assert_eq!(host.word(0) == armed, step < 10);
        green = now;
    }
    assert!(green.iter().all(|is_green| *is_green));
    assert_eq!(host.word(0), armed.with_flags(LiveFlags::CUT));
}

#[test]
fn a_word_of_a_program_that_writes_no_timing_counts_as_it_stands() {
    let host = at_the_beginning();
    let word = to_green(&host, false, Timing { activate_at: BOOT + SECOND, ..Timing::default() });
    let flipped = LiveWord::new(word.generation() + 2, LiveFlags::TIMED, 0, FULL_SHARE);
    host.set_live(0, flipped, SwitchTerms::default());
    assert_eq!(new_flow(&host, 1), at(GREEN));
    assert_eq!(host.word(0), flipped);
}

/// The colours that clients reach over both services, by many ports.
fn colours(host: &Host, clients: u32) -> Vec<Colour> {
    host.forget_flows();
    let of = |client: u32| {
        let from = |port: u16| SocketAddr::new(std::net::Ipv4Addr::from(0xc633_6400 + client).into(), port);
        let colours: Vec<_> = (1..=8)
            .flat_map(|port| {
                let web = sent_to(host, &PacketSpec::tcp(from(port), at(WEB), SYN)) == at(GREEN);
                let dns = sent_to(host, &PacketSpec::udp(from(port), at(DNS))) == at(GREEN_DNS);
                [web, dns]
            })
            .collect();
        assert!(colours.iter().all(|colour| *colour == colours[0]), "client {client} has met both colours");
        if colours[0] { Colour::Green } else { Colour::Blue }
    };
    (1..=clients).map(of).collect()
}

#[test]
fn a_client_meets_one_colour_and_a_growing_share_takes_nobody_back() {
    let mut scenario = shop();
    scenario.deployments[0].0.sticky = 1;
    scenario.deployments[0].0.client_prefix = [32, 64];
    let host = Host::load(scenario, NOW);
    let mut before = vec![Colour::Blue; 200];
    for (generation, share) in [(2, 1000), (3, 3000), (4, 7000), (5, 10_000)] {
        host.set_live(0, LiveWord::new(generation, LiveFlags::NONE, 0, share), SwitchTerms::default());
        let now = colours(&host, 200);
        let green = now.iter().filter(|colour| **colour == Colour::Green).count();
        assert!(green.abs_diff(usize::from(share) / 50) <= 30, "{green} of 200 at {share}");
        assert!(before.iter().zip(&now).all(|(before, now)| now >= before), "somebody went back at {share}");
        before = now;
    }
    // Those who came last go back first.
    for (generation, share) in [(6, 7000), (7, 3000), (8, 1000)] {
        host.set_live(0, LiveWord::new(generation, LiveFlags::NONE, 0, share), SwitchTerms::default());
        let now = colours(&host, 200);
        assert!(before.iter().zip(&now).all(|(before, now)| now <= before), "somebody came at {share}");
        before = now;
    }
}

#[test]
fn the_clients_of_a_prefix_are_one() {
    let mut scenario = shop();
    scenario.deployments[0].0.split_by = 2;
    scenario.deployments[0].0.client_prefix = [24, 64];
    let host = Host::load(scenario, NOW);
    host.set_live(0, LiveWord::new(2, LiveFlags::NONE, 0, 5000), SwitchTerms::default());
    let all = colours(&host, 200);
    assert!(all.iter().all(|colour| *colour == all[0]), "one network, one colour");
}
