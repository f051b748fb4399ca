//! What a switch has done to a flow, and second chances.

use super::*;

#[test]
fn what_a_switch_has_done_to_a_flow() {
    let lab = edge(AttachMode::Tc);
    let tcp = |from: &str, flags| explain_packet(&lab, from, VIP, TCP, flags);
    let blue = flow("10.0.1.11:8443 (blue)", "established");
    let drained = SwitchRequest { on_switch: Some(OnSwitch::Drain), ..SwitchRequest::default() };
    lab.instance().switch("shop", &drained).unwrap();

    put(&lab, &client(1), (VIP, TCP), WEB_BLUE, OPEN, 7);
    says(&tcp(&client(1), ACK), &[WEB, &blue, CONTINUES, WAY_TO_BLUE, SENT]);
    put(&lab, &tester(1), (VIP, TCP), WEB_GREEN, OPEN | FlowState::IDLE_ONLY, 7);
    let confined = "the flow may only be on the idle colour, and green is live since generation 2: it has ended";
    let green = flow("10.0.2.11:8443 (green)", "established");
    says(&tcp(&tester(1), ACK), &[WEB, &green, confined, COUNTED_RESET, BOTH_RESET]);

    // A connection that was picked up in mid-stream, and what its backend says of it.
    put(&lab, &client(2), (VIP, TCP), WEB_GREEN, FlowState::CONFIRMED, 0);
    let refusal = "second chance: the backend refuses a connection that the table did not know, and the client does not get this reset";
    let from_green = "10.0.2.11:8443/tcp is a backend of service web of deployment shop (green)";
    let other = "second chance: blue gets the connection, which may be its own";
    let reset = explain_packet(&lab, WEB_GREEN, &client(2), TCP, RST);
    let no_vip = not_a_vip(&client(2), "tcp");
    says(&reset, &[&no_vip, from_green, &green, other, refusal, "counted as second_chance", DROPPED]);
    let refused = FlowState::CONFIRMED | FlowState::RETRIED | FlowState::BACKEND_RESET;
    put(&lab, &client(3), (VIP, TCP), WEB_GREEN, refused, 0);
    let lines: &[&str] = &[
        WEB,
        &flow("10.0.2.11:8443 (green)", "ended"),
        "second chance: the backend has refused this connection, which the table did not know, so the other colour gets it",
        other,
        TO_WEB_BLUE,
        OPENED,
        WAY_TO_BLUE,
        SENT,
    ];
    says(&tcp(&client(3), ACK), lines);
    says(&tcp(&client(4), None), &[WEB, &no_flow(&client(4)), GREEN_IS_LIVE, TO_WEB_GREEN, OPENED, WAY_TO_GREEN, SENT]);

    let cut = SwitchRequest { on_switch: Some(OnSwitch::Cut), ..SwitchRequest::default() };
    lab.instance().switch("shop", &cut).unwrap();
    put(&lab, &client(5), (VIP, TCP), WEB_GREEN, OPEN, 7);
    let ended = "ended by the switch to generation 3: the flow on green was opened in generation 1";
    says(&tcp(&client(5), ACK), &[WEB, &green, ended, COUNTED_RESET, BOTH_RESET]);

    // Nobody has noticed yet that the deadline of the drain has passed.
    lab.instance().switch("brief", &drained).unwrap();
    let begin = Instant::now();
    let over = "the deadline of the drain of brief has passed: a packet would end the drain now";
    while !explain_packet(&lab, &client(6), BRIEF, TCP, None).hooks[0].steps.iter().any(|step| step.text == over) {
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
