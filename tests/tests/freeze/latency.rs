//! How long clients wait whose SYNs are held: as long as the freeze, and in their order.
//!
//! The order is that of the first SYN of each client, so it does not matter whether one is sent again. Nothing is asserted of times, which depend on the machine. They are printed beside those of as many clients that connect without a freeze, since all stacks of the
//! lab share its processors.

use crate::{
    clients::{Connected, connect},
    round,
};
use anyhow::{Context, Result};
use bg_common::Colour;
use bg_tests::{
    RawSocket, Ready, address,
    config::{DEPLOYMENT, http_vip},
};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    thread,
    time::{Duration, Instant, SystemTime},
};

const CLIENTS: usize = 1000;
/// Enough for all to send their SYNs, and less than a second, after which they would send them again.
const FREEZE: Duration = Duration::from_millis(700);

/// The blue backends' ends of the wires.
fn open_wires(ready: &Ready) -> Result<Vec<RawSocket>> {
    let blue = ready.lab.backends.iter().filter(|backend| backend.colour == Colour::Blue);
    blue.map(|backend| RawSocket::open(&backend.namespace, "eth0")).collect()
}

/// Source ports of the SYNs that have come to a backend, in the order in which the first of each came.
fn syns(socket: &RawSocket) -> Result<Vec<u16>> {
    const SYN: u8 = 2;
    let (mut ports, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(frame) = socket.receive_within(Duration::from_millis(20))? {
        if frame.len() > 47 && frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] & 0x3f == SYN {
            let port = u16::from_be_bytes([frame[34], frame[35]]);
            if seen.insert(port) {
                ports.push(port);
            }
        }
    }
    Ok(ports)
}

/// Asserts that the SYNs of these clients have come to the backends in the order in which they were sent.
fn came_in_order(wires: &[RawSocket], connected: &[Connected]) -> Result<()> {
    let sent = connected.iter().map(Connected::port).collect::<Result<Vec<_>>>()?;
    let mut came = 0;
    for wire in wires {
        let of_ours = |port| sent.iter().position(|sent| *sent == port);
        let order: Vec<_> = syns(wire)?.into_iter().filter_map(of_ours).collect();
        assert!(order.is_sorted(), "{order:?}");
        came += order.len();
    }
    assert_eq!(came, sent.len());
    Ok(())
}

/// Median and maximum of times.
fn shown(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    format!("{:.1?} / {:.1?}", times[times.len() / 2], times[times.len() - 1])
}

/// How long after `end` the clients were connected: as they know it, and as their kernel does.
fn print_lateness(what: &str, connected: &[Connected], end: Instant) -> Result<()> {
    let answered = connected.iter().map(Connected::answered).collect::<Result<Vec<_>>>()?;
    let known = shown(connected.iter().map(|client| client.ended.saturating_duration_since(end)));
    let answered = shown(answered.into_iter().map(|answered| answered.saturating_duration_since(end)));
    println!("{what}, median / maximum: answered {answered}, connected {known}");
    Ok(())
}

/// Clients that connect during a freeze which ends by itself, and when that was.
fn connect_until_the_end(ready: &Ready, vip: IpAddr) -> Result<(Vec<Connected>, Instant)> {
    let (lab, max) = (&ready.lab, format!("{}ms", FREEZE.as_millis()));
    let frozen = ready.bgctl.json(&["freeze", DEPLOYMENT, "--max", &max])?;
    let until = frozen["frozen_until"].as_str().context("no end of the freeze")?;
    let until: SystemTime = humantime::parse_rfc3339_weak(until)?;
    let (left, now) = (until.duration_since(SystemTime::now()), Instant::now());
    let connected = connect(&lab.client, http_vip(vip), CLIENTS)?;
    Ok((connected, now + left.unwrap_or_default()))
}

#[test]
fn a_thousand_clients_connect_in_order_when_the_freeze_is_over() -> Result<()> {
    let ready = Ready::native("")?;
    let vip = address::VIP_V4;
    let usual = connect(&ready.lab.client, http_vip(vip), CLIENTS)?;
    let first = usual[0].began;
    print_lateness("without a freeze, since the first SYN", &usual, first)?;
    println!("their own times: {}", shown(usual.iter().map(|client| client.ended - client.began)));
    drop(usual);

    let (wires, round) = (open_wires(&ready)?, round(&ready, vip, CLIENTS)?);
    came_in_order(&wires, &round.connected)?;
    print_lateness("since the command thaw began", &round.connected, round.began)?;
    println!("which took {:.1?}", round.returned - round.began);
    drop((wires, round));

    // The backends close what was opened.
    thread::sleep(Duration::from_millis(50));
    // On a busy machine, new SYNs may go on before the process that was left plays the others back. So no order is asserted.
    let (connected, end) = connect_until_the_end(&ready, vip)?;
    assert_eq!(connected.len(), CLIENTS);
    print_lateness("since the freeze has ended by itself", &connected, end)?;
    ready.neighbour_is_undisturbed()
}
