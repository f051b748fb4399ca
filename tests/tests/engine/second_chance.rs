//! Connections without a row. While a drain or a share lasts such a segment goes to the colour of new flows, and if that refuses it, the next one
//! goes to the other colour: the client does not hear of the first refusal.

use crate::*;
use bg_common::{FULL_SHARE, Timing};

fn segment() -> PacketSpec {
    PacketSpec { sequence: 4711, ..tcp(CLIENT, WEB, ACK) }
}

/// A segment of a connection that the backend does not know is answered by this.
fn refusal(backend: &str) -> PacketSpec {
    tcp(backend, CLIENT, RST)
}

#[track_caller]
fn is_dropped(host: &Host, packet: &PacketSpec) {
    let before = host.events(Event::SecondChance);
    assert_eq!(host.egress(&packet.frame()).action, Action::Drop, "{packet:?}");
    assert_eq!(host.events(Event::SecondChance), before + 1);
}

/// Sends a segment of the connection, which its backend then refuses.
#[track_caller]
fn is_refused_by(host: &Host, backend: &str) {
    assert_eq!(sent_to(host, &segment()), at(backend));
    is_dropped(host, &refusal(backend));
}

#[test]
fn a_connection_opened_before_the_switch_gets_back_to_its_colour() {
    let host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    host.forget_flows();
    is_refused_by(&host, GREEN);
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    assert_eq!(sent_to(&host, &segment()), at(BLUE), "and stays there");
    assert_eq!(host.all_events().iter().sum::<u64>(), 1);
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, SYN)), at(GREEN));
}

#[test]
fn a_connection_opened_after_the_switch_stays() {
    let host = host();
    drain(&host);
    connect(&host, CLIENT, WEB);
    host.forget_flows();
    assert_eq!(sent_to(&host, &segment()), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, ACK)), at(WEB));
    assert_eq!(host.events(Event::SecondChance), 0);
    // From now on a reset is what it says.
    assert_eq!(answers_as(&host, &refusal(GREEN)), at(WEB));
}

#[test]
fn after_a_rollback_connections_of_both_colours_get_back() {
    let host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    connect(&host, "192.0.2.1:40001", WEB);
    drain(&host);
    host.forget_flows();
    // Blue, which is live again, knows the first one.
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    let of_green = |flags| tcp("192.0.2.1:40001", WEB, flags);
    assert_eq!(sent_to(&host, &of_green(ACK)), at(BLUE));
    is_dropped(&host, &tcp(BLUE, "192.0.2.1:40001", RST));
    assert_eq!(sent_to(&host, &of_green(ACK)), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, "192.0.2.1:40001", ACK)), at(WEB));
}

#[test]
fn every_refusal_of_the_segments_that_were_on_the_way_is_dropped() {
    let host = host();
    drain(&host);
    for _ in 0..3 {
        assert_eq!(sent_to(&host, &segment()), at(GREEN));
    }
    for _ in 0..3 {
        is_dropped(&host, &refusal(GREEN));
    }
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
    // One that comes late is not of the colour that has the connection now: the client does not know its sender.
    passes(&host, &refusal(GREEN));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
}

#[test]
fn what_both_colours_refuse_is_refused() {
    let host = host();
    drain(&host);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
    for _ in 0..2 {
        assert_eq!(answers_as(&host, &refusal(BLUE)), at(WEB));
    }
    assert_eq!(sent_to(&host, &segment()), at(BLUE), "the last segments of it");
    assert_eq!(answers_as(&host, &refusal(BLUE)), at(WEB));
    assert_eq!(host.events(Event::SecondChance), 1);
    // The client begins anew.
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(GREEN));
}

#[test]
fn a_new_connection_after_a_refusal_goes_to_the_live_colour() {
    let host = host();
    drain(&host);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(GREEN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, RST | ACK)), at(WEB), "refused, and told so");
}

#[test]
fn a_connection_that_got_back_ends_with_the_drain() {
    let mut host = host();
    drain_until(&host, NOW + 10);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
    answers_as(&host, &tcp(BLUE, CLIENT, ACK));
    assert_eq!(host.flow(flow_of(CLIENT, 0)).expect("a flow").generation, 1, "of the generation before the switch");
    host.later(NOW + 10);
    is_reset(&host, &segment());
}

#[test]
fn one_that_gets_to_the_live_colour_by_a_refusal_does_not_end_with_the_drain() {
    let mut host = host();
    drain(&host);
    drain_until(&host, NOW + 10);
    // Blue is live, in generation 3. A switch during the trial: green is, in generation 4.
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
    drain_until(&host, NOW + 10);
    is_dropped(&host, &refusal(BLUE));
    assert_eq!(sent_to(&host, &segment()), at(GREEN));
    answers_as(&host, &tcp(GREEN, CLIENT, ACK));
    assert_eq!(host.flow(flow_of(CLIENT, 0)).expect("a flow").generation, 4, "as if it was opened now");
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &segment()), at(GREEN));
    assert_eq!(host.traffic(0, 1).flows_opened, 1, "it is the same flow");
}

#[test]
fn a_drain_that_ends_between_refusal_and_next_segment_leaves_it_with_the_live_colour() {
    let mut host = host();
    drain_until(&host, NOW + 10);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &segment()), at(GREEN));
    assert_eq!(answers_as(&host, &refusal(GREEN)), at(WEB));
}

#[test]
fn without_a_drain_or_after_its_end_a_refusal_is_delivered() {
    let after_the_deadline = |host: &mut Host| {
        drain_until(host, NOW + 10);
        host.later(NOW + 10);
    };
    let settled = |host: &mut Host| {
        after_the_deadline(host);
        sent_to(host, &udp("192.0.2.9:1", DNS));
        assert_eq!(host.word(0).flags(), LiveFlags::CUT);
    };
    let none = |host: &mut Host| switch(host, LiveFlags::NONE, SwitchTerms::default());
    let states: [&dyn Fn(&mut Host); 4] = [&|host| cut(host), &none, &after_the_deadline, &settled];
    for (nth, prepare) in states.into_iter().enumerate() {
        let mut host = host();
        prepare(&mut host);
        assert_eq!(sent_to(&host, &segment()), at(GREEN), "{nth}");
        assert_eq!(answers_as(&host, &refusal(GREEN)), at(WEB), "{nth}");
        assert_eq!(sent_to(&host, &segment()), at(GREEN), "{nth}");
        assert_eq!(host.events(Event::SecondChance), 0, "{nth}");
    }
}

#[test]
fn nobody_gets_to_a_colour_whose_connections_were_cut() {
    let host = host();
    // Blue's connections of all generations so far are cut, and another drain begins.
    cut(&host);
    let carried = host.terms(0)[0];
    assert_eq!(carried.ended_before, [2, 0]);
    let word = host.word(0);
    let flags = LiveFlags::CUT.with(LiveFlags::DRAINING);
    let share = word.target_share();
    host.set_live(0, LiveWord::new(3, flags, share, share), SwitchTerms { ended_before: [3, 0], ..carried });
    assert_eq!(sent_to(&host, &segment()), at(GREEN));
    assert_eq!(answers_as(&host, &refusal(GREEN)), at(WEB));
    assert_eq!(host.events(Event::SecondChance), 0);
}

#[test]
fn a_refusal_by_a_backend_that_is_gone_says_nothing_of_the_colours() {
    let mut host = host();
    drain(&host);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    // Its slot is another backend's now, which may be of any service and colour.
    host.change_backend(1, |green| {
        green.identity.epoch += 1;
        green.addr = at("10.0.2.12:8443").ip().into();
    });
    assert_eq!(sent_to(&host, &segment()), at("10.0.2.12:8443"), "the live colour's");
}

/// A ramp goes by the word before it, which is not that of a drain, and the drain of a split ends when no row needs it any more.
#[test]
fn while_a_share_divides_new_flows_a_connection_gets_back_to_its_colour_without_a_drain() {
    const BOOT: u64 = 1 << 40;
    let ramp_that_is_nearly_over = |host: &Host| {
        host.set_clocks([BOOT, BOOT]);
        let flags = LiveFlags::TIMED.with(LiveFlags::DRAINING);
        let (before, armed) = (host.word(0), LiveWord::new(2, flags, 0, FULL_SHARE));
        let (ramp, generation) = (BOOT + (BOOT >> 12), armed.generation());
        host.set_timing(0, armed, Timing { activate_at: 1, ramp, before, generation, ..Timing::default() });
        host.set_live(0, armed, SwitchTerms::default());
    };
    let share = |host: &Host| {
        host.set_live(0, LiveWord::new(2, LiveFlags::NONE, 0, FULL_SHARE - 1), SwitchTerms::default());
    };
    let states: [&dyn Fn(&Host); 2] = [&ramp_that_is_nearly_over, &share];
    for (nth, prepare) in states.into_iter().enumerate() {
        let host = host();
        connect(&host, CLIENT, WEB);
        prepare(&host);
        host.forget_flows();
        is_refused_by(&host, GREEN);
        for _ in 0..3 {
            assert_eq!(sent_to(&host, &segment()), at(BLUE), "{nth}");
            assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB), "{nth}");
            host.forget_flows();
        }
        assert_eq!(host.events(Event::SecondChance), 1, "{nth}");
        // Of a connection that neither knows, the client hears.
        let other = |flags| tcp("192.0.2.1:40001", WEB, flags);
        for (backend, is_told) in [(GREEN, false), (BLUE, true)] {
            assert_eq!(sent_to(&host, &other(ACK)), at(backend), "{nth}");
            let action = host.egress(&tcp(backend, "192.0.2.1:40001", RST).frame()).action;
            assert_eq!(action != Action::Drop, is_told, "{nth}");
        }
    }
}

#[test]
fn a_refusal_is_remembered_when_the_row_is_lost() {
    let host = host();
    connect(&host, CLIENT, WEB);
    drain(&host);
    host.forget_flows();
    is_refused_by(&host, GREEN);
    for _ in 0..3 {
        host.forget_flows();
        assert_eq!(sent_to(&host, &segment()), at(BLUE));
        assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, ACK)), at(WEB));
    }
    assert_eq!(host.events(Event::SecondChance), 1);
    assert_eq!(host.flow(flow_of(CLIENT, 0)).expect("a flow").generation, 1, "of the generation before the switch");
    // Nobody else's: neither those of another port, nor a new connection of this one.
    host.forget_flows();
    assert_eq!(sent_to(&host, &tcp("192.0.2.1:40001", WEB, ACK)), at(GREEN));
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(GREEN));
}

#[test]
fn what_both_colours_refuse_is_refused_also_without_a_row() {
    let host = host();
    drain(&host);
    for (to, refuses) in [(GREEN, refusal(GREEN)), (BLUE, refusal(BLUE))] {
        assert_eq!(sent_to(&host, &segment()), at(to));
        is_dropped(&host, &refuses);
        host.forget_flows();
    }
    assert_eq!(sent_to(&host, &segment()), at(GREEN));
    assert_eq!(answers_as(&host, &refusal(GREEN)), at(WEB));
}

#[test]
fn a_port_that_is_used_again_is_found_where_its_new_connection_is() {
    let host = host();
    drain(&host);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    host.forget_flows();
    connect(&host, CLIENT, WEB);
    host.forget_flows();
    // What is remembered of the connection before is wrong of this one, and blue says so.
    is_refused_by(&host, BLUE);
    for _ in 0..3 {
        assert_eq!(sent_to(&host, &segment()), at(GREEN));
        assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, ACK)), at(WEB));
        host.forget_flows();
    }
}

#[test]
fn a_refusal_says_nothing_of_another_service_or_deployment() {
    const OTHERS: [(u16, &str, &str, &str); 2] = [
        (0, "203.0.113.11:443", "10.0.3.11:8443", "10.0.4.11:8443"),
        (1, "203.0.113.12:443", "10.0.5.11:8443", "10.0.6.11:8443"),
    ];
    let mut scenario = shop();
    scenario.deployment();
    for (deployment, vip, blue, green) in OTHERS {
        scenario.service(&ServiceAt { deployment, ..service(vip, None, Protocol::Tcp, blue, green) });
    }
    let host = Host::load(scenario, NOW);
    drain(&host);
    // The other deployment has made the same changes.
    host.set_live(1, host.word(0), SwitchTerms::default());
    is_refused_by(&host, GREEN);
    host.forget_flows();
    for (_, vip, _, green) in OTHERS {
        assert_eq!(sent_to(&host, &tcp(CLIENT, vip, ACK)), at(green));
    }
    assert_eq!(sent_to(&host, &segment()), at(BLUE));
}

#[test]
fn a_refusal_is_forgotten_with_its_drain() {
    let mut host = host();
    drain(&host);
    sent_to(&host, &segment());
    is_dropped(&host, &refusal(GREEN));
    host.forget_flows();
    // Back and forth: green is live again, in generation 4.
    drain(&host);
    drain_until(&host, NOW + 10);
    is_refused_by(&host, GREEN);
    host.forget_flows();
    host.later(NOW + 10);
    assert_eq!(sent_to(&host, &segment()), at(GREEN), "the drain is over");
    assert_eq!(answers_as(&host, &refusal(GREEN)), at(WEB));
}

#[test]
fn testers_and_previews_stay_on_the_idle_colour() {
    let mut scenario = shop();
    scenario.tester(0, "198.51.100.0".parse().expect("an address"), 24);
    let host = Host::load(scenario, NOW);
    drain(&host);
    for (client, vip) in [(TESTER, WEB), (CLIENT, WEB_PREVIEW)] {
        assert_eq!(sent_to(&host, &tcp(client, vip, ACK)), at(BLUE));
        assert_eq!(answers_as(&host, &tcp(BLUE, client, RST)), at(vip));
        assert_eq!(sent_to(&host, &tcp(client, vip, ACK)), at(BLUE));
    }
    assert_eq!(host.events(Event::SecondChance), 0);
}

#[test]
fn a_reset_of_a_connection_that_was_seen_from_its_beginning_is_delivered() {
    let host = host();
    drain(&host);
    // The SYN itself is refused.
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    assert_eq!(answers_as(&host, &tcp(GREEN, CLIENT, RST | ACK)), at(WEB));
    // The connection is open.
    connect(&host, "192.0.2.1:40001", WEB);
    assert_eq!(answers_as(&host, &tcp(GREEN, "192.0.2.1:40001", RST)), at(WEB));
    // It is open, but its backend has said nothing since its SYN.
    sent_to(&host, &tcp("192.0.2.1:40002", WEB, SYN));
    sent_to(&host, &tcp("192.0.2.1:40002", WEB, ACK));
    assert_eq!(answers_as(&host, &tcp(GREEN, "192.0.2.1:40002", RST)), at(WEB));
    assert_eq!(host.events(Event::SecondChance), 0);
}

#[test]
fn xdp_drops_a_refusal_too() {
    let host = host();
    drain(&host);
    host.early(&segment().frame());
    assert_eq!(host.early(&refusal(GREEN).frame()).action, Action::Drop);
    assert_eq!(host.events(Event::SecondChance), 1);
}

#[test]
fn of_udp_nothing_is_known_but_the_live_colour() {
    let host = host();
    sent_to(&host, &udp(CLIENT, DNS));
    drain(&host);
    host.forget_flows();
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(GREEN_DNS));
}
