//! Two processors at once, compared with one alone.

use super::{
    super::{
        report::Table,
        stats::Summary,
        test_run::{Hook, Memory, Wrapper},
    },
    Setup,
    case::{Case, Direction},
    columns,
    edge::Edge,
    frame::{Flows, Order, Segment, template},
};
use crate::process::say;
use anyhow::{Result, ensure};
use bg_common::Protocol;
use bg_tests::Processor;
use std::sync::Barrier;

/// The number of flows of each processor.
const FLOWS: u32 = 1024;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let case = Case::ipv4(Protocol::Tcp)?;
    let mut edge = Edge::load(setup, 65_536, &case)?;
    edge.establish(&case, Flows::first(4 * FLOWS))?;
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    for processor in setup.processors.iter().take(2) {
        lanes.push(Lane { processor, wrapper: Wrapper::load(&setup.bench, Memory::LEAST)? });
    }
    ensure!(lanes.len() == 2, "expected two processors or more");
    let (ours, empty) = (edge.program("ingress")?, lanes[0].wrapper.empty(Hook::Xdp)?);
    let (verdict, verdict_of_empty) = (case.verdict(Direction::Forward), Hook::Xdp.verdict_of_empty());
    let interface = case.interface(Direction::Forward, setup.sides);
    let (own, one) = (Flows::first(FLOWS), Flows::first(1));
    let mut rows = Vec::new();
    for (name, target, verdict, flows) in [
        ("empty program", &empty, verdict_of_empty, [own, own.next()]),
        ("1,024 flows each", &ours, verdict, [own, own.next()]),
        ("one shared flow", &ours, verdict, [one, one]),
    ] {
        for (lane, flows) in lanes.iter_mut().zip(flows) {
            let template = template(&case, Direction::Forward, Segment::Data, flows, Order::Random)?;
            lane.wrapper.aim(Hook::Xdp, target, &[template])?;
        }
        let run = Run { interface, verdict, packets: setup.args.packets() };
        let (mut alone, mut both, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.args.rounds() {
            // Processors are not alike: one of them has the machine's interrupts.
            let one = (run.of(&mut lanes[..1])? + run.of(&mut lanes[1..])?) / 2.0;
            let two = run.of(&mut lanes)?;
            alone.push(one);
            both.push(two);
            times.push(2.0 * one / two);
        }
        let (alone, both, times) = (Summary::of(alone), Summary::of(both), Summary::of(times));
        say(format_args!("{name}: two processors {times} times one"));
        rows.push(vec![name.into(), alone.into(), both.into(), times.into()]);
    }
    Ok(Table {
        title: "Two processors at once".into(),
        about: "IPv4 TCP, client to backend. The rate of both together, relative to the rate of one alone in the same round, which \
                is the mean of both."
            .into(),
        columns: columns(&["flows", "one alone, ns", "each of two, ns", "rate, times one"]),
        rows,
    })
}

/// A processor and the wrapper that it runs.
struct Lane<'a> {
    processor: &'a Processor,
    wrapper: Wrapper,
}

struct Run {
    interface: u32,
    verdict: u32,
    packets: u32,
}

impl Run {
    /// Sends on all of them at once. Returns the mean ns per packet.
    fn of(&self, lanes: &mut [Lane<'_>]) -> Result<f64> {
        let barrier = Barrier::new(lanes.len());
        let count = lanes.len() as f64;
        let send = |lane: &mut Lane<'_>| {
            lane.processor.adopt_thread()?;
            barrier.wait();
            Ok::<_, anyhow::Error>(lane.wrapper.run(self.interface, self.packets, self.verdict)?.ns)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = lanes.iter_mut().map(|lane| scope.spawn(|| send(lane))).collect();
            let mut sum = 0.0;
            for thread in threads {
                sum += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            }
            Ok(sum / count)
        })
    }
}
