//! By which way a packet leaves, and what XDP leaves to tc.

use super::*;

#[test]
fn by_which_way_a_packet_leaves() {
    let lab = edge(AttachMode::Tc);
    let user = client(1);
    let to = |vip| explain_packet(&lab, &user, vip, TCP, None);
    let none = no_flow(&user);
    let begin =
        |vip: &str, name: &str| format!("{vip}/tcp is the virtual address of service {name} of deployment shop");

    let lines: &[&str] = &[
        &begin("203.0.113.12:443", "lost"),
        &none,
        BLUE_IS_LIVE,
        "backend 172.31.255.1:8443 of blue, by entry 0 of 1 of the Maglev table",
        OPENED,
        "there is no route that the packet can be redirected by",
        "there is no next hop to redirect to, or the frame has a VLAN tag: the host's stack sends it",
        "counted as next_hop_by_stack",
        "rewritten, and handed to the host's stack",
    ];
    says(&to("203.0.113.12:443"), lines);
    let lines: &[&str] = &[
        &begin("203.0.113.13:443", "silent"),
        &none,
        BLUE_IS_LIVE,
        "backend 10.0.1.99:8443 of blue, by entry 0 of 1 of the Maglev table",
        OPENED,
        "the kernel's route leads out by v0; the MAC address of the next hop is not known yet",
        SENT,
    ];
    says(&to("203.0.113.13:443"), lines);
    let lines: &[&str] = &[
        &begin("203.0.113.14:443", "here"),
        &none,
        BLUE_IS_LIVE,
        "backend 10.0.1.1:8443 of blue, by entry 0 of 1 of the Maglev table",
        OPENED,
        "the backend is an address of this host",
        "rewritten, and handed to the host's stack",
    ];
    says(&to("203.0.113.14:443"), lines);

    // A next hop that packets keep fresh, as they do.
    let (vip, is_over) = (vip_of(&lab, VIP, TCP), AtomicBool::new(false));
    let (slot, row) = backend(&lab, WEB_BLUE, vip);
    let mac = |last: u8| u64::from_le_bytes([2, 0, 0, 0, 0, last, 0, 0]);
    let ifindex = ifindex();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rows = array::<Backend>(&lab, "backends");
            while !is_over.load(Ordering::Relaxed) {
                let now = tick(&lab);
                let next_hop =
                    NextHop { asked: now.wrapping_sub(3), ..NextHop::pack(ifindex, 1500, mac(0x33), mac(1), now) };
                rows.set(slot, Backend { next_hop, ..row }, 0).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let known = to(VIP);
        is_over.store(true, Ordering::Relaxed);
        let leaves = "leaves by v0 to 02:00:00:00:00:33, next hop known";
        says(&known, &[WEB, &none, BLUE_IS_LIVE, TO_WEB_BLUE, OPENED, leaves, "rewritten, and sent out by v0"]);
    });
}

#[test]
fn what_xdp_leaves_to_tc() {
    let lab = edge(AttachMode::Native);
    let user = client(1);
    let none = no_flow(&user);
    let to = |vip: &str, protocol| {
        let explanation = explain_packet(&lab, &user, vip, protocol, None);
        assert_eq!(explanation.hooks.iter().map(|at| at.hook).collect::<Vec<_>>(), ["xdp", "tc ingress"]);
        explanation
    };
    let not_learned =
        "XDP has not learned the interface's MAC address yet: the first packet goes to tc, which learns it";
    says_at(0, &to(VIP, TCP), &[not_learned, PASSED]);
    let mac = u64::from_le_bytes([2, 0, 0, 0, 0, 1, 0, 0]);
    array::<u64>(&lab, "interfaces").set(ifindex(), mac, 0).unwrap();

    let new = |vip: &str, name: &str, backend: &str, last: &[&str]| {
        let vip_line = format!("{vip}/tcp is the virtual address of service {name} of deployment shop");
        let backend = format!("backend {backend} of blue, by entry 0 of 1 of the Maglev table");
        says_at(
            0,
            &to(vip, TCP),
            &[&[vip_line.as_str(), &none, BLUE_IS_LIVE, &backend, OPENED], last, &[DEFERRED]].concat(),
        );
    };
    let asks = "XDP leaves one packet in a while to tc, so that the kernel checks that the neighbour is still there";
    new(VIP, "web", WEB_BLUE, &[WAY_TO_BLUE, asks]);
    let no_route = "there is no route that the packet can be redirected by";
    let by_tc = "there is no next hop to redirect to, or the frame has a VLAN tag: XDP leaves it to tc";
    new("203.0.113.12:443", "lost", "172.31.255.1:8443", &[no_route, by_tc]);
    let unknown = "the kernel's route leads out by v0; the MAC address of the next hop is not known yet";
    let no_redirect = "XDP cannot redirect to v0 at once, and leaves the packet to tc";
    new("203.0.113.13:443", "silent", "10.0.1.99:8443", &[unknown, no_redirect]);
    let local = "the backend is an address of this host: XDP leaves the packet to tc";
    new("203.0.113.14:443", "here", "10.0.1.1:8443", &[local]);

    let mirrored = "the service has a mirror: XDP leaves the datagram to tc, which can send it twice";
    says_at(0, &to(COPIED, UDP), &[mirrored, DEFERRED]);

    put(&lab, &client(2), (VIP, TCP), WEB_BLUE, OPEN, 7);
    let inside = "a SYN inside an established connection: XDP leaves it to tc, which notes it";
    let syn = explain_packet(&lab, &client(2), VIP, TCP, None);
    says_at(0, &syn, &[WEB, &flow("10.0.1.11:8443 (blue)", "established"), inside, DEFERRED]);

    let hour = Some(Duration::from_secs(3600));
    lab.instance().freeze("shop", &FreezeRequest { max: hour, drop: false, reason: None }).unwrap();
    let held = to(VIP, TCP);
    says_at(
        0,
        &held,
        &[
            WEB,
            &none,
            BLUE_IS_LIVE,
            "shop is frozen, so what opens a flow waits: XDP leaves the packet to tc",
            DEFERRED,
        ],
    );
    let lines: &[&str] = &[
        WEB,
        &none,
        BLUE_IS_LIVE,
        "shop is frozen, so what opens a flow waits",
        "counted as held",
        "held: it goes on at the thaw",
    ];
    says(&held, lines);
}
