//! Several freezes at once: of deployments of one instance, and of instances in several network namespaces.

use crate::{PATIENCE, phase, wait_for_held};
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Fabric, Lab, Ready, UDP_PORT, address,
    config::{DEPLOYMENT, shop, udp_vip},
    load::Echo,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A deployment behind the one under test, and the port of its UDP service.
pub(crate) const OTHER: &str = "other";
const OTHER_PORT: u16 = 5300;

pub(crate) fn other_vip(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, OTHER_PORT)
}

/// A deployment with a UDP service of each family, at a port of the VIPs. `backends` are addresses for each family and colour.
fn deployment(name: &str, backends: impl Fn(usize, Colour) -> Vec<SocketAddr>) -> String {
    let service = |(family, vip): (usize, IpAddr)| {
        let [blue, green] = Colour::ALL.map(|colour| {
            let all = backends(family, colour).iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>();
            all.join(", ")
        });
        format!(
            "\n[[deployments.{name}.services]]\nname = \"udp{family}\"\nvip = \"{}\"\nprotocol = \"udp\"\nmode = \"nat\"\n\
             blue = [{blue}]\ngreen = [{green}]\n",
            other_vip(vip)
        )
    };
    [address::VIP_V4, address::VIP_V6].into_iter().enumerate().map(service).collect()
}

/// The lab with this deployment behind the others.
pub(crate) fn with_other() -> Result<Ready> {
    let lab = Lab::wire(Fabric::Switch)?;
    let backends = |family: usize, colour| {
        let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
        of_colour.map(|backend| SocketAddr::new(backend.addresses[family], UDP_PORT)).collect()
    };
    let config = shop(&lab, "nat", "") + &deployment(OTHER, backends);
    Ready::with(lab, "native", &config)
}

fn held(bgctl: &Bgctl, deployment: &str) -> Result<u64> {
    bgctl.deployment(deployment)?["held"].as_u64().context("no number of held packets")
}

#[test]
fn two_deployments_are_frozen_at_once_and_go_on_one_after_the_other() -> Result<()> {
    const FLOWS: usize = 10;
    let ready = with_other()?;
    let Ready { bgctl, lab, .. } = &ready;
    for vip in [address::VIP_V4, address::VIP_V6] {
        for deployment in [OTHER, DEPLOYMENT] {
            bgctl.run(&["freeze", deployment, "--max", "1m"])?;
        }
        let open = |to| Echo::open(&lab.client, to);
        let flows: Vec<_> =
            (0..FLOWS).map(|_| Ok((open(udp_vip(vip))?, open(other_vip(vip))?))).collect::<Result<_>>()?;
        for (nth, (ours, others)) in flows.iter().enumerate() {
            ours.send(&format!("ours {nth}"))?;
            others.send(&format!("of the other {nth}"))?;
        }
        wait_for_held(bgctl, FLOWS as u64)?;
        let start = Instant::now();
        while held(bgctl, OTHER)? < FLOWS as u64 {
            ensure!(start.elapsed() < PATIENCE, "{} packets of the other deployment are held", held(bgctl, OTHER)?);
        }
        let before = bgctl.live(OTHER)?;
        assert_eq!(bgctl.json(&["thaw", DEPLOYMENT])?["played_back"], FLOWS);
        for (nth, (ours, _)) in flows.iter().enumerate() {
            assert_eq!(ours.receive(&format!("ours {nth}"))?.colour, Colour::Blue);
        }
        assert_eq!((phase(bgctl, OTHER)?.as_str(), held(bgctl, OTHER)?), ("frozen", FLOWS as u64));
        bgctl.run(&["switch", OTHER])?;
        flows[0].1.set_patience(Duration::from_millis(50))?;
        assert!(flows[0].1.receive("of the other 0").is_err(), "it waits for its own thaw");
        flows[0].1.set_patience(PATIENCE)?;
        assert_eq!(bgctl.json(&["thaw", OTHER])?["played_back"], FLOWS);
        let mut by_backend: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (nth, (_, others)) in flows.iter().enumerate() {
            let answer = others.receive(&format!("of the other {nth}"))?;
            assert_ne!(answer.colour.name(), before, "its own switch came before");
            by_backend.entry(answer.backend).or_default().push(answer.number);
        }
        assert!(by_backend.values().all(|numbers| numbers.is_sorted()), "{by_backend:?}");
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn a_deployment_freezes_and_goes_on_while_another_one_switches() -> Result<()> {
    const FREEZES: usize = 15;
    let ready = with_other()?;
    let Ready { bgctl, lab, .. } = &ready;
    let is_over = AtomicBool::new(false);
    let switches = thread::scope(|scope| -> Result<usize> {
        let switching = scope.spawn(|| -> Result<usize> {
            let mut switches = 0;
            while !is_over.load(Ordering::SeqCst) {
                let to = bgctl.json(&["switch", OTHER])?["to"]["live"].clone();
                let answer = Echo::open(&lab.client, other_vip(address::VIP_V6))?.ask("which")?;
                ensure!(to == answer.colour.name(), "{answer:?} after a switch to {to}");
                switches += 1;
            }
            Ok(switches)
        });
        let freezing = || -> Result<()> {
            for nth in 0..FREEZES {
                bgctl.run(&["freeze", DEPLOYMENT, "--max", "1m"])?;
                let waiting = Echo::open(&lab.client, udp_vip(address::VIP_V4))?;
                waiting.set_patience(PATIENCE)?;
                waiting.send(&nth.to_string())?;
                wait_for_held(bgctl, 1)?;
                bgctl.run(&["thaw", DEPLOYMENT])?;
                assert_eq!(waiting.receive(&nth.to_string())?.colour, Colour::Blue);
            }
            Ok(())
        };
        let frozen = freezing();
        is_over.store(true, Ordering::SeqCst);
        let switches = switching.join().expect("no panic")?;
        frozen.map(|()| switches)
    })?;
    assert!(switches > 0, "none while it was frozen");
    assert_eq!(bgctl.deployment(DEPLOYMENT)?["generation"], 1);
    ready.neighbour_is_undisturbed()
}

#[test]
fn a_packet_that_one_instance_plays_back_is_held_by_the_next_one_behind_it() -> Result<()> {
    const NEXT_PORT: u16 = 5354;
    let lab = Lab::wire(Fabric::Switch)?;
    let [blue, green] = [0, 2].map(|nth: usize| &lab.backends[nth]);
    let one = |family: usize, colour| {
        let backend = if colour == Colour::Blue { blue } else { green };
        vec![SocketAddr::new(backend.addresses[family], UDP_PORT)]
    };
    let config = shop(&lab, "nat", "") + &deployment(OTHER, one);
    let ready = Ready::with(lab, "native", &config)?;
    let Ready { bgctl, lab, .. } = &ready;
    // On the blue backend another instance switches between services of its own.
    let backend = &lab.backends[0];
    let next = |words: &[&str]| -> Result<Output> {
        let mut command = backend.namespace.command(bgctl.program());
        command.arg("--pin-root").arg(lab.sandbox.pin_root().join("next"));
        command.arg("--state-dir").arg(lab.sandbox.dir().join("next-state")).arg("--json");
        Ok(command.args(words).output()?)
    };
    let done = |words: &[&str]| -> Result<String> {
        let output = next(words)?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let of_first = |port| SocketAddr::new(backend.addresses[0], port);
    let mut config = format!(
        "[[deployments.before.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"local\"\nblue = [\"{}\"]\ngreen = [\"{}\"]\n",
        of_first(7001),
        of_first(7002),
        of_first(7003)
    );
    for (family, address) in backend.addresses.into_iter().enumerate() {
        let at = |port| SocketAddr::new(address, port);
        config += &format!(
            "[[deployments.chained.services]]\nname = \"udp{family}\"\nvip = \"{}\"\nprotocol = \"udp\"\nmode = \"local\"\n\
             blue = [\"{}\"]\ngreen = [\"{}\"]\n",
            at(UDP_PORT),
            at(NEXT_PORT),
            at(NEXT_PORT + 1)
        );
    }
    let file = lab.sandbox.dir().join("next.toml");
    std::fs::write(&file, config)?;
    done(&["attach", "--mode", "tc", "eth0"])?;
    done(&["apply", "-c", &file.display().to_string()])?;

    for (family, vip) in [address::VIP_V4, address::VIP_V6].into_iter().enumerate() {
        let address = backend.addresses[family];
        let server = backend.namespace.enter(|| UdpSocket::bind((address, NEXT_PORT)))??;
        let arrives = |patience: Duration| -> Result<Option<Vec<u8>>> {
            let mut buffer = [0; 64];
            server.set_read_timeout(Some(patience))?;
            Ok(server.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
        };
        bgctl.run(&["freeze", OTHER, "--max", "1m"])?;
        done(&["freeze", "chained", "--max", "1m"])?;
        Echo::open(&lab.client, other_vip(vip))?.send("twice held")?;
        let start = Instant::now();
        while held(bgctl, OTHER)? == 0 {
            ensure!(start.elapsed() < PATIENCE, "nothing is held");
        }
        bgctl.run(&["thaw", OTHER])?;
        assert_eq!(arrives(Duration::from_millis(200))?, None, "the next instance is frozen, too");
        let thawed: serde_json::Value = serde_json::from_str(&done(&["thaw", "chained"])?)?;
        assert_eq!(thawed["played_back"], 1, "{thawed}");
        assert_eq!(arrives(PATIENCE)?.as_deref(), Some(&b"twice held"[..]));
    }
    done(&["detach", "--all"])?;
    ready.neighbour_is_undisturbed()
}
