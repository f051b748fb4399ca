//! What a switch does to open flows: drain, cut, and the end of a drain.

use crate::*;

#[test]
fn an_open_flow_stays_through_a_drain_and_a_new_one_does_not() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
    drain(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(GREEN));
}

#[test]
fn without_a_drain_a_lost_connection_follows_the_live_colour() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    cut(&host);
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    assert_eq!(host.events(Event::SecondChance), 0);
}

#[test]
fn a_cut_moves_udp_with_the_first_packet_and_silences_the_old_colour() {
    let host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&host);
    assert_eq!(host.egress(&udp(BLUE_DNS, CLIENT).frame()).action, Action::Drop);
    assert_eq!(host.events(Event::EndedFlow), 1);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
    assert_eq!(answers_as(&host, &udp(GREEN_DNS, CLIENT)), at(DNS));
}

#[test]
fn a_cut_ends_a_flow_whatever_its_next_packet_says() {
    for last in [SYN, ACK] {
        for next in [ACK, SYN, FIN | ACK, SYN | ACK] {
            let host = host();
            sent_to(&host, &tcp(CLIENT, WEB, SYN));
            sent_to(&host, &tcp(CLIENT, WEB, last));
            cut(&host);
            let next = tcp(CLIENT, WEB, next);
            match next.flags {
                SYN => assert_eq!(sent_to(&host, &next), at(GREEN), "{last:#x}"),
                _ => is_reset(&host, &next),
            }
        }
    }
}

#[test]
fn what_a_cut_has_ended_stays_ended_in_later_generations() {
    let host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&host);
    // A drain back carries the cut on: green is cut from nothing, blue's flow of generation 1 is over.
    let carried = host.terms(0)[0];
    switch(&host, LiveFlags::DRAINING.with(LiveFlags::CUT), carried);
    drain_with_terms(&host, carried);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
}

fn drain_with_terms(host: &Host, terms: SwitchTerms) {
    switch(host, LiveFlags::DRAINING.with(LiveFlags::CUT), terms);
}

#[test]
fn a_drain_ends_what_is_left_at_its_deadline() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain_until(&host, NOW + 10);
    host.later(NOW + 9);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    host.later(NOW + 10);
    is_reset(&host, &tcp(CLIENT, WEB, ACK));
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN), "no second chance after the deadline");
}

#[test]
fn a_preview_opened_since_the_switch_outlasts_the_drain() {
    let mut host = host();
    drain_until(&host, NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN)), at(BLUE));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, ACK)), at(BLUE));
    assert_eq!(host.traffic(0, 0).flows_opened, 1, "it is the same flow");
}

#[test]
fn a_flow_whose_backend_was_removed_is_decided_anew_though_its_slot_was_given_away() {
    for identity in [Identity { epoch: 7, in_use: 0 }, Identity { epoch: 8, in_use: 1 }] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        drain(&host);
        host.change_backend(0, |blue| {
            assert_eq!(blue.identity, Identity { epoch: 7, in_use: 1 });
            blue.identity = identity;
            blue.addr = at("10.9.9.9:1").ip().into();
        });
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    }
}

#[test]
fn whoever_opens_a_flow_after_the_deadline_ends_the_drain() {
    let mut host = host();
    connect(&host, CLIENT, WEB);
    drain_until(&host, NOW + 10);
    let draining = host.word(0);
    host.later(NOW + 9);
    sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN));
    assert_eq!(host.word(0), draining, "it lasts until the deadline");
    host.later(NOW + 10);
    sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK));
    assert_eq!(host.word(0), draining, "a packet of an open flow need not look");
    sent_to(&host, &udp("192.0.2.1:40002", DNS));
    assert_eq!(host.word(0), draining.with_flags(LiveFlags::CUT));
    assert_eq!(host.terms(0)[draining.terms_slot()].ended_before, [2, 0]);
    // Another one changes nothing more.
    sent_to(&host, &udp("192.0.2.1:40003", DNS));
    assert_eq!(host.word(0), draining.with_flags(LiveFlags::CUT));
    // What the drain has ended has ended, whenever it is heard of again.
    is_reset(&host, &tcp(CLIENT, WEB, ACK));
}

#[test]
fn the_end_of_a_drain_ends_flows_of_the_colour_that_drains_alone() {
    let mut host = host();
    let (on_blue, on_green, preview) = (CLIENT, "192.0.2.1:40001", "192.0.2.1:40002");
    connect(&host, on_blue, WEB);
    drain(&host);
    connect(&host, on_green, WEB);
    drain(&host);
    // Blue is live again in generation 3, and green drains.
    assert_eq!(sent_to(&host, &tcp(on_blue, WEB, ACK)), at(BLUE));
    drain_until(&host, NOW + 10);
    assert_eq!(host.word(0).generation(), 4, "green is live");
    connect(&host, preview, WEB_PREVIEW);
    host.later(NOW + 10);
    sent_to(&host, &udp("192.0.2.9:1", DNS));
    assert_eq!(host.word(0).flags(), LiveFlags::CUT);
    let of_generation_1 = tcp(on_blue, WEB, ACK);
    is_reset(&host, &of_generation_1);
    assert_eq!(sent_to(&host, &tcp(on_green, WEB, ACK)), at(GREEN), "of generation 2, but of the live colour");
    assert_eq!(host.traffic(0, 1).flows_opened, 1, "which goes on");
    assert_eq!(sent_to(&host, &tcp(preview, WEB_PREVIEW, ACK)), at(BLUE), "opened since the switch");
}

#[test]
fn what_was_cut_before_stays_cut_when_a_drain_ends() {
    let mut host = host();
    // Green is cut in generation 3, then blue drains in generation 4.
    drain(&host);
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&host);
    let carried = SwitchTerms { drain_deadline: NOW + 10, ..host.terms(0)[1] };
    assert_eq!(carried.ended_before, [0, 3]);
    switch(&host, LiveFlags::DRAINING.with(LiveFlags::CUT), carried);
    host.later(NOW + 10);
    sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN));
    assert_eq!((host.word(0).flags(), host.terms(0)[0].ended_before), (LiveFlags::CUT, [4, 3]));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
    assert_eq!(host.traffic(1, 1).flows_opened, 2, "the first flow on green was cut, and this is another one");
}

#[test]
fn what_no_cut_has_ended_does_not_end_with_a_drain_whose_terms_have_an_old_floor() {
    let mut host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    connect(&host, "192.0.2.1:40001", WEB);
    // Without the flag for cuts nobody has asked for a floor.
    let stale = SwitchTerms { ended_before: [0, 9], drain_deadline: NOW + 10, ..SwitchTerms::default() };
    let word = host.word(0);
    host.set_live(0, LiveWord::new(word.generation() + 1, LiveFlags::DRAINING, 0, word.target_share()), stale);
    host.later(NOW + 10);
    sent_to(&host, &udp("192.0.2.9:1", DNS));
    assert_eq!(host.terms(0)[1].ended_before, [3, 0]);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(GREEN));
    assert_eq!(host.traffic(0, 1).flows_opened, 1);
}

#[test]
fn a_drain_without_a_deadline_goes_on() {
    let mut host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    let draining = host.word(0);
    for later in [1, 1_000_000, 2_000_000_000] {
        host.later(NOW.wrapping_add(later));
        sent_to(&host, &udp(&format!("192.0.2.9:{}", later % 9999), DNS));
    }
    assert_eq!(host.word(0), draining);
}

#[test]
fn packets_of_flows_opened_since_the_switch_read_no_terms() {
    let host = host();
    connect(&host, CLIENT, WEB);
    sent_to(&host, &udp("192.0.2.1:53", DNS));
    assert_eq!(host.terms_reads(), 0, "nothing was switched");
    drain(&host);
    connect(&host, "192.0.2.1:40001", WEB);
    sent_to(&host, &udp("192.0.2.1:54", DNS));
    for packet in [tcp("192.0.2.1:40001", WEB, ACK), tcp("192.0.2.1:40001", WEB, FIN | ACK), udp("192.0.2.1:54", DNS)] {
        sent_to(&host, &packet);
        assert_eq!(host.terms_reads(), 0, "{packet:?}");
    }
    for answer in [tcp(GREEN, "192.0.2.1:40001", ACK), udp(GREEN_DNS, "192.0.2.1:54")] {
        host.egress(&answer.frame());
        assert_eq!(host.terms_reads(), 0, "{answer:?}");
    }
    // Those that may have ended ask, once.
    for packet in [tcp(CLIENT, WEB, ACK), udp("192.0.2.1:53", DNS)] {
        sent_to(&host, &packet);
        assert_eq!(host.terms_reads(), 1, "{packet:?}");
    }
    host.egress(&udp(BLUE_DNS, "192.0.2.1:53").frame());
    assert_eq!(host.terms_reads(), 1);
}

#[test]
fn a_drain_that_has_ended_costs_flows_opened_since_nothing() {
    let mut host = host();
    drain_until(&host, NOW + 10);
    connect(&host, CLIENT, WEB);
    host.later(NOW + 10);
    sent_to(&host, &udp("192.0.2.9:1", DNS));
    assert_eq!(host.terms_reads(), 1, "to end the drain");
    for packet in [udp("192.0.2.9:2", DNS), tcp(CLIENT, WEB, ACK), tcp("192.0.2.1:40001", WEB, SYN)] {
        sent_to(&host, &packet);
        assert_eq!(host.terms_reads(), 0, "{packet:?}");
    }
}
