//! What happens to a packet's bytes, and which packets are none of ours.

use crate::*;

#[test]
fn a_new_flow_goes_to_the_live_colour_and_its_answer_comes_from_the_vip() {
    let host = host();
    assert_eq!(sent_to(&host, &tcp(CLIENT, WEB, SYN)), at(BLUE));
    assert_eq!(answers_as(&host, &tcp(BLUE, CLIENT, SYN | ACK)), at(WEB));
    assert_eq!(sent_to(&host, &udp(CLIENT, DNS)), at(BLUE_DNS));
    assert_eq!(answers_as(&host, &udp(BLUE_DNS, CLIENT)), at(DNS));
}

#[test]
fn a_forwarded_frame_gets_the_next_hops_macs_and_one_hop_less() {
    let Outcome { frame, .. } = host().ingress(&tcp(CLIENT, WEB, SYN).frame());
    assert_eq!(frame[..6], [0, 0, 0, 0, 0, 2], "the scenario's MAC of slot 0 is 0x0200_0000_0000, lowest octet first");
    assert_eq!(frame[6..12], [1, 0, 0, 0, 0, 6]);
    assert_eq!(frame[14 + 8], 63);
}

#[test]
fn a_packet_on_its_last_hop_is_left_to_the_host_with_its_ttl() {
    let mut scenario = shop();
    scenario.service(&ServiceAt {
        mode: Mode::Local,
        ..service("203.0.113.20:80", None, Protocol::Tcp, "10.0.1.20:80", "10.0.2.20:80")
    });
    let host = Host::load(scenario, NOW);
    // The stack answers the first one, and the backend the second one.
    for (vip, backend) in [(WEB, BLUE), ("203.0.113.20:80", "10.0.1.20:80")] {
        let last_hop = PacketSpec { ttl: 1, ..tcp(CLIENT, vip, SYN) }.frame();
        assert_eq!(host.early(&last_hop), Outcome { action: Action::Defer, frame: last_hop.clone() });
        let Outcome { action, frame } = host.ingress(&last_hop);
        assert_eq!((action, ends(&frame).1, frame[14 + 8]), (Action::Deliver, at(backend), 1));
        assert_checksums(&frame);
    }
    assert_eq!(host.events(Event::TtlExpired), 1);
}

#[test]
fn lengths_that_lie_are_dropped_for_a_vip_and_left_alone_for_others() {
    let cut_short = |spec: &PacketSpec, by: usize| {
        let mut frame = spec.frame();
        frame.truncate(frame.len() - by);
        frame
    };
    let with_octet = |spec: &PacketSpec, at: usize, octet: u8| {
        let mut frame = spec.frame();
        frame[at] = octet;
        frame
    };
    let host = host();
    for (vip, other) in [(WEB, "203.0.113.99:443")] {
        let damaged = |to: &str| {
            [
                cut_short(&tcp(CLIENT, to, ACK), 1),
                cut_short(&PacketSpec { payload: vec![0; 9], ..tcp(CLIENT, to, ACK) }, 1),
                cut_short(&tcp(CLIENT, to, ACK), 12),
                with_octet(&tcp(CLIENT, to, ACK), 14 + 20 + 12, 0x40),
                with_octet(&tcp(CLIENT, to, ACK), 14 + 20 + 12, 0xf0),
                with_octet(&tcp(CLIENT, to, ACK), 14 + 3, 30),
            ]
        };
        for frame in damaged(vip) {
            assert_eq!(host.ingress(&frame).action, Action::Drop, "{frame:02x?}");
        }
        for frame in damaged(other) {
            assert_eq!(host.ingress(&frame), Outcome { action: Action::Pass, frame });
        }
    }
    let mut lying = udp(CLIENT, DNS).frame();
    lying[14 + 20 + 5] = 200;
    assert_eq!(host.ingress(&lying).action, Action::Drop);
    assert_eq!(host.events(Event::Malformed), 7);
}

#[test]
fn vlan_tags_and_padding_are_kept_and_a_missing_udp_checksum_stays_missing() {
    let host = host();
    for tags in 1..=2 {
        let mut frame = PacketSpec { tags, ..tcp(CLIENT, WEB, SYN) }.frame();
        frame.extend([0xaa; 6]);
        let Outcome { action, frame: out } = host.ingress(&frame);
        assert_eq!(action, Action::Deliver, "only the stack knows which interface its VLAN leaves by");
        assert_eq!(out[12..12 + 4 * usize::from(tags)], frame[12..12 + 4 * usize::from(tags)]);
        assert_eq!(out[out.len() - 6..], [0xaa; 6]);
        assert_eq!(ends(&out).1, at(BLUE));
    }
    let out = host.ingress(&PacketSpec { without_udp_checksum: true, ..udp(CLIENT, DNS) }.frame()).frame;
    assert_eq!(out[14 + 20 + 6..14 + 20 + 8], [0, 0]);
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_its_twin() {
    let host = host();
    let mut met = false;
    for word in 0..=u16::MAX {
        let packet = PacketSpec { payload: word.to_be_bytes().to_vec(), ..udp(CLIENT, DNS) };
        let out = host.ingress(&packet.frame()).frame;
        assert_checksums(&out);
        met |= out[14 + 20 + 6..14 + 20 + 8] == [0xff, 0xff];
    }
    assert!(met, "one word in 65,536 makes the sum zero");
}

#[test]
fn packets_are_counted_by_service_and_colour() {
    let host = host();
    let bytes = tcp(CLIENT, WEB, SYN).frame().len() as u64;
    sent_to(&host, &tcp(CLIENT, WEB, SYN));
    sent_to(&host, &tcp(CLIENT, WEB, ACK));
    drain(&host);
    sent_to(&host, &udp(CLIENT, DNS));
    let (blue, green) = (host.traffic(0, 0), host.traffic(1, 1));
    assert_eq!((blue.packets, blue.bytes, blue.flows_opened), (2, 2 * bytes, 1));
    assert_eq!((green.packets, green.flows_opened), (1, 1));
    assert_eq!(host.traffic(0, 1).packets + host.traffic(1, 0).packets, 0);
}

#[test]
fn a_backend_without_a_known_next_hop_is_left_to_the_stack_with_its_address_rewritten() {
    let mut scenario = shop();
    scenario.backends.iter_mut().for_each(|backend| backend.next_hop = bg_common::NextHop::NONE);
    let host = Host::load(scenario, NOW);
    let Outcome { action, frame } = host.ingress(&tcp(CLIENT, WEB, SYN).frame());
    assert_eq!((action, ends(&frame).1), (Action::Deliver, at(BLUE)));
    assert_eq!(frame[14 + 8], 64, "the stack counts the hop");
    assert_eq!(host.events(Event::NextHopByStack), 1);
}

#[test]
fn a_packet_over_the_egress_mtu_is_left_to_the_stack() {
    let host = host();
    let fits = PacketSpec { payload: vec![0; 1500 - 40], ..tcp(CLIENT, WEB, ACK) };
    let too_big = PacketSpec { payload: vec![0; 1501 - 40], ..tcp(CLIENT, WEB, ACK) };
    assert_eq!(host.ingress(&fits.frame()).action, Action::Redirect);
    assert_eq!(host.ingress(&too_big.frame()).action, Action::Deliver);
    assert_eq!(host.events(Event::TooBig), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_any_kind_are_left_alone_unless_they_are_for_a_vip(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // No VIP at all: whatever it is, it is not ours.
        let host = Host::load(Scenario::default(), NOW);
        let outcome = host.ingress(&bytes);
        prop_assert_eq!(&outcome.frame, &bytes);
        prop_assert_eq!(outcome.action, Action::Pass);
    }

    #[test]
    fn an_updated_checksum_is_the_one_computed_anew(
        mut words in proptest::collection::vec(any::<u16>(), 4..40), at in 0usize..3, new in any::<u32>(),
    ) {
        let before = compute(&words);
        let at = at & !1;
        let old = u32::from(words[at]) | u32::from(words[at + 1]) << 16;
        words[at] = new as u16;
        words[at + 1] = (new >> 16) as u16;
        let (updated, anew) = (Delta::NONE.double_word(old, new).apply(before), compute(&words));
        // Ones' complement has two zeros (RFC 1624, section 3).
        prop_assert!(updated == anew || (updated, anew) == (0xffff, 0) || (updated, anew) == (0, 0xffff));
    }
}

/// RFC 1071, word by word.
fn compute(words: &[u16]) -> u16 {
    let sum = words.iter().fold(0u32, |sum, word| {
        let sum = sum + u32::from(*word);
        (sum & 0xffff) + (sum >> 16)
    });
    !(sum as u16)
}
