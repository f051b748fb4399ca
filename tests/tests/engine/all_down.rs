//! All backends of a colour are down, and the health checks are configured to refuse new flows then.

use crate::{
    idle_only::{refused, unreachable},
    *,
};
use bg_common::{Colour, FULL_SHARE, NO_BACKEND, TableSpan};

const OTHER: &str = "198.51.200.9:41000";

/// No backend of a colour gets a new flow any more.
fn down(host: &mut Host, colour: Colour) {
    for (_, row) in &host.scenario.services {
        let TableSpan { base, len } = row.tables[colour as usize];
        host.scenario.maglev[base as usize..][..len as usize].fill(NO_BACKEND);
    }
}

/// A segment inside the client's connection is dropped and counted, at tc and XDP, and the client hears nothing.
#[track_caller]
fn waits(host: &Host, segment: &PacketSpec) {
    let before = host.events(Event::AllDown);
    assert_eq!(host.ingress(&segment.frame()).action, Action::Drop, "{segment:?}");
    assert_eq!(host.early(&segment.frame()).action, Action::Drop, "{segment:?}");
    assert_eq!(host.events(Event::AllDown), before + 2, "{segment:?}");
}

#[test]
fn new_flows_are_refused_and_counted_and_open_ones_go_on() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    host.scenario.maglev.fill(NO_BACKEND);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));

    assert!(refused(&host, &tcp(OTHER, WEB, SYN)).2, "it acknowledges the SYN");
    assert_eq!(host.ingress(&tcp(OTHER, WEB, RST).frame()).action, Action::Drop);
    // XDP leaves to tc what it cannot send back by itself.
    let syn = tcp(OTHER, WEB, SYN).frame();
    assert_eq!(host.early(&syn), Outcome { action: Action::Defer, frame: syn.clone() });
    assert_eq!((host.events(Event::AllDown), host.events(Event::MissingRow)), (2, 0));
    unreachable(&host, &udp(OTHER, DNS));
    assert_eq!((host.events(Event::AllDown), host.events(Event::IdleNotReady)), (3, 0));

    // Testers and previews, whose idle colour is down too, are no exception.
    assert_eq!(host.ingress(&tcp(OTHER, WEB_PREVIEW, RST).frame()).action, Action::Drop);
    assert!(refused(&host, &tcp(OTHER, WEB_PREVIEW, SYN)).2, "it acknowledges the SYN");
    assert_eq!((host.events(Event::AllDown), host.events(Event::IdleNotReady)), (5, 0));
}

/// Its backend may be well although it does not pass its checks, and go on when it does.
#[test]
fn an_open_connection_whose_row_is_lost_is_not_reset() {
    let mut host = host();
    connect(&host, CLIENT, WEB);
    let maglev = host.scenario.maglev.clone();
    host.scenario.maglev.fill(NO_BACKEND);
    host.forget_flows();
    for to in [WEB, WEB_PREVIEW] {
        waits(&host, &tcp(CLIENT, to, ACK));
    }
    host.scenario.maglev = maglev;
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
}

#[test]
fn an_open_connection_whose_row_is_lost_gets_back_to_its_colour_while_the_other_is_down() {
    let share = |host: &Host| {
        host.set_live(0, LiveWord::new(2, LiveFlags::NONE, 0, FULL_SHARE - 1), SwitchTerms::default());
    };
    let states: [&dyn Fn(&Host); 2] = [&drain, &share];
    for (nth, prepare) in states.into_iter().enumerate() {
        let mut host = host();
        connect(&host, CLIENT, WEB);
        prepare(&host);
        down(&mut host, Colour::Green);
        for _ in 0..3 {
            host.forget_flows();
            assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE), "{nth}");
            assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB), "{nth}");
        }
        assert_eq!(host.flow(flow_of(CLIENT, 0)).expect("a flow").generation, 2 - u32::from(nth == 0), "{nth}");
        assert_eq!(host.all_events().iter().sum::<u64>(), 0, "{nth}: nothing is lost");
        // A new one does not.
        assert!(refused(&host, &tcp(OTHER, WEB, SYN)).2, "{nth}");
    }
}

/// It is of the colour that is down, or of nobody. As long as that is open, the client does not hear of it.
#[test]
fn one_that_the_other_colour_refuses_waits_until_its_own_is_back() {
    for loses_its_row in [false, true] {
        let mut host = host();
        let maglev = host.scenario.maglev.clone();
        drain(&host);
        down(&mut host, Colour::Green);
        let segment = tcp(CLIENT, WEB, ACK);
        assert_eq!(sent_to(&host, &segment), at(BLUE));
        assert_eq!(host.egress(&tcp(BLUE, CLIENT, RST).frame()).action, Action::Drop);
        for _ in 0..2 {
            if loses_its_row {
                host.forget_flows();
            }
            waits(&host, &segment);
        }
        host.scenario.maglev = maglev;
        assert_eq!(sent_to(&host, &segment), at(GREEN));
        assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, ACK)), at(WEB));
        assert_eq!((host.events(Event::SecondChance), host.events(Event::EndedReset)), (1, 0));
    }
}

/// The live colour has refused it, and the other one is down.
#[test]
fn one_that_the_live_colour_refuses_waits_for_the_other_one() {
    for loses_its_row in [false, true] {
        let mut host = host();
        connect(&host, CLIENT, WEB);
        let maglev = host.scenario.maglev.clone();
        drain(&host);
        down(&mut host, Colour::Blue);
        host.forget_flows();
        let segment = tcp(CLIENT, WEB, ACK);
        assert_eq!(sent_to(&host, &segment), at(GREEN));
        assert_eq!(host.egress(&tcp(GREEN, CLIENT, RST).frame()).action, Action::Drop);
        for _ in 0..2 {
            if loses_its_row {
                host.forget_flows();
            }
            waits(&host, &segment);
        }
        host.scenario.maglev = maglev;
        assert_eq!(sent_to(&host, &segment), at(BLUE));
        assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    }
}

/// Other refusals may take the place of this one. The row still tells of it, and back there the connection would be refused to its end.
#[test]
fn one_that_a_colour_has_refused_does_not_get_back_to_it_although_its_refusal_is_forgotten() {
    let mut host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    host.forget_flows();
    let segment = tcp(CLIENT, WEB, ACK);
    assert_eq!(sent_to(&host, &segment), at(GREEN));
    assert_eq!(host.egress(&tcp(GREEN, CLIENT, RST).frame()).action, Action::Drop);
    host.forget_refusals();
    let maglev = host.scenario.maglev.clone();
    down(&mut host, Colour::Blue);
    waits(&host, &segment);
    host.scenario.maglev = maglev;
    assert_eq!(sent_to(&host, &segment), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
}

#[test]
fn nobody_gets_to_a_colour_whose_connections_were_cut_or_to_the_live_one_from_the_idle_one() {
    let mut cut_off = host();
    cut(&cut_off);
    down(&mut cut_off, Colour::Green);
    waits(&cut_off, &tcp(CLIENT, WEB, ACK));

    let mut host = host();
    drain(&host);
    down(&mut host, Colour::Blue);
    waits(&host, &tcp(CLIENT, WEB_PREVIEW, ACK));
}
