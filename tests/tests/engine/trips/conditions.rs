//! When the conditions of a switch hold.

use super::*;

#[test]
fn resets_take_it_back_with_the_next_packet() {
    for vip in [WEB, WEB6] {
        let mut watched = watched(RESETS);
        watched.flows(vip, 189, Does::Answer);
        watched.flows(vip, 10, Does::Reset);
        watched.assert_stays();
        watched.flow(vip, Does::Answer);
        watched.assert_stays();
        assert_eq!(watched.host.trips(SHOP)[0].opened, 200);
        // 11 of 201 is more than 5 %.
        watched.flow(vip, Does::Reset);
        assert!(!watched.is_back(), "the packet after it");
        let client = watched.client(vip);
        let to = sent_to(&watched.host, &PacketSpec::tcp(client, at(vip), SYN));
        assert_eq!(to, at(if vip == WEB { BLUE } else { "[2001:db8:1::11]:8443" }));
        watched.assert_taken_back(Conditions::RESETS);
        // All services of the deployment are back.
        for (vip, backend) in [(DNS, BLUE_DNS), (DNS6, "[2001:db8:1::11]:5353")] {
            assert_eq!(watched.open(vip).backend, at(backend));
        }
        let word = watched.host.word(SHOP);
        watched.flows(vip, 300, Does::Reset);
        assert_eq!(watched.host.word(SHOP), word, "blue is not watched");
    }
}

#[test]
fn fewer_flows_than_asked_for_do_not_judge() {
    let mut watched = watched(RESETS);
    watched.flows(WEB, 199, Does::Reset);
    watched.assert_stays();
    watched.flow(WEB, Does::Reset);
    watched.judge();
    watched.assert_taken_back(Conditions::RESETS);
}

#[test]
fn flows_without_an_answer_count_after_a_second() {
    for vip in [WEB, WEB6, DNS, DNS6] {
        let mut watched = watched(UNANSWERED);
        watched.flows(vip, 400, Does::Nothing);
        for _ in 0..TICKS {
            watched.assert_stays();
            watched.pass(1);
        }
        watched.assert_stays();
        watched.pass(1);
        watched.judge();
        watched.assert_taken_back(Conditions::UNANSWERED);
    }
}

#[test]
fn a_share_below_the_limit_never_takes_it_back() {
    let mut watched = watched(Trips { resets: RESETS.resets, ..UNANSWERED });
    for round in 0..4000 {
        watched.flow(WEB, if round % 20 == 7 { Does::Nothing } else { Does::Answer });
        watched.flow(DNS, if round % 20 == 3 { Does::Nothing } else { Does::Answer });
        watched.flow(WEB6, if round % 10 == 5 { Does::Reset } else { Does::Answer });
        if round % 10 == 0 {
            watched.pass(1);
        }
        assert!(!watched.is_back(), "round {round}: {:?}", watched.host.trips(SHOP)[0]);
    }
    let trips = watched.host.trips(SHOP)[0];
    assert!(trips.judged > 11_000 && trips.missing > 300 && trips.reset == 400, "{trips:?}");
}

#[test]
fn five_percent_lost_are_found() {
    let mut watched = watched(Trips { unanswered: limit(4, 200), ..EMPTY });
    let mut rounds = 0;
    while !watched.is_back() {
        rounds += 1;
        assert!(rounds < 3000);
        watched.flow(WEB, if rounds % 20 == 0 { Does::Nothing } else { Does::Answer });
        if rounds % 10 == 0 {
            watched.pass(1);
        }
    }
    watched.assert_taken_back(Conditions::UNANSWERED);
}

#[test]
fn silence_takes_it_back_if_several_flows_were_opened() {
    for vip in [WEB, DNS, WEB6] {
        let mut watched = watched(SILENCE);
        watched.flow(vip, Does::Answer);
        watched.pass(100);
        watched.assert_stays();
        watched.flows(vip, 2, Does::Nothing);
        watched.pass(32);
        watched.assert_stays();
        watched.flow(vip, Does::Nothing);
        watched.judge();
        watched.assert_taken_back(Conditions::SILENCE);
    }
}

#[test]
fn one_answer_ends_a_silence() {
    let mut watched = watched(SILENCE);
    for _ in 0..20 {
        watched.flows(DNS, 20, Does::Nothing);
        watched.pass(31);
        watched.assert_stays();
        watched.flow(WEB, Does::Answer);
    }
    watched.flows(DNS, 20, Does::Nothing);
    watched.pass(31);
    watched.assert_stays();
    watched.pass(1);
    watched.judge();
    watched.assert_taken_back(Conditions::SILENCE);
}

#[test]
fn after_a_long_pause_old_flows_are_judged_and_new_ones_are_not() {
    for pause in [1, 31, 32, 33, 64, 1000, 1_000_000] {
        let mut watched = watched(Trips { unanswered: limit(99, 1000), ..EMPTY });
        watched.flows(WEB, 10, Does::Nothing);
        watched.pass(pause);
        watched.flows(WEB, 7, Does::Nothing);
        watched.judge();
        let trips = watched.host.trips(SHOP)[0];
        let expected = if pause > TICKS { 10 } else { 0 };
        assert_eq!((trips.judged, trips.missing), (expected, expected), "after {pause}");
        watched.pass(TICKS + 1);
        watched.judge();
        let trips = watched.host.trips(SHOP)[0];
        assert_eq!((trips.judged, trips.missing), (17, 17), "after {pause}");
    }
}

#[test]
fn packets_of_answered_flows_do_not_judge() {
    for vip in [WEB, DNS6] {
        let mut watched = watched(SILENCE);
        let answered = watched.open(vip);
        watched.answer(&answered, SYN | ACK);
        watched.flows(vip, 3, Does::Nothing);
        watched.pass(2 * TICKS);
        let mut again = answered.first.clone();
        again.flags = ACK;
        assert_eq!(sent_to(&watched.host, &again), answered.backend);
        watched.answer(&answered, ACK);
        assert_eq!(watched.host.word(SHOP), watched.word);
        watched.judge();
        watched.assert_taken_back(Conditions::SILENCE);
    }
}
