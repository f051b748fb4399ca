//! Which flows count for the conditions of a switch.

use super::*;

#[test]
fn a_reset_after_an_answer_is_none() {
    let mut watched = watched(Trips { resets: limit(0, 1), ..EMPTY });
    for _ in 0..50 {
        let opened = watched.open(WEB);
        watched.answer(&opened, SYN | ACK);
        watched.answer(&opened, RST | ACK);
    }
    watched.assert_stays();
}

#[test]
fn other_flows_do_not_count() {
    let all = Trips { resets: limit(0, 1), unanswered: limit(0, 1), silence: SECOND, ..EMPTY };
    let mut scenario = scenario();
    scenario.tester(SHOP, at(TESTER).ip(), 32);
    let mut watched = watched(all);
    let (timings, trips, word) = (watched.host.timings(SHOP)[0], watched.host.trips(SHOP)[0], watched.word);
    let host = Host::load(scenario, NOW);
    host.set_clocks([BOOT, BOOT]);
    // Flows of the generation before.
    let before: Vec<_> = (1..50)
        .map(|port| {
            let client = SocketAddr::new(at(CLIENT).ip(), port);
            (client, sent_to(&host, &PacketSpec::tcp(client, at(WEB), SYN)))
        })
        .collect();
    host.set_trips(SHOP, word, trips);
    host.set_timing(SHOP, word, timings);
    host.set_live(SHOP, word, SwitchTerms::default());
    watched.host = host;
    for (client, backend) in before {
        assert_eq!(backend, at(BLUE));
        answers_as(&watched.host, &PacketSpec::tcp(backend, client, RST | ACK));
    }
    // Another deployment's, a tester's, one by the preview address, connections picked up in mid-stream.
    for round in 0..50_u16 {
        watched.flow(OTHER, if round % 2 == 0 { Does::Reset } else { Does::Nothing });
        let tester = SocketAddr::new(at(TESTER).ip(), round + 1);
        let preview = SocketAddr::new(at(CLIENT).ip(), 1000 + round);
        for (client, vip) in [(tester, WEB), (preview, WEB_PREVIEW)] {
            let backend = sent_to(&watched.host, &PacketSpec::tcp(client, at(vip), SYN));
            assert_eq!(backend, at(BLUE), "the idle colour");
            if round % 2 == 0 {
                answers_as(&watched.host, &PacketSpec::tcp(backend, client, RST | ACK));
            }
        }
        let picked_up = SocketAddr::new(at(CLIENT).ip(), 2000 + round);
        sent_to(&watched.host, &PacketSpec::tcp(picked_up, at(WEB), ACK));
        watched.pass(2);
    }
    watched.assert_stays();
    assert_eq!(watched.host.trips(SHOP)[0].opened, 0);
    assert_eq!(watched.host.word(0).generation(), 1);
}

#[test]
fn udp_flows_that_a_cut_has_moved_do_not_count() {
    let mut watched = watched(Trips { unanswered: limit(0, 1), ..EMPTY });
    let host = Host::load(scenario(), NOW);
    host.set_clocks([BOOT, BOOT]);
    let datagrams: Vec<_> =
        (1..50).map(|port| PacketSpec::udp(SocketAddr::new(at(CLIENT).ip(), port), at(DNS))).collect();
    datagrams.iter().for_each(|datagram| assert_eq!(sent_to(&host, datagram), at(BLUE_DNS)));
    host.set_trips(SHOP, watched.word, watched.host.trips(SHOP)[0]);
    host.set_timing(SHOP, watched.word, watched.host.timings(SHOP)[0]);
    watched.word = watched.word.with_flags(LiveFlags::TIMED.with(LiveFlags::CUT));
    host.set_live(SHOP, watched.word, SwitchTerms { ended_before: [2, 0], ..SwitchTerms::default() });
    watched.host = host;
    datagrams.iter().for_each(|datagram| assert_eq!(sent_to(&watched.host, datagram), at(GREEN_DNS)));
    watched.pass(20);
    watched.assert_stays();
    watched.client = 1000;
    watched.flow(DNS, Does::Nothing);
    watched.pass(20);
    watched.judge();
    watched.assert_taken_back(Conditions::UNANSWERED);
}

#[test]
fn answers_within_a_second_are_answers() {
    for vip in [WEB, DNS6] {
        let mut watched = watched(Trips { unanswered: limit(0, 1), ..EMPTY });
        let mut pending = std::collections::VecDeque::new();
        for round in 0..200 {
            pending.push_back((0..5).map(|_| watched.open(vip)).collect::<Vec<_>>());
            // Each is answered just before its second is over.
            if pending.len() == TICKS as usize {
                let flows = pending.pop_front().expect("one");
                flows.iter().for_each(|opened| watched.answer(opened, SYN | ACK));
            }
            watched.judge();
            assert!(!watched.is_back(), "round {round}");
            watched.pass(1);
        }
        let trips = watched.host.trips(SHOP)[0];
        assert!(trips.judged > 900 && trips.missing == 0, "{trips:?}");
    }
}

#[test]
fn an_answer_after_a_second_is_none() {
    for vip in [WEB, DNS6] {
        let mut watched = watched(Trips { unanswered: limit(50, 1000), ..EMPTY });
        let late: Vec<_> = (0..100).map(|_| watched.open(vip)).collect();
        watched.pass(TICKS + 1);
        watched.judge();
        late.iter().for_each(|opened| watched.answer(opened, SYN | ACK));
        for _ in 0..60 {
            watched.pass(1);
            watched.judge();
        }
        let trips = watched.host.trips(SHOP)[0];
        assert_eq!((trips.opened, trips.judged, trips.missing), (100, 100, 100));
        assert_eq!(trips.young, [0; Trips::RING as usize]);
    }
}

#[test]
fn a_syn_that_is_sent_again_after_a_second_was_not_answered() {
    for vip in [WEB, WEB6] {
        let mut watched = watched(Trips { unanswered: limit(50, 20), ..EMPTY });
        let opened: Vec<_> = (0..20).map(|_| watched.open(vip)).collect();
        let again = |watched: &Watched, opened: &[Opened]| {
            opened.iter().for_each(|opened| assert_eq!(sent_to(&watched.host, &opened.first), opened.backend));
        };
        // The network may copy packets.
        watched.pass(TICKS - 2);
        again(&watched, &opened);
        assert_eq!(watched.host.trips(SHOP)[0].judged, 0);
        watched.pass(1);
        again(&watched, &opened[..10]);
        let counts = |watched: &Watched| {
            let Trips { opened, judged, missing, .. } = watched.host.trips(SHOP)[0];
            (opened, judged, missing)
        };
        assert_eq!(counts(&watched), (20, 10, 10));
        // Once, and the answer comes too late.
        again(&watched, &opened[..10]);
        opened.iter().for_each(|opened| watched.answer(opened, SYN | ACK));
        assert_eq!(counts(&watched), (20, 10, 10));
        watched.pass(3 * TICKS);
        watched.judge();
        assert_eq!(counts(&watched), (20, 20, 10), "those of the same ticks were answered in time");
        again(&watched, &opened);
        watched.pass(3 * TICKS);
        watched.judge();
        assert_eq!(counts(&watched), (20, 20, 10));
        watched.assert_stays();
    }
}

#[test]
fn datagrams_of_a_flow_count_once() {
    let mut watched = watched(Trips { unanswered: limit(0, 20), resets: limit(0, 20), ..EMPTY });
    let opened: Vec<_> = (0..19).map(|_| watched.open(DNS6)).collect();
    for _ in 0..10 {
        watched.pass(4);
        opened.iter().for_each(|opened| assert_eq!(sent_to(&watched.host, &opened.first), opened.backend));
    }
    watched.assert_stays();
    let trips = watched.host.trips(SHOP)[0];
    assert_eq!((trips.opened, trips.judged, trips.missing), (19, 19, 19));
}

/// The same deployment is switched to and fro, each time with other conditions, while flows wait for their first answer.
#[test]
fn answers_count_for_the_switch_that_has_opened_their_flows() {
    for (vip, tcp) in [(WEB, true), (DNS6, false)] {
        let never = Trips { resets: limit(99, u32::MAX), unanswered: limit(99, u32::MAX), ..EMPTY };
        let mut watched = watched(never);
        let mut opened = Vec::new();
        for generation in 2..=4 {
            if generation > 2 {
                let to = if generation == 3 { Colour::Blue } else { Colour::Green };
                let shares = [to.other().full_share(), to.full_share()];
                watched.word = LiveWord::new(generation, LiveFlags::TIMED, shares[0], shares[1]);
                let (second, unjudged_tick) = (TICKS as u16, watched.host.tick.get().into());
                let trips = Trips { second, colour: to as u16, unjudged_tick, ..never };
                watched.host.set_trips(SHOP, watched.word, trips);
                let timing = Timing { conditions: trips.conditions().0, generation, ..Timing::default() };
                watched.host.set_timing(SHOP, watched.word, timing);
                watched.host.set_live(SHOP, watched.word, SwitchTerms::default());
            }
            opened.push((0..100).map(|_| watched.open(vip)).collect::<Vec<_>>());
            watched.pass(1);
        }
        opened.iter().flatten().for_each(|opened| watched.answer(opened, RST | ACK));
        // Those of generation 2 count for nothing any more: its slot is that of generation 4.
        let counts = watched.host.trips(SHOP).map(|trips| (trips.generation, trips.opened, trips.reset));
        let resets = if tcp { 100 } else { 0 };
        assert_eq!(counts, [(4, 100, resets), (3, 100, resets)]);
        let unanswered = |trips: Trips| trips.young.iter().map(|flows| (*flows as i64) >> 32).sum::<i64>();
        assert_eq!(watched.host.trips(SHOP).map(unanswered), [0, 0]);
    }
}

/// Two deployments wait for their confirmation at once, and one of them fails.
#[test]
fn the_flows_of_a_deployment_judge_no_other_one() {
    for failing in [0, SHOP] {
        let mut watched = watched(RESETS);
        let of_other = LiveWord::new(2, LiveFlags::TIMED, 0, FULL_SHARE);
        watched.host.set_trips(0, of_other, watched.host.trips(SHOP)[0]);
        watched.host.set_timing(0, of_other, Timing { before: watched.host.word(0), ..watched.host.timings(SHOP)[0] });
        watched.host.set_live(0, of_other, SwitchTerms::default());
        for _ in 0..250 {
            for (deployment, vips) in [(0, &[OTHER][..]), (SHOP, &[WEB, DNS6])] {
                let does = if deployment == failing { Does::Reset } else { Does::Answer };
                vips.iter().for_each(|vip| watched.flow(vip, does));
            }
        }
        for (deployment, word) in [(0, of_other), (SHOP, watched.word)] {
            let now = watched.host.word(deployment);
            if deployment == failing {
                assert_eq!((now.generation(), now.live()), (3, Colour::Blue));
            } else {
                assert_eq!(now, word, "deployment {deployment}");
                assert!(watched.host.trips(deployment)[0].opened >= 250);
            }
        }
    }
}

/// A flood of SYNs whose sources do not exist, or of one client: each counts, and its answer, which the client never confirms.
#[test]
fn a_flood_that_is_answered_takes_nothing_back() {
    let mut watched = watched(Trips { resets: RESETS.resets, silence: SECOND, ..UNANSWERED });
    for round in 0..5_000_u32 {
        let opened = watched.open([WEB, WEB6][round as usize % 2]);
        watched.answer(&opened, SYN | ACK);
        watched.pass(u32::from(round % 50 == 0));
    }
    watched.assert_stays();
    // A scan of ports: they are no services.
    for port in 1000..3000 {
        let frame = PacketSpec::tcp(at(CLIENT), SocketAddr::new(at(WEB).ip(), port), SYN).frame();
        assert_eq!(watched.host.ingress(&frame), Outcome { action: Action::Pass, frame });
    }
    watched.pass(2 * TICKS);
    watched.assert_stays();
    assert_eq!(watched.host.trips(SHOP)[0].opened, 5_000);
}

/// Nobody hears them.
#[test]
fn flows_of_backends_that_reply_directly_do_not_count() {
    const VIPS: [(&str, Protocol); 2] = [("203.0.113.30:443", Protocol::Tcp), ("203.0.113.30:53", Protocol::Udp)];
    for mode in [Mode::L2dsr, Mode::Ipip, Mode::Gue] {
        let mut watched = watched(Trips { unanswered: limit(0, 1), silence: SECOND, ..EMPTY });
        let mut scenario = scenario();
        for (vip, protocol) in VIPS {
            let [blue, green] = ["10.0.1.11", "10.0.2.11"].map(|host| format!("{host}:{}", at(vip).port()));
            scenario.service(&ServiceAt { mode, deployment: SHOP, ..service(vip, None, protocol, &blue, &green) });
        }
        let (timings, trips, word) = (watched.host.timings(SHOP)[0], watched.host.trips(SHOP)[0], watched.word);
        watched.host = Host::load(scenario, NOW);
        watched.host.set_clocks([BOOT, BOOT]);
        watched.host.set_trips(SHOP, word, trips);
        watched.host.set_timing(SHOP, word, timings);
        watched.host.set_live(SHOP, word, SwitchTerms::default());
        let first = |vip: &str, protocol, port| {
            let client = SocketAddr::new(at(CLIENT).ip(), port);
            match protocol {
                Protocol::Tcp => PacketSpec::tcp(client, at(vip), SYN),
                Protocol::Udp => PacketSpec::udp(client, at(vip)),
            }
        };
        // The second time, a SYN is sent again.
        for _ in 0..3 {
            for ((vip, protocol), port) in VIPS.into_iter().flat_map(|vip| (1..50).map(move |port| (vip, port))) {
                let outcome = watched.host.ingress(&first(vip, protocol, port).frame());
                assert_eq!(outcome.action, Action::Redirect, "{mode:?}");
            }
            watched.pass(2 * TICKS);
        }
        watched.judge();
        watched.assert_stays();
        let counted = watched.host.trips(SHOP)[0];
        assert_eq!((counted.opened, counted.judged, counted.opened_since_heard), (0, 0, 0), "{mode:?}");
    }
}
