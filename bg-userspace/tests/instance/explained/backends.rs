//! What a backend's packet meets: replies, strangers, and answers to copies.

use super::*;

#[test]
fn what_a_backend_says() {
    let lab = edge(AttachMode::Tc);
    let reply = |from, to: &str, protocol, flags| explain_packet(&lab, from, to, protocol, flags);
    let begin = |port, protocol| not_a_vip(&client(port), protocol);
    let from_dns = "10.0.1.11:53/udp is a backend of service dns of deployment shop (blue)";
    let dns_flow = flow("10.0.1.11:53 (blue)", "established");
    let web_flow = flow("10.0.1.11:8443 (blue)", "established");
    let no_reply = |port| format!("the packet is no reply of a flow from {}", client(port));

    says(&reply(DNS_BLUE, &client(1), UDP, None), &[&begin(1, "udp"), from_dns, &no_reply(1), PASSED]);

    put(&lab, &client(2), (VIP, UDP), DNS_BLUE, OPEN, 0);
    let restored = "the source becomes 203.0.113.10:443/udp";
    let lines: &[&str] = &[&begin(2, "udp"), from_dns, &dns_flow, WAY_TO_CLIENT, restored, SENT];
    says(&reply(DNS_BLUE, &client(2), UDP, None), lines);

    put(&lab, &client(3), (VIP, UDP), DNS_BLUE, OPEN | FlowState::OWN, 0);
    let to_self = "rewritten, and handed to the client on this host";
    let lines: &[&str] = &[&begin(3, "udp"), from_dns, &dns_flow, "the client is this host", restored, to_self];
    says(&reply(DNS_BLUE, &client(3), UDP, None), lines);

    put(&lab, &client(4), (VIP, TCP), WEB_BLUE, OPEN | FlowState::FOREIGN, 7);
    let foreign =
        "the packet belongs to a connection that the client has with the backend itself, not by the virtual address";
    let lines: &[&str] = &[&begin(4, "tcp"), FROM_WEB_BLUE, &web_flow, foreign, &no_reply(4), PASSED];
    says(&reply(WEB_BLUE, &client(4), TCP, ACK), lines);

    // `dns` has no preview address.
    let (vip, now) = (vip_of(&lab, VIP, UDP), tick(&lab));
    let (slot, row) = backend(&lab, DNS_BLUE, vip);
    let to_preview = Flow {
        state: FlowState(OPEN),
        backend: FlowBackend::new(slot, row.identity.epoch),
        generation: 1,
        last_seen: now,
        ..Flow::default()
    };
    FlowMap::open(&lab).insert_beside(&key(&client(5), vip + 1), vip, &to_preview, now);
    let vip_gone = "the preview address that the client has sent to was removed";
    let lines: &[&str] = &[&begin(5, "udp"), from_dns, &dns_flow, vip_gone, &no_reply(5), PASSED];
    says(&reply(DNS_BLUE, &client(5), UDP, None), lines);

    put(&lab, &client(6), (VIP, TCP), WEB_BLUE, OPEN | FlowState::ENDED, 7);
    let ended = "the flow has been ended by a command, and who speaks is reset";
    let ended_flow = flow("10.0.1.11:8443 (blue)", "ended");
    let lines: &[&str] = &[&begin(6, "tcp"), FROM_WEB_BLUE, &ended_flow, ended, COUNTED_RESET, BOTH_RESET];
    says(&reply(WEB_BLUE, &client(6), TCP, ACK), lines);

    put_with(&lab, &client(7), (VIP, UDP), DNS_BLUE, |flow| Flow {
        state: FlowState(OPEN),
        last_seen: flow.last_seen.wrapping_sub(40_000),
        ..flow
    });
    let lines: &[&str] = &[&begin(7, "udp"), from_dns, "the flow has timed out: its last packet", &no_reply(7), PASSED];
    says(&reply(DNS_BLUE, &client(7), UDP, None), lines);

    // The client is behind no route: the reply is restored where the host sends it.
    let far = "192.168.77.7:5000";
    put(&lab, far, (VIP, UDP), DNS_BLUE, OPEN, 0);
    let [from, to] = [DNS_BLUE, far].map(|address| address.parse().unwrap());
    let request = ExplainRequest { from, to, protocol: UDP, flags: None, interface: Some("v0".to_owned()) };
    let no_vip = not_a_vip(far, "udp");
    let lines: &[&str] = &[
        &no_vip,
        from_dns,
        &dns_flow,
        "there is no route that the packet can be redirected by",
        "there is no next hop to redirect to, or the frame has a VLAN tag: the host's stack sends it",
        "counted as next_hop_by_stack",
        "a reply: its source is restored when it leaves this host",
        PASSED,
    ];
    says(&lab.instance().explain(&request).unwrap(), lines);
}

#[test]
fn a_mirror_and_its_answers() {
    let lab = edge(AttachMode::Tc);
    let user = client(1);
    put(&lab, &user, (COPIED, UDP), "10.0.1.11:5353", OPEN, 0);
    let vip = "203.0.113.15:53/udp is the virtual address of service copied of deployment shop";
    let open = flow("10.0.1.11:5353 (blue)", "established");
    let mirror = "mirror: a copy goes to green, the idle colour, and what that answers is dropped";
    says(&explain_packet(&lab, &user, COPIED, UDP, None), &[vip, &open, CONTINUES, WAY_TO_BLUE, mirror, SENT]);
    let lines: &[&str] = &[
        &not_a_vip(&user, "udp"),
        "10.0.2.11:5353/udp is a backend of service copied of deployment shop (green)",
        "a backend of the other colour of service copied answers a copy of what the client has sent: nobody is to hear it",
        "counted as mirror_answer",
        DROPPED,
    ];
    says(&explain_packet(&lab, "10.0.2.11:5353", &user, UDP, None), lines);
}
