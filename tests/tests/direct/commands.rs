//! What commands say of such services.

use crate::stage::{Stage, VIPS};
use anyhow::{Context as _, Result};
use bg_common::Colour;
use bg_tests::{
    HTTP_PORT, Namespace, Server, address,
    load::{Connection, Fresh, KeepAlive},
};
use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// A condition cannot judge what passes elsewhere, a drain ends with the clients' last segments, and a cut resets both ends.
#[test]
fn conditions_are_refused_drains_end_and_cuts_reset_both_ends() -> Result<()> {
    let stage = Stage::new("native")?;
    for mode in ["l2dsr", "ipip", "gue"] {
        stage.bgctl.apply(&stage.deployment("shop", &Stage::services(mode, None)))?;
        let vip = SocketAddr::new(address::VIP_V4, HTTP_PORT);
        let refused = stage.bgctl.try_run(&["switch", "shop", "--revert-if", "resets > 5% of 200"])?;
        let message = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{message}");
        assert!(message.contains("reply to clients directly") && message.contains(mode), "{message}");

        let live = if stage.bgctl.live("shop")? == "blue" { Colour::Blue } else { Colour::Green };
        let kept = KeepAlive { clients: 4, pause: Duration::from_millis(2) }.start(&stage.lab.client, vip)?;
        kept.wait_for(40)?;
        stage.bgctl.run(&["switch", "shop"])?;
        let left = stage.bgctl.try_run(&["drain", "shop"])?;
        assert_eq!(left.status.code(), Some(4), "{mode}: {}", String::from_utf8_lossy(&left.stdout));
        let kept = kept.finish()?;
        assert_eq!((kept.failures, kept.answers[live.other() as usize]), (0, 0), "{:?}", kept.first_failures);
        // The clients have closed their connections.
        stage.bgctl.run(&["drain", "shop", "--wait", "--timeout", "20s"])?;

        let kept = KeepAlive { clients: 4, pause: Duration::from_millis(2) }.start(&stage.lab.client, vip)?;
        kept.wait_for(40)?;
        kept.tally().expect_cut(true);
        stage.bgctl.run(&["switch", "shop", "--on-switch", "cut"])?;
        let back = live;
        let answers = || kept.tally().counts().answers[back as usize];
        let (begin, start) = (answers(), std::time::Instant::now());
        while answers() < begin + 20 {
            anyhow::ensure!(start.elapsed() < Duration::from_secs(20), "{:?}", kept.tally().counts());
            std::thread::sleep(Duration::from_millis(5));
        }
        for backend in stage.lab.backends.iter().filter(|backend| backend.colour != back) {
            let open = backend.namespace.run(&format!("ss -Htn state established sport = :{HTTP_PORT}"))?;
            assert!(open.trim().is_empty(), "{mode}, {}: {open}", backend.name);
        }
        let counts = kept.finish()?;
        assert_eq!((counts.failures, counts.cut), (0, 4), "{counts:?}");
    }
    Ok(())
}

/// `show` prints what `check` takes, `explain` names the headers, and the sources of outer headers follow the host's addresses.
#[test]
fn settings_are_shown_explained_and_changed_in_place() -> Result<()> {
    let stage = Stage::new("tc")?;
    let services = Stage::services("gue", Some(false));
    let config = stage.deployment("shop", &services);
    stage.bgctl.apply(&config)?;
    let shown = stage.bgctl.run(&["show"])?;
    assert!(shown.contains("mode = \"gue\"") && !shown.contains("gue_port"), "{shown}");
    let explain = ["explain", "--from", "192.0.2.2:4000", "--to", "203.0.113.10:8080", "--protocol", "tcp"];
    let explained = stage.bgctl.run(&explain)?;
    assert!(explained.contains("32 bytes of outer headers (mode gue)"), "{explained}");
    let prefix = "gue_port = 5555\nouter_source = [\"10.77.0.0/24\"]\n";
    let other = config.replace("mode = \"gue\"\n", &format!("mode = \"gue\"\n{prefix}"));
    let plan = stage.bgctl.try_run(&["plan", "-c", &stage.bgctl.write_config(&other)?])?;
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("gue_port 6080 -> 5555") && plan.contains("outer_source none -> 10.77.0.0/24"), "{plan}");
    stage.bgctl.apply(&other)?;
    assert!(stage.bgctl.run(&["show"])?.contains("outer_source = [\"10.77.0.0/24\"]"));
    let shown = stage.bgctl.run(&["show"])?;
    let again = stage.bgctl.try_run(&["plan", "-c", &stage.bgctl.write_config(&shown)?])?;
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stdout));
    Ok(())
}

/// `decap status` tells what was unpacked and what was not, and which addresses are newer than the program.
#[test]
fn a_backend_tells_what_it_unpacks() -> Result<()> {
    let stage = Stage::new("native")?;
    stage.bgctl.apply(&stage.deployment("shop", &Stage::services("gue", Some(false))))?;
    let backend = &stage.lab.backends[0];
    let pins = stage.lab.sandbox.pin_root().join(backend.name);
    let decap = |words: &str| {
        let program = stage.bgctl.program().display();
        backend.namespace.run(&format!("{program} decap {words} --pin-root {}", pins.display()))
    };
    let status = || {
        let status: serde_json::Value = serde_json::from_str(&decap("status --json")?)?;
        anyhow::Ok(status["interfaces"].clone())
    };
    let before = status()?;
    assert_eq!(before.as_array().map(Vec::len), Some(1), "{before}");
    assert_eq!(
        (&before[0]["interface"], &before[0]["state"], &before[0]["gue_port"]),
        (&"eth0".into(), &"attached".into(), &6080.into()),
        "{before}"
    );
    let from = [format!("{}/32", address::BACK_V4), format!("{}/128", address::BACK_V6)];
    assert_eq!(before[0]["from"], serde_json::json!(from), "{before}");
    assert_eq!((&before[0]["unknown_addresses"], &before[0]["congested"]), (&serde_json::json!([]), &0.into()));
    let vip = SocketAddr::new(address::VIP_V4, HTTP_PORT);
    // Of so many connections some go to this backend.
    let fresh = Fresh { clients: 2, pause: Duration::from_millis(1) }.start(&stage.lab.client, vip)?;
    fresh.wait_for(60)?;
    assert_eq!(fresh.finish()?.failures, 0);
    let unpacked = |status: &serde_json::Value| status[0]["unpacked"].as_u64().unwrap_or(0);
    let after = status()?;
    assert!(unpacked(&after) > unpacked(&before) + 10, "{after}");

    backend.namespace.ip("address add 203.0.113.99/32 dev lo")?;
    assert_eq!(status()?[0]["unknown_addresses"], serde_json::json!(["203.0.113.99"]));
    assert!(decap("status eth0")?.contains("203.0.113.99; attach again"));
    decap("attach eth0 --from 10.99.0.0/16")?;
    let again = status()?;
    assert_eq!((&again[0]["unknown_addresses"], unpacked(&again)), (&serde_json::json!([]), 0));
    decap("detach eth0")?;
    assert_eq!(status()?, serde_json::json!([]));
    assert!(decap("status eth0").is_err() && decap("detach eth0").is_err(), "nothing is there");
    Ok(())
}

/// The kernel looks up no route for packets of an interface that does not forward.
#[test]
fn without_forwarding_packets_are_counted_and_doctor_says_so() -> Result<()> {
    let stage = Stage::new("native")?;
    let config = stage.deployment("shop", &Stage::services("ipip", Some(false)));
    stage.bgctl.apply(&config)?;
    let file = stage.bgctl.write_config(&config)?;
    let vip = SocketAddr::new(address::VIP_V4, HTTP_PORT);
    let connect =
        || stage.lab.client.enter(|| std::net::TcpStream::connect_timeout(&vip, Duration::from_millis(500)).is_ok());
    let says_so = || {
        let findings = stage.bgctl.try_run(&["doctor", "-c", &file])?;
        anyhow::Ok(String::from_utf8_lossy(&findings.stdout).contains("no packet would be sent on to an IPv4 backend"))
    };
    assert!(connect()? && !says_so()?);
    stage.lab.edge.sysctl("ipv4/ip_forward", "0")?;
    let start = std::time::Instant::now();
    // A route that was found before is trusted for a moment.
    while stage.bgctl.json(&["status"])?["drops"]["no_way"].as_u64() == Some(0) {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(30), "packets are still sent on");
        connect()?;
    }
    assert!(says_so()?);
    stage.lab.edge.sysctl("ipv4/ip_forward", "1")?;
    while !connect()? {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(60), "packets are not sent on again");
    }
    Ok(())
}

/// An apply before the network is there, as at boot, learns no sources of outer headers.
#[test]
fn sources_of_outer_headers_are_learned_when_the_network_has_come() -> Result<()> {
    let stage = Stage::new("native")?;
    let Stage { bgctl, lab, .. } = &stage;
    let config = stage.deployment("shop", &Stage::services("ipip", Some(false)));
    let file = bgctl.write_config(&config)?;
    let vip = SocketAddr::new(address::VIP_V4, HTTP_PORT);
    let connect = || lab.client.enter(|| std::net::TcpStream::connect_timeout(&vip, Duration::from_secs(5)).is_ok());
    let attach = || bgctl.try_run(&[&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat());
    let says = |what: &str, output: &std::process::Output| {
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8_lossy(&output.stderr).contains(what)
    };
    let doctor = || {
        let findings = bgctl.try_run(&["doctor", "--json", "-c", &file])?;
        let findings: serde_json::Value = serde_json::from_slice(&findings.stdout)?;
        let all = findings["findings"].as_array().into_iter().flatten();
        anyhow::Ok(all.filter(|it| it["check"] == "outer source").map(|it| it["level"].clone()).collect::<Vec<_>>())
    };
    const NONE: &str = "no source address is known for outer headers";
    lab.edge.ip("-4 address flush dev back")?;
    assert!(says(NONE, &bgctl.try_run(&["apply", "-c", &file])?), "apply does not warn");
    assert!(says(NONE, &bgctl.try_run(&["status"])?), "status does not warn");
    assert!(says(NONE, &attach()?), "attach does not warn");
    assert!(doctor()?.iter().any(|level| level == "fail"));

    lab.edge.ip(&format!("address add {}/16 dev back", address::BACK_V4))?;
    assert!(!says("source", &attach()?), "it is known now");
    assert_eq!(doctor()?, [""; 0]);
    assert!(connect()?, "packets find their way");

    // Another address in place of the one that is in use.
    lab.edge.ip(&format!("address delete {}/16 dev back", address::BACK_V4))?;
    lab.edge.ip("address add 10.0.0.77/16 dev back")?;
    assert!(says("is not an address of this host", &bgctl.try_run(&["status"])?));
    assert!(doctor()?.iter().any(|level| level == "fail"));
    assert!(!says("source", &bgctl.try_run(&["apply", "-c", &file])?), "an apply that changes nothing learns too");
    assert_eq!(doctor()?, [""; 0]);

    // While another command has the lock, rows may become those of other backends.
    lab.edge.ip("address delete 10.0.0.77/16 dev back")?;
    lab.edge.ip("address add 10.0.0.78/16 dev back")?;
    let lock = std::fs::File::open(lab.sandbox.pin_root())?;
    lock.lock()?;
    bgctl.run(&["switch", "shop"])?;
    assert!(says("is not an address of this host", &bgctl.try_run(&["status"])?), "learned without the lock");
    lock.unlock()?;
    bgctl.run(&["switch", "shop"])?;
    assert!(!says("source", &bgctl.try_run(&["status"])?), "a switch learns too");
    Ok(())
}

/// Where a connection is, its row tells: by its hash it would go elsewhere once backends were added, or while a share is split.
#[test]
fn between_modes_of_direct_replies_all_connections_go_on() -> Result<()> {
    const CONNECTIONS: usize = 16;
    let stage = Stage::new("native")?;
    let Stage { bgctl, lab, .. } = &stage;
    let all = |mode| {
        let services = Stage::services(mode, None);
        stage.deployment("shop", &[services[0], services[3]])
    };
    let alone = |mode| {
        let [second, third] = lab.backends[1].addresses.map(|address| SocketAddr::new(address, HTTP_PORT));
        all(mode).replace(&format!(", \"{second}\""), "").replace(&format!(", \"{third}\""), "")
    };
    let open = || -> Result<Vec<(Connection, String)>> {
        let vips = VIPS.iter().cycle().take(CONNECTIONS);
        vips.map(|vip| {
            let connection = Connection::open(&lab.client, SocketAddr::new(*vip, HTTP_PORT))?;
            let says = connection.ask()?;
            Ok((connection, says))
        })
        .collect()
    };
    let go_on = |connections: &[(Connection, String)], what: &str| -> Result<()> {
        for (connection, says) in connections {
            anyhow::ensure!(&connection.ask().with_context(|| format!("{what}: {says}"))? == says, "{what}: {says}");
        }
        Ok(())
    };
    bgctl.apply(&alone("ipip"))?;
    let old = open()?;
    anyhow::ensure!(old.iter().all(|(_, says)| *says == lab.backends[0].says()), "blue has one backend");
    bgctl.apply(&all("ipip"))?;
    bgctl.apply(&all("gue"))?;
    go_on(&old, "a backend was added")?;

    bgctl.run(&["split", "shop", "--green", "50"])?;
    let split = open()?;
    anyhow::ensure!(Colour::ALL.iter().all(|colour| split.iter().any(|(_, says)| says.starts_with(colour.name()))));
    bgctl.apply(&all("l2dsr"))?;
    go_on(&old, "split")?;
    go_on(&split, "split")?;

    bgctl.run(&["switch", "shop", "green"])?;
    bgctl.apply(&all("ipip"))?;
    go_on(&old, "drained")?;
    go_on(&split, "drained")?;
    Ok(())
}

/// A connection cannot go on if its backend's replies take another way from now on.
#[test]
fn a_change_of_mode_ends_the_connections_that_it_breaks_at_both_ends() -> Result<()> {
    let stage = Stage::new("native")?;
    let Stage { bgctl, lab, .. } = &stage;
    let version = |mode| stage.deployment("shop", &Stage::services(mode, None));
    let vip = SocketAddr::new(address::VIP_V4, HTTP_PORT);
    let open = || -> Result<std::net::TcpStream> {
        let mut stream = lab.client.enter(|| std::net::TcpStream::connect_timeout(&vip, Duration::from_secs(5)))??;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        ask(&mut stream)?;
        Ok(stream)
    };
    let is_reset = |mut stream: std::net::TcpStream| -> Result<()> {
        let error = stream.read(&mut [0]).err().context("not reset")?;
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        for backend in &lab.backends {
            let open = backend.namespace.run(&format!("ss -Htn state established sport = :{HTTP_PORT}"))?;
            assert!(open.trim().is_empty(), "{}: {open}", backend.name);
        }
        Ok(())
    };

    bgctl.apply(&version("ipip"))?;
    // The one is at the colour that is being drained.
    let direct = [open()?, {
        bgctl.run(&["switch", "shop"])?;
        open()?
    }];
    // In mode `nat`, replies to the client have to come by the edge, from the backends' own addresses.
    let mut servers = Vec::new();
    for backend in &lab.backends {
        servers.push(Server::start(&backend.namespace, &backend.says(), &backend.addresses[..1])?);
        backend.namespace.ip(&format!("route delete {}", address::CLIENT_V4))?;
    }
    bgctl.apply(&version("nat"))?;
    direct.into_iter().try_for_each(is_reset)?;
    let translated = open()?;
    bgctl.apply(&version("ipip"))?;
    is_reset(translated)
}

/// A request and the beginning of its answer.
fn ask(stream: &mut std::net::TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut answer = [0; 4096];
    let len = stream.read(&mut answer)?;
    anyhow::ensure!(answer[..len].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer[..len]));
    Ok(())
}

/// Zones of one machine may share the directory of pins, and have interfaces of the same name.
#[test]
fn backends_with_the_same_interface_names_unpack_each_on_their_own() -> Result<()> {
    let stage = Stage::new("native")?;
    let pins = stage.lab.sandbox.pin_root().join("shared");
    let program = stage.bgctl.program().display();
    let [first, second] = [0, 1].map(|at| &stage.lab.backends[at]);
    let decap = |of: &bg_tests::Backend, words: &str| {
        of.namespace.run(&format!("{program} decap {words} --pin-root {}", pins.display()))
    };
    let has_program =
        |of: &bg_tests::Backend| anyhow::Ok(of.namespace.run("ip -details link show dev eth0")?.contains("prog/xdp"));
    for backend in [first, second] {
        let own = stage.lab.sandbox.pin_root().join(backend.name);
        backend.namespace.run(&format!("{program} decap detach eth0 --pin-root {}", own.display()))?;
        decap(backend, "attach eth0 --from 10.0.0.0/8")?;
    }
    assert!(has_program(first)? && has_program(second)?);
    for backend in [first, second] {
        let status: serde_json::Value = serde_json::from_str(&decap(backend, "status --json")?)?;
        let interfaces = status["interfaces"].as_array().context("no list")?;
        assert!(interfaces.len() == 1 && interfaces[0]["state"] == "attached", "{status}");
    }
    decap(second, "attach eth0 --from 10.0.0.0/8").context("in place")?;
    decap(second, "detach eth0")?;
    assert!(has_program(first)? && !has_program(second)?);
    decap(first, "detach eth0")?;

    // The driver of a veth takes no program if packets do not fit a page, and the stack's XDP would miss some.
    first.namespace.ip("link add a.7 mtu 9000 type veth peer name b.7 mtu 9000")?;
    let refused = format!("{:#}", decap(first, "attach a.7").err().context("attached")?);
    assert!(refused.contains("--mode generic does not see most packets"), "{refused}");
    first.namespace.ip("link set a.7 up")?;
    first.namespace.ip("link set b.7 up")?;
    let attached: serde_json::Value = serde_json::from_str(&decap(first, "attach a.7 --mode generic --json")?)?;
    let addresses = attached["attached"][0]["addresses"].as_array().context("no addresses")?;
    let has = |start: &str| addresses.iter().any(|it| it.as_str().is_some_and(|text| text.starts_with(start)));
    assert!(["127.", "::1", "fe80:"].iter().all(|start| !has(start)), "{attached}");
    assert!(has(&address::VIP_V4.to_string()) && has(&address::VIP_V6.to_string()), "{attached}");
    let warning = attached["attached"][0]["warning"].as_str().context("no warning")?;
    assert!(warning.contains("redirected"), "{warning}");

    // An interface of this name that is another one now.
    first.namespace.ip("link delete a.7")?;
    first.namespace.ip("link add a.7 type veth peer name b.7")?;
    let unpacks = |interface: &str| {
        anyhow::Ok(first.namespace.run(&format!("ip -details link show dev {interface}"))?.contains("prog/xdp"))
    };
    decap(first, "attach a.7").context("the old one has gone")?;
    assert!(unpacks("a.7")?);
    first.namespace.ip("link set a.7 name renamed")?;
    first.namespace.ip("link add a.7 type veth peer name c.7")?;
    let refused = format!("{:#}", decap(first, "attach a.7").err().context("attached")?);
    assert!(refused.contains("which was renamed") && unpacks("renamed")? && !unpacks("a.7")?, "{refused}");
    decap(first, "detach a.7")?;
    decap(first, "attach a.7")?;
    assert!(unpacks("a.7")? && !unpacks("renamed")?);
    decap(first, "detach a.7").map(drop)
}

/// A container that is restarted has another namespace, whose number is in the names of its pins.
#[test]
fn pins_of_a_namespace_that_is_gone_are_removed_by_the_next_command_of_another() -> Result<()> {
    let stage = Stage::new("native")?;
    let pins = stage.lab.sandbox.pin_root().join("shared");
    let decap = |of: &Namespace, words: &str| {
        of.run(&format!("{} decap {words} --pin-root {}", stage.bgctl.program().display(), pins.display()))
    };
    let count = || anyhow::Ok(std::fs::read_dir(pins.with_file_name("shared-decap"))?.count());
    let create = || -> Result<Namespace> {
        let zone = Namespace::create(stage.lab.sandbox.id(), "zone")?;
        zone.ip("link add inner type veth peer name outer")?;
        decap(&zone, "attach inner --from 10.0.0.0/8")?;
        Ok(zone)
    };
    let host = &stage.lab.client;
    host.ip("link add own type veth")?;
    decap(host, "attach own --from 10.0.0.0/8")?;
    for words in ["status", "attach own", "detach none"] {
        drop(create()?);
        let start = Instant::now();
        // The kernel removes a namespace some time after its name.
        while count()? > 1 {
            anyhow::ensure!(start.elapsed() < Duration::from_secs(30), "{words}: {}", count()?);
            anyhow::ensure!(decap(host, words).is_ok() == (words != "detach none"), "{words}");
        }
        assert_eq!(count()?, 1, "{words}");
    }
    let other = create()?;
    host.ip("link delete own")?;
    decap(host, "status")?;
    assert!(decap(host, "status own --json")?.contains("\"gone\""), "this namespace is told of its own");
    assert!(decap(&other, "status inner --json")?.contains("\"attached\""), "there, all is as it was");
    Ok(())
}

/// A route may be narrower than its interface.
#[test]
fn doctor_asks_whether_the_route_has_room_for_the_outer_headers() -> Result<()> {
    let stage = Stage::new("native")?;
    let file = stage.bgctl.write_config(&stage.deployment("shop", &Stage::services("ipip", Some(false))))?;
    let told =
        || anyhow::Ok(String::from_utf8_lossy(&stage.bgctl.try_run(&["doctor", "-c", &file])?.stdout).into_owned());
    let backend = stage.lab.backends[0].addresses[0];
    assert!(!told()?.contains("has an MTU of"));
    stage.lab.edge.ip(&format!("route add {backend}/32 dev back mtu 1299"))?;
    let all = told()?;
    assert!(all.contains("has an MTU of 1299") && all.matches("has an MTU of").count() == 3, "{all}");
    stage.lab.edge.ip(&format!("route change {backend}/32 dev back mtu 1300"))?;
    assert!(!told()?.contains("has an MTU of"));
    Ok(())
}
