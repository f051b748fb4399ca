//! What packets note for the receipt of a switch, and that they note nothing otherwise.

use bg_common::{DeploymentRow, FlowState};

use crate::*;

/// As `bgctl switch` does just before the store: the switch makes generation 2.
fn armed(mut scenario: Scenario) -> Host {
    scenario.deployments[0].0.receipt = DeploymentRow::receipt_of(2);
    Host::load(scenario, NOW)
}

fn noted(host: &Host) -> Vec<(u16, bool)> {
    host.decisions.take()
}

#[test]
fn packets_note_nothing_unless_a_switch_is_being_made() {
    let host = host();
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    drain(&host);
    sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN));
    assert_eq!(noted(&host), []);
}

#[test]
fn a_flow_is_noted_once_with_the_word_that_has_decided() {
    let host = armed(shop());
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    assert_eq!(noted(&host), [(0, false)]);
    drain(&host);
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, ACK)), at(BLUE));
    assert_eq!(noted(&host), [], "an open flow");
    assert_eq!(sent_to(&host, &udp("192.0.2.1:40001", DNS)), at(GREEN_DNS));
    assert_eq!(noted(&host), [(0, true)]);
    assert_eq!(sent_to(&host, &udp("192.0.2.1:40001", DNS)), at(GREEN_DNS));
    assert_eq!(noted(&host), []);
}

#[test]
fn a_flow_that_a_cut_moves_is_noted_and_says_that_it_was_there_before() {
    let host = armed(shop());
    sent_to(&host, &udp(CLIENT, DNS));
    cut(&host);
    host.decisions.take();
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
    assert_eq!(noted(&host), [(0, true)]);
    assert!(host.flows()[&flow_of(CLIENT, 2)].state.has(FlowState::REUSED));
    assert!(!host.flows().values().any(|flow| flow.generation == 1), "{:?}", host.flows());
}

#[test]
fn flows_to_a_preview_address_are_not_noted() {
    let host = armed(shop());
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB_PREVIEW, SYN)), at(GREEN));
    drain(&host);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB_PREVIEW, SYN)), at(BLUE));
    assert_eq!(noted(&host), []);
}
