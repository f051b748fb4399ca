//! What a dry run says of the backends of its target: whether each one is there.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::mpsc,
    time::{Duration, Instant},
};

use bg_userspace::{AttachMode, DryRun, SwitchRequest, config::parse};

use crate::{
    dry_run::{CONFIG, everything},
    lab::Lab,
};

/// Moves `v1` to another namespace, gives it an address there, and listens at this port. Ends with its sender.
fn neighbour(lab: &Lab, address: Ipv4Addr, port: u16) -> mpsc::Sender<()> {
    let (tell, told) = mpsc::channel();
    let (keep, end) = mpsc::channel::<()>();
    let (moved, is_moved) = mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        is_moved.recv().unwrap();
        for words in [&format!("address add {address}/8 dev v1"), "link set v1 up"] {
            assert!(std::process::Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        let listener = TcpListener::bind((address, port)).unwrap();
        tell.send(0).unwrap();
        let _ = end.recv();
        drop(listener);
    });
    lab.ip(&format!("link set v1 netns {}", told.recv().unwrap()));
    moved.send(()).unwrap();
    told.recv().unwrap();
    keep
}

#[test]
fn each_backend_of_the_target_is_told_to_be_there_or_not() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.ip("link set lo up");
    lab.ip("address add 10.9.0.1/8 dev v0");
    lab.ip("route add unreachable 198.18.0.0/15");
    let _neighbour = neighbour(&lab, Ipv4Addr::new(10, 9, 2, 10), 443);
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let (listens, closed) =
        (here.local_addr().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let more = format!(
        r#"
[[deployments.shop.services]]
name = "local"
vip = "203.0.113.10:444"
protocol = "tcp"
mode = "local"
blue = ["127.0.0.1:1"]
green = ["{listens}", {{ address = "{closed}", weight = 0 }}, "10.9.3.1:1"]
"#
    );
    let config = CONFIG.replace(
        r#"["10.9.2.10:443"]"#,
        r#"["10.9.2.10:443", "10.9.2.10:444", "10.9.2.11:443", "198.18.0.1:443", "10.9.0.1:443"]"#,
    );
    lab.instance().apply(&parse("test.toml".as_ref(), &(config + &more)).unwrap()).unwrap();

    let before = everything(&lab);
    let dry_run = || lab.instance().dry_run("shop", &SwitchRequest::default()).unwrap();
    // On a busy machine, a neighbour may be slow to answer.
    let there: SocketAddr = "10.9.2.10:443".parse().unwrap();
    let is_ready = |said: &DryRun| said.target.iter().any(|it| it.backend == there && it.ready == Some(true));
    let mut said = dry_run();
    for _ in 0..5 {
        if is_ready(&said) {
            break;
        }
        said = dry_run();
    }
    let after = everything(&lab);
    assert_eq!(after.0.get("live"), before.0.get("live"));
    assert_eq!((after.0.get("flows4"), after.1), (before.0.get("flows4"), before.1), "no flow, and no packet counted");
    let found: BTreeMap<_, _> = said
        .target
        .iter()
        .map(|it| ((it.service.as_str(), it.backend), (it.ready, it.why.clone().unwrap_or_default())))
        .collect();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let of =
        |service, backend: SocketAddr| found.get(&(service, backend)).unwrap_or_else(|| panic!("{found:?}")).clone();
    assert_eq!(of("web", address("10.9.2.10:443")), (Some(true), String::new()));
    assert_eq!(of("local", listens), (Some(true), String::new()));
    for (service, backend, part) in [
        ("web", address("10.9.2.10:444"), "refused"),
        ("web", address("10.9.2.11:443"), "10.9.2.11 does not respond to requests for its MAC address"),
        ("web", address("198.18.0.1:443"), "no route"),
        ("web", address("10.9.0.1:443"), "an address of this host, to which mode `nat` sends nothing"),
        ("local", closed, "refused"),
        ("local", address("10.9.3.1:1"), "not an address of this host"),
    ] {
        let (ready, why) = of(service, backend);
        assert!(ready == Some(false) && why.contains(part), "{service} {backend}: {ready:?} {why}");
    }
    // Of a UDP service only route and next hop can be examined. The connections have made this one known.
    assert_eq!(of("dns", address("10.9.2.10:53")), (Some(true), String::new()));
    assert_eq!(found.len(), 9);
    assert_eq!(said.target.iter().find(|it| it.backend == closed).unwrap().weight, 0);

    let (code, text, _) = lab.run(&["switch", "shop", "--dry-run"]);
    assert_eq!(code, 0, "backends that are not there do not keep a switch from being made");
    assert!(text.contains("green: 3 of 9 backends ready") && !text.contains(&listens.to_string()), "{text}");
    assert!(lab.run(&["switch", "shop", "--dry-run", "--verbose"]).1.contains(&listens.to_string()));

    // From another namespace nothing can be said of them.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            let said = lab.instance().dry_run("shop", &SwitchRequest::default()).unwrap();
            assert!(said.target.len() == 9 && said.target.iter().all(|it| it.ready.is_none() && it.why.is_some()));
        });
    });
}

#[test]
fn a_thousand_backends_that_are_gone_are_not_waited_for_one_by_one() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.ip("address add 10.9.0.1/8 dev v0");
    let green: Vec<_> = (0..1000).map(|n| format!("\"10.10.{}.{}:443\"", n / 200, 1 + n % 200)).collect();
    let config = CONFIG.replace(r#""10.9.2.10:443""#, &green.join(", "));
    lab.instance().apply(&parse("test.toml".as_ref(), &config).unwrap()).unwrap();
    let start = Instant::now();
    let said = lab.instance().dry_run("shop", &SwitchRequest::default()).unwrap();
    let (took, not_ready) = (start.elapsed(), said.target.iter().filter(|it| it.ready == Some(false)).count());
    println!("{took:?}");
    assert_eq!(not_ready, 1000, "each was tried");
    assert!(took < Duration::from_secs(60), "{took:?}: a second and a half for each is 25 minutes");
}
