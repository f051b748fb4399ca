//! Sending packets through the pinned program, by test runs behind the wrapper of `datapath`, to open millions of flows
//! and to measure the cost of a packet then.

use super::super::test_run::{EDGE_MAC, Hook, Memory, REDIRECT, SENDER_MAC, TX, Wrapper, most_left_to_tc, warm};
use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use bg_common::FrameTemplate;
use bg_userspace::Paths;
use etherparse::PacketBuilder;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    path::Path,
    time::Instant,
};

/// The wrapper, the empty program, and the pinned program.
pub(super) struct Packets {
    wrapper: Wrapper,
    ours: ProgramFd,
    empty: ProgramFd,
    ingress: u32,
    /// The number of packets sent through the pinned program, and since when.
    sent: u64,
    began: Instant,
}

impl Packets {
    /// Loads the wrapper and prepares the instance. `ingress` is the index of the interface at which packets arrive.
    pub(super) fn prepare(object: &Path, instance: &Paths, ingress: u32) -> Result<Self> {
        let mut wrapper = Wrapper::load(object, Memory::LEAST)?;
        let empty = wrapper.empty(Hook::Xdp)?;
        let pin = instance.program("ingress");
        let ours = Xdp::from_pin(&pin, XdpAttachType::Interface);
        let ours = ours.with_context(|| format!("cannot open {}", pin.display()))?.fd()?.try_clone()?;
        let pin = instance.program("tc_ingress");
        let tc_ingress = SchedClassifier::from_pin(&pin);
        warm(&tc_ingress.with_context(|| format!("cannot open {}", pin.display()))?, ingress)?;
        Ok(Self { wrapper, ours, empty, ingress, sent: 0, began: Instant::now() })
    }

    /// Opens flows with one packet of each, in order. Returns nanoseconds per packet.
    pub(super) fn open(&mut self, vip: SocketAddrV4, flows: u32) -> Result<f64> {
        self.wrapper.aim(Hook::Xdp, &self.ours, &[template(vip, flows, (1, 1))?])?;
        let _pinned = Pinned::here()?;
        let opened =
            self.wrapper.run(self.ingress, flows, REDIRECT).with_context(|| format!("opening {flows} flows"))?;
        self.sent += opened.packets;
        Ok(opened.ns)
    }

    /// Nanoseconds per packet of open flows in random order, for bgctl's program and the empty program.
    pub(super) fn measure(&mut self, vip: SocketAddrV4, flows: u32, packets: u32) -> Result<(f64, f64)> {
        // Numerical Recipes' generator: full period modulo any power of two.
        let template = [template(vip, flows, (1_664_525, 1_013_904_223))?];
        let _pinned = Pinned::here()?;
        self.wrapper.aim(Hook::Xdp, &self.empty, &template)?;
        let empty = self.wrapper.run(self.ingress, packets, TX).context("the empty program")?;
        self.wrapper.aim(Hook::Xdp, &self.ours, &template)?;
        let ours = self.wrapper.run(self.ingress, packets, REDIRECT).context("a packet of an open flow")?;
        self.sent += ours.packets;
        Ok((ours.ns, empty.ns))
    }

    /// The number of packets that the pinned program must have counted, if it has redirected to this many next hops.
    pub(super) fn expected(&self, hops: u32) -> RangeInclusive<u64> {
        let left_to_tc = u64::from(hops) * most_left_to_tc(self.began.elapsed());
        self.sent.saturating_sub(left_to_tc)..=self.sent
    }
}

/// While this exists, the calling thread stays on its CPU. The wrapper numbers flows on each CPU separately, so a thread that
/// is moved would start again with the first flow.
struct Pinned {
    before: CpuSet,
}

impl Pinned {
    fn here() -> Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// A segment of a TCP connection of one of `flows` clients (a power of two), which follow each other by the linear
/// congruence.
fn template(vip: SocketAddrV4, flows: u32, (multiplier, increment): (u32, u32)) -> Result<FrameTemplate> {
    ensure!(flows.is_power_of_two(), "expected a power of two, got {flows} flows");
    let client = Ipv4Addr::new(198, 18, 0, 1);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SENDER_MAC, EDGE_MAC)
        .ipv4(client.octets(), vip.ip().octets(), 64)
        .tcp(FrameTemplate::FIRST_PORT, vip.port(), 1, 1024)
        .ack(1)
        .write(&mut bytes, &[0; FrameTemplate::LEN - 54])?;
    Ok(FrameTemplate {
        frame: bytemuck::pod_read_unaligned(&bytes),
        address_at: 26,
        port_at: 34,
        address: client.into(),
        first: 0,
        mask: flows - 1,
        multiplier,
        increment,
        next: 0,
    })
}
