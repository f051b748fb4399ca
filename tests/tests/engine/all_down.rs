//! All backends of a colour are down, and the health checks are configured to refuse new flows then.

use crate::{
    idle_only::{refused, unreachable},
    *,
};
use bg_common::NO_BACKEND;

const OTHER: &str = "198.51.200.9:41000";

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

    // The previews' idle colour has no backend either, which is another reason.
    assert_eq!(host.ingress(&tcp(OTHER, WEB_PREVIEW, RST).frame()).action, Action::Drop);
    assert_eq!((host.events(Event::AllDown), host.events(Event::IdleNotReady)), (3, 1));
}
