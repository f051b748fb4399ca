//! What a client's packet meets: flows in all states, the choice of a colour, and a full table.

use super::*;

#[test]
fn what_a_client_says_on_a_flow() {
    let lab = edge(AttachMode::Tc);
    let tcp = |port, flags| explain_packet(&lab, &client(port), VIP, TCP, flags);
    let [established, opening, ended_flow] =
        ["established", "opening", "ended"].map(|state| flow("10.0.1.11:8443 (blue)", state));

    put(&lab, &client(1), (VIP, UDP), DNS_BLUE, OPEN, 0);
    let continues = [DNS, &flow("10.0.1.11:53 (blue)", "established"), CONTINUES, WAY_TO_BLUE, SENT];
    says(&explain_packet(&lab, &client(1), VIP, UDP, None), &continues);

    put(&lab, &client(2), (VIP, TCP), WEB_BLUE, OPEN, 7);
    says(&tcp(2, ACK), &[WEB, &established, CONTINUES, WAY_TO_BLUE, SENT]);
    let inside = "a SYN inside an established connection: it is noted, and the backend answers it";
    says(&tcp(2, None), &[WEB, &established, inside, CONTINUES, WAY_TO_BLUE, SENT]);

    // The SYN has the number of the one before.
    put(&lab, &client(3), (VIP, TCP), WEB_BLUE, 0, 7);
    says(&tcp(3, None), &[WEB, &opening, CONTINUES, WAY_TO_BLUE, SENT]);

    put(&lab, &client(4), (VIP, TCP), WEB_BLUE, OPEN | FlowState::CLIENT_RESET, 7);
    let reopens = "the SYN opens a new connection from the client's port";
    says(&tcp(4, None), &[WEB, &ended_flow, reopens, BLUE_IS_LIVE, TO_WEB_BLUE, OPENED, WAY_TO_BLUE, SENT]);

    let (vip, long_ago) = ((VIP, UDP), 40_000);
    put_with(&lab, &client(5), vip, DNS_BLUE, |flow| Flow {
        state: FlowState(OPEN),
        last_seen: flow.last_seen.wrapping_sub(long_ago),
        ..flow
    });
    let silent = explain_packet(&lab, &client(5), VIP, UDP, None);
    let to_dns = "backend 10.0.1.11:53 of blue, by entry 0 of 1 of the Maglev table";
    let lines: &[&str] = &[
        DNS,
        &flow("10.0.1.11:53 (blue)", "established"),
        "the flow has timed out: its last packet",
        BLUE_IS_LIVE,
        to_dns,
        OPENED,
        WAY_TO_BLUE,
        SENT,
    ];
    says(&silent, lines);
    let step = silent.hooks[0].steps.iter().find(|step| step.step == "silent").unwrap();
    let idle = step.values["idle_seconds"].as_u64().unwrap();
    assert!((2_000..30_000).contains(&idle), "40,000 ticks of 64 to 640 ms: {idle}");
    let told = humantime::format_duration(Duration::from_secs(idle));
    assert_eq!(step.text, format!("the flow has timed out: its last packet came {told} ago"));
    let of_flow = silent.hooks[0].steps.iter().find(|step| step.step == "flow").unwrap();
    assert!(of_flow.text.ends_with(&format!(", last packet {told} ago")), "{}", of_flow.text);

    put_with(&lab, &client(6), (VIP, TCP), WEB_BLUE, |flow| Flow {
        state: FlowState(OPEN),
        backend: FlowBackend::new(
            flow.backend.slot(),
            backend(&lab, WEB_BLUE, vip_of(&lab, VIP, TCP)).1.identity.epoch + 1,
        ),
        ..flow
    });
    let gone = "that backend has been removed: the packet opens a new flow";
    says(&tcp(6, ACK), &[WEB, &established, gone, BLUE_IS_LIVE, TO_WEB_BLUE, OPENED, WAY_TO_BLUE, SENT]);

    put(&lab, &client(7), (VIP, TCP), WEB_BLUE, OPEN | FlowState::ENDED, 7);
    let ended = "the flow has been ended by a command, and who speaks is reset";
    says(&tcp(7, ACK), &[WEB, &ended_flow, ended, COUNTED_RESET, BOTH_RESET]);

    let none = no_flow(&client(8));
    let unremembered = "the RST is sent on, but opens no flow";
    says(&tcp(8, RST), &[WEB, &none, BLUE_IS_LIVE, TO_WEB_BLUE, unremembered, WAY_TO_BLUE, SENT]);

    // Its answers could not be told from those of the other connection of this port.
    put(&lab, &client(9), (VIP, TCP), WEB_BLUE, OPEN, 7);
    let twin = "203.0.113.11:443/tcp is the virtual address of service twin of deployment shop";
    let rival = "the backend could not distinguish the flow from another one of this client: another entry is tried";
    let tried = [TO_WEB_BLUE, rival, TO_WEB_BLUE, rival, TO_WEB_BLUE, rival];
    let none = no_flow(&client(9));
    let lines = [&[twin, &none, BLUE_IS_LIVE], &tried[..], &["counted as reply_collision", DROPPED]].concat();
    says(&explain_packet(&lab, &client(9), TWIN, TCP, None), &lines);
}

#[test]
fn who_gets_which_colour() {
    let lab = edge(AttachMode::Tc);
    let to = |from: &str, to| explain_packet(&lab, from, to, TCP, None);
    let (user, tester) = (client(1), tester(1));
    let new = |line: &str, user: &str, choice: &str, [backend, way]: [&str; 2]| {
        [line, &no_flow(user), choice, backend, OPENED, way, SENT].map(str::to_owned)
    };
    let (blue, green) = ([TO_WEB_BLUE, WAY_TO_BLUE], [TO_WEB_GREEN, WAY_TO_GREEN]);
    let is = |explanation: &Explanation, lines: &[String]| {
        says(explanation, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    };
    is(&to(&user, VIP), &new(WEB, &user, BLUE_IS_LIVE, blue));
    let of_idle = "the flow goes to the idle colour of shop, green (blue is live, generation 1)";
    is(&to(&tester, VIP), &new(WEB, &tester, &format!("198.51.100.200 is a tester: {of_idle}"), green));
    let preview = "203.0.113.10:9443/tcp is the preview address of service web of deployment shop";
    is(&to(&user, "203.0.113.10:9443"), &new(preview, &user, &format!("preview address: {of_idle}"), green));
    says(&to(&user, "203.0.113.99:443"), &[&not_a_vip("203.0.113.99:443", "tcp"), PASSED]);

    let split = SplitRequest { green: 2550, ..SplitRequest::default() };
    lab.instance().split("shop", &split).unwrap();
    let share = "25.5 % of new flows of shop go to green (generation 2, draining): this one goes to";
    let explained = to(&user, VIP);
    let is_green = explained.packet.destination == WEB_GREEN.parse().unwrap();
    let (name, way) = if is_green { ("green", green) } else { ("blue", blue) };
    is(&explained, &new(WEB, &user, &format!("{share} {name}"), way));
}

/// No configuration leads to a colour without backends, so the test takes its tables away by itself.
#[test]
fn who_is_refused_while_the_idle_colour_is_not_ready() {
    let lab = edge(AttachMode::Tc);
    let pin = MapData::from_pin(lab.paths.map("services")).unwrap();
    let mut services: HashMap<MapData, ServiceKey, ServiceRow> = Map::from_map_data(pin).unwrap().try_into().unwrap();
    let rows: Vec<_> = services.iter().collect::<Result<_, _>>().unwrap();
    for (key, mut row) in rows {
        row.tables[Colour::Green as usize].len = 0;
        services.insert(key, row, 0).unwrap();
    }
    let tester = tester(1);
    let of_idle =
        "198.51.100.200 is a tester: the flow goes to the idle colour of shop, green (blue is live, generation 1)";
    let copied = "203.0.113.15:53/udp is the virtual address of service copied of deployment shop";
    let counted = "counted as idle_not_ready";
    for (line, vip, protocol, answer) in [
        (WEB, VIP, TCP, "answered with a reset: no backend gets it"),
        (DNS, VIP, UDP, "answered with an ICMP error, port unreachable: no backend gets it"),
        (copied, COPIED, UDP, "answered with an ICMP error, port unreachable: no backend gets it"),
    ] {
        let refused = explain_packet(&lab, &tester, vip, protocol, None);
        says(&refused, &[line, &no_flow(&tester), of_idle, counted, answer]);
        assert_eq!(refused.verdict, "refuse");
    }
}

#[test]
fn a_table_that_is_full() {
    let lab = edge(AttachMode::Tc);
    let (vip, now) = (vip_of(&lab, VIP, TCP), tick(&lab));
    let (slot, row) = backend(&lab, WEB_BLUE, vip);
    let map = FlowMap::open(&lab);
    for number in 0..20_000_u32 {
        let key = FlowKey4 { client: 0x0a0a_0000 + number, port: Be16::new(1), vip };
        let backend = FlowBackend::new(slot, row.identity.epoch);
        // It may be silent for long, so it has not timed out however slow the machine is.
        let state = FlowState(OPEN).with_limit(1 << 20);
        map.insert(&key, &Flow { state, note: 7, backend, generation: 1, last_seen: now, ..Flow::default() }, now);
    }
    let user = client(1);
    let none = no_flow(&user);
    let explained = |opened: &[&str], last: &[&str]| {
        let lines = [&[WEB, &none, BLUE_IS_LIVE, TO_WEB_BLUE], opened, &[WAY_TO_BLUE], last, &[SENT]].concat();
        says(&explain_packet(&lab, &user, VIP, TCP, None), &lines);
    };
    let evicts = "a new flow is opened; the table is full there, so it evicts an open one";
    explained(&[evicts, "counted as pushed_out"], &[]);
    map.refuse();
    explained(&["the table has no row for the flow: the packet is sent without one"], &["counted as unpinned"]);
}
