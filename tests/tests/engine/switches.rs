//! What a switch does to open flows: drain, cut, second chance, entries that were lost.

use crate::*;

#[test]
fn an_open_flow_stays_through_a_drain_and_a_new_one_does_not() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
    drain(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(GREEN));
}

#[test]
fn a_connection_whose_entry_was_lost_gets_a_second_chance_while_the_drain_lasts() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&mut host);
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(host.events(Event::SecondChance), 1);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
}

#[test]
fn without_a_drain_a_lost_connection_follows_the_live_colour() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    cut(&mut host);
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    assert_eq!(host.events(Event::SecondChance), 0);
}

#[test]
fn a_cut_moves_udp_with_the_first_packet_and_silences_the_old_colour() {
    let mut host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&mut host);
    assert_eq!(host.egress(&udp(BLUE_DNS, CLIENT).frame()).action, Action::Drop);
    assert_eq!(host.events(Event::EndedFlow), 1);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
    assert_eq!(answers_as(&host, &udp(GREEN_DNS, CLIENT)), at(DNS));
}

#[test]
fn a_cut_sends_tcp_to_the_new_colour_whose_reset_comes_from_the_vip() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    cut(&mut host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, RST)), at(WEB));
}

#[test]
fn what_a_cut_has_ended_stays_ended_in_later_generations() {
    let mut host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&mut host);
    // A drain back carries the cut on: green is cut from nothing, blue's flow of generation 1 is over.
    let carried = host.scenario.deployments[0].2[0];
    switch(&mut host, LiveFlags::DRAINING.with(LiveFlags::CUT), carried);
    drain_with_terms(&mut host, carried);
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
}

fn drain_with_terms(host: &mut Host, terms: SwitchTerms) {
    switch(host, LiveFlags::DRAINING.with(LiveFlags::CUT), terms);
}

#[test]
fn a_drain_ends_what_is_left_at_its_deadline() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    let terms = SwitchTerms { drain_deadline: NOW + 10, second_chance_until: NOW + 10, ..SwitchTerms::default() };
    switch(&mut host, LiveFlags::DRAINING, terms);
    host.later(NOW + 9);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN), "no second chance after the deadline");
}

#[test]
fn a_connection_that_had_a_second_chance_ends_at_the_deadline_too() {
    let mut host = host();
    let terms = SwitchTerms { drain_deadline: NOW + 10, second_chance_until: NOW + 10, ..SwitchTerms::default() };
    switch(&mut host, LiveFlags::DRAINING, terms);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
}

#[test]
fn a_preview_opened_since_the_switch_outlasts_the_drain() {
    let mut host = host();
    let terms = SwitchTerms { drain_deadline: NOW + 10, second_chance_until: NOW + 10, ..SwitchTerms::default() };
    switch(&mut host, LiveFlags::DRAINING, terms);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN)), at(BLUE));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, ACK)), at(BLUE));
    assert_eq!(host.traffic(0, 0).flows_opened, 1, "it is the same flow");
}

#[test]
fn an_entry_lost_in_one_direction_is_restored_from_the_other() {
    for replies in [true, false] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        sent_to(&host, &tcp(CLIENT, WEB, ACK));
        answers_as(&host, &tcp(BLUE, CLIENT, ACK));
        host.forget_direction(replies);
        cut_of_nothing(&mut host);
        host.later(NOW + 16);
        if replies {
            sent_to(&host, &tcp(CLIENT, WEB, ACK));
            assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
        } else {
            answers_as(&host, &tcp(BLUE, CLIENT, ACK));
            assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "though green is live and nothing drains");
        }
    }
}

#[test]
fn the_end_of_a_connection_does_not_restore_an_entry_that_would_look_open() {
    for flags in [RST, FIN | ACK] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        host.forget_direction(false);
        host.later(NOW + 16);
        answers_as(&host, &tcp(BLUE, CLIENT, flags));
        drain(&mut host);
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(GREEN), "{flags:#x}");
    }
}

/// Makes the other colour live and lets every open flow stay, for as long as it is known.
fn cut_of_nothing(host: &mut Host) {
    switch(host, LiveFlags::NONE, SwitchTerms::default());
}

#[test]
fn a_flow_whose_backend_was_removed_is_decided_anew_though_its_slot_was_given_away() {
    for identity in [Identity { epoch: 7, in_use: 0 }, Identity { epoch: 8, in_use: 1 }] {
        let mut host = host();
        sent_to(&host, &tcp(CLIENT, WEB, SYN));
        drain(&mut host);
        host.change_backend(0, |blue| {
            assert_eq!(blue.identity, Identity { epoch: 7, in_use: 1 });
            blue.identity = identity;
            blue.addr = at("10.9.9.9:1").ip().into();
        });
        // Cleared: no second chance on a colour without its backend.
        switch(&mut host, LiveFlags::NONE, SwitchTerms::default());
        switch(&mut host, LiveFlags::NONE, SwitchTerms::default());
        assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(GREEN));
    }
}
