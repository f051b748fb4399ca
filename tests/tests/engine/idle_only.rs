//! Preview address and testers.

use crate::*;

#[test]
fn flows_of_a_preview_address_end_when_it_becomes_something_else() {
    let mut host = host();
    sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN));
    host.remove_vip(1);
    passes(&host, &tcp(GREEN, CLIENT, ACK));
    let packet = tcp(CLIENT, WEB_PREVIEW, ACK).frame();
    assert_eq!(host.ingress(&packet), Outcome { action: Action::Pass, frame: packet });
}

#[test]
fn preview_and_testers_reach_the_idle_colour_and_nobody_else_does() {
    let mut host = host();
    host.scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN)), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, SYN | ACK)), at(WEB_PREVIEW));
    assert_eq!(sent_to(&host, &tcp(TESTER, WEB, SYN)), at(GREEN));
    assert_eq!(sent_to(&host, &tcp("198.51.101.5:40000", WEB, SYN)), at(BLUE));
}

#[test]
fn a_testers_open_connection_leaves_the_colour_that_becomes_live() {
    let mut host = host();
    host.scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    for (from, to) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW)] {
        sent_to(&host, &tcp(from, to, SYN));
        assert_eq!(sent_to(&host, &tcp(from, to, ACK)), at(GREEN));
    }
    drain(&host);
    for (from, to) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW)] {
        let segment = tcp(from, to, ACK);
        is_reset(&host, &segment);
        assert_eq!(sent_to(&host, &tcp(from, to, SYN)), at(BLUE), "{from} {to}");
    }
}
