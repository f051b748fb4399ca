//! Which packets wait while a deployment is frozen, and when they go on.

use crate::*;
use bg_common::{ClockId, Colour, Timing};

const UNTIL: u64 = 5_000_000_000;

/// Freezes the deployment until [`UNTIL`]; the generation stays.
fn freeze(host: &Host) {
    let word = host.word(0);
    host.set_timing(0, word, Timing { hold_until: UNTIL, ..host.timings(0)[word.terms_slot()] });
    host.set_live(0, word.with_flags(word.flags().with(LiveFlags::HOLD)), host.terms(0)[word.terms_slot()]);
    at_ns(host, UNTIL - 1);
}

fn at_ns(host: &Host, now: u64) {
    host.set_clocks([now, 0]);
}

fn thaw(host: &Host) {
    let word = host.word(0);
    let terms = host.terms(0)[word.terms_slot()];
    host.set_live(0, word.with_flags(word.flags().without(LiveFlags::HOLD)), terms);
}

/// Asserts that a packet is held, by tc, and left as it is by XDP in front of it.
#[track_caller]
fn waits(host: &Host, packet: &PacketSpec) {
    let (frame, held, flows) = (packet.frame(), host.events(Event::Held), host.flows());
    assert_eq!(host.early(&frame), Outcome { action: Action::Defer, frame: frame.clone() }, "{packet:?}");
    assert_eq!(host.events(Event::Held), held, "XDP counts nothing");
    assert_eq!(host.ingress(&frame), Outcome { action: Action::Drop, frame }, "{packet:?}");
    assert_eq!(host.events(Event::Held), held + 1);
    assert_eq!(host.flows(), flows, "{packet:?}");
}

#[test]
fn packets_that_would_open_a_flow_wait() {
    let host = host();
    freeze(&host);
    waits(&host, &tcp(CLIENT, WEB, SYN));
    waits(&host, &udp(CLIENT, DNS));
    // A connection in mid-stream is in flight, though the table has lost it.
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(BLUE));
    thaw(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
}

#[test]
fn open_flows_go_on() {
    let host = host();
    connect(&host, CLIENT, WEB);
    sent_to(&host, &udp(CLIENT, DNS));
    sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN));
    freeze(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    // It was on its way before the freeze.
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(BLUE));
    // Another connection from the same port is a new flow.
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, RST)), at(BLUE));
    waits(&host, &tcp(CLIENT, WEB, SYN));
}

#[test]
fn a_flow_that_a_cut_has_ended_waits() {
    let host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    freeze(&host);
    let word = host.word(0);
    let terms = SwitchTerms { ended_before: [word.generation() + 1, 0], ..SwitchTerms::default() };
    switch(&host, LiveFlags::CUT.with(LiveFlags::HOLD), terms);
    host.set_timing(0, host.word(0), Timing { hold_until: UNTIL, ..Timing::default() });
    waits(&host, &udp(CLIENT, DNS));
    thaw(&host);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
}

#[test]
fn testers_and_previews_do_not_wait() {
    let mut scenario = shop();
    scenario.tester(0, "198.51.100.0".parse().unwrap(), 24);
    let host = Host::load(scenario, NOW);
    freeze(&host);
    assert_eq!(sent_to(&host, &tcp(TESTER, WEB, SYN)), at(GREEN));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN)), at(GREEN));
    waits(&host, &tcp(CLIENT, WEB, SYN));
}

#[test]
fn a_freeze_ends_by_itself_and_the_first_packet_says_so() {
    let host = host();
    freeze(&host);
    waits(&host, &tcp(CLIENT, WEB, SYN));
    let frozen = host.word(0);
    at_ns(&host, UNTIL);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(host.word(0), frozen.with_flags(LiveFlags::NONE));
    // Nobody looks at the clock or the terms any more.
    at_ns(&host, 0);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(BLUE));
    assert_eq!(host.terms_reads(), 0);
}

#[test]
fn a_deployment_that_is_not_frozen_reads_no_terms() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    assert_eq!(host.terms_reads(), 0);
}

#[test]
fn a_packet_that_is_played_back_goes_on_and_later_datagrams_of_its_flow_wait_behind_others() {
    let host = host();
    freeze(&host);
    host.holds.set(None);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(DNS));
    // The queue is still open. These are not played back.
    host.holds.set(Some(Event::Held));
    waits(&host, &udp(CLIENT, DNS));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "the client has an answer, so nothing of it is held");
    // The next one in the queue.
    host.holds.set(None);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    host.holds.set(Some(Event::Held));
    thaw(&host);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(host.early(&udp(CLIENT, DNS).frame()).action, Action::Redirect);
    // In the next freeze it is a flow like any other.
    freeze(&host);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
}

#[test]
fn a_packet_of_this_host_itself_that_is_played_back_gets_a_route_again() {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.service(&ServiceAt { mode: Mode::Local, ..service(WEB, None, Protocol::Tcp, BLUE, GREEN) });
    let host = Host::load(scenario, NOW);
    freeze(&host);
    host.holds.set(None);
    let ports = (40_000..).map(|port| SocketAddr::new(at(CLIENT).ip(), port));
    let cases = [(true, true, Action::ToSelf), (true, false, Action::Deliver), (false, true, Action::Deliver)];
    for (client, (is_own, is_played_back, action)) in ports.zip(cases) {
        host.is_own.set(is_own);
        host.is_played_back.set(is_played_back);
        let Outcome { action: taken, frame } = host.ingress(&PacketSpec::tcp(client, at(WEB), SYN).frame());
        assert_eq!((taken, ends(&frame).1), (action, at(BLUE)), "{is_own} {is_played_back}");
        // Its next packets have a route.
        host.is_played_back.set(false);
        assert_eq!(host.ingress(&PacketSpec::tcp(client, at(WEB), ACK).frame()).action, Action::Deliver);
    }
}

#[test]
fn what_cannot_be_held_is_dropped_for_a_reason() {
    for reason in [Event::Frozen, Event::HoldOverflow] {
        let host = host();
        freeze(&host);
        host.holds.set(Some(reason));
        assert_eq!(host.ingress(&tcp(CLIENT, WEB, SYN).frame()).action, Action::Drop);
        assert_eq!(host.events(reason), 1);
    }
}

#[test]
fn packets_that_go_by_the_word_before_a_scheduled_one_wait_too() {
    let host = host();
    let (before, both) = (host.word(0), LiveFlags::TIMED.with(LiveFlags::DRAINING));
    let scheduled = LiveWord::new(before.generation() + 1, both, 0, Colour::Green.full_share());
    let schedule = Timing {
        activate_at: UNTIL + 10,
        before,
        clock: ClockId::Boot as u8,
        hold_until: UNTIL,
        generation: scheduled.generation(),
        ..Timing::default()
    };
    host.set_timing(0, before, Timing { hold_until: UNTIL, ..Timing::default() });
    host.set_timing(0, scheduled, schedule);
    host.set_live(0, scheduled.with_flags(both.with(LiveFlags::HOLD)), SwitchTerms::default());
    at_ns(&host, UNTIL - 1);
    waits(&host, &tcp(CLIENT, WEB, SYN));
    at_ns(&host, UNTIL);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    at_ns(&host, UNTIL + 10);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
}
