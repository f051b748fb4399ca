//! The processor's time for a datagram, with and without a mirror.

use super::{
    super::throughput::{LiveFrames, Traffic},
    Args,
    stage::{Mirror, Stage},
};
use crate::process::say;
use anyhow::{Result, bail, ensure};
use bg_common::Protocol;

/// The results for a service.
pub(super) struct Cost {
    pub(super) mirror: Mirror,
    /// By round: nanoseconds for each datagram that the live colour has received.
    pub(super) ns: Vec<f64>,
    /// Over all rounds: the datagrams and the copies that have arrived.
    pub(super) counts: [u64; 2],
}

/// Measures services in turns. The first one has no mirror.
pub(super) fn measure(
    args: &Args,
    stage: &Stage,
    live: &mut LiveFrames,
    idle: &mut LiveFrames,
    ipv6: bool,
    services: &[Mirror],
) -> Result<Vec<Cost>> {
    let traffic = Traffic { ipv6, protocol: Protocol::Udp, flows: 1024 };
    let mut costs = Vec::new();
    for &mirror in services {
        // Opens the flows, and warms up what can be warmed.
        live.send(&stage.lab, traffic, (mirror.vip(ipv6), mirror.live(ipv6)), 1 << 16)?;
        costs.push(Cost { mirror, ns: Vec::new(), counts: [0; 2] });
    }
    let mut order: Vec<usize> = (0..costs.len()).collect();
    for _ in 0..args.rounds() {
        for &nth in &order {
            let cost = &mut costs[nth];
            let (ns, counts) = send(args, stage, live, idle, traffic, cost.mirror)?;
            cost.ns.push(ns);
            cost.counts = [0, 1].map(|of| cost.counts[of] + counts[of]);
        }
        // Each is first in turn.
        order.rotate_left(1);
    }
    Ok(costs)
}

/// Sends frames, and repeats that until the sending processor has handled all copies too. Returns the time, and the datagrams and copies.
fn send(
    args: &Args,
    stage: &Stage,
    live: &mut LiveFrames,
    idle: &mut LiveFrames,
    traffic: Traffic,
    mirror: Mirror,
) -> Result<(f64, [u64; 2])> {
    const ATTEMPTS: u32 = 20;
    let ipv6 = traffic.ipv6;
    let way = (mirror.vip(ipv6), mirror.live(ipv6));
    for _ in 0..ATTEMPTS {
        idle.expect(stage.way.copy(mirror, ipv6))?;
        let shot = live.send(&stage.lab, traffic, way, args.frames())?;
        let (copies, strayed) = (idle.received()?.delivered, live.strayed()? + idle.strayed()?);
        if strayed == 0 {
            shot.check(Some(traffic.client()), way.1)?;
            let is_right = (copies > 0) == (mirror == Mirror::There);
            ensure!(is_right, "{copies} copies of {} datagrams to {} have arrived", shot.delivered, way.0);
            return Ok((shot.ns(), [shot.delivered, copies]));
        }
        say(format_args!("{strayed} frames were handled by another processor; sent anew"));
    }
    bail!("in {ATTEMPTS} attempts, another processor has handled some of the frames each time")
}
