//! Packets through the pinned program, by test runs behind the wrapper of `datapath`: to open flows by the million,
//! and to measure what a packet costs then.

use super::super::datapath::{aim, program, shoot};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramFd, Xdp},
};
use aya_obj::programs::XdpAttachType;
use bg_common::FrameTemplate;
use etherparse::PacketBuilder;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

/// XDP_REDIRECT and XDP_TX (linux/bpf.h).
const REDIRECT: u32 = 4;
const TX: u32 = 3;

/// The wrapper, the empty program, and the pinned one.
pub(super) struct Packets {
    wrapper: Ebpf,
    ours: ProgramFd,
    empty: ProgramFd,
    ingress: u32,
}

impl Packets {
    /// Loads the wrapper; `ingress` is the index of the interface that packets come in by.
    pub(super) fn prepare(object: &Path, ours: &Path, ingress: u32) -> Result<Self> {
        let mut wrapper = EbpfLoader::new().load_file(object)?;
        for name in ["restore", "empty"] {
            program(&mut wrapper, name)?.load()?;
        }
        let empty = program(&mut wrapper, "empty")?.fd()?.try_clone()?;
        let ours =
            Xdp::from_pin(ours, XdpAttachType::Interface).with_context(|| format!("cannot open {}", ours.display()))?;
        let ours = ours.fd()?.try_clone()?;
        Ok(Self { wrapper, ours, empty, ingress })
    }

    /// One packet of each flow, in order: opens them.
    pub(super) fn open(&mut self, vip: SocketAddrV4, flows: u32) -> Result<f64> {
        aim(&mut self.wrapper, &self.ours, &template(vip, flows, (1, 1))?)?;
        let _pinned = Pinned::here()?;
        let (ns, verdict) = shoot(&mut self.wrapper, self.ingress, flows)?;
        ensure!(verdict == REDIRECT, "opening {flows} flows ended with verdict {verdict}, expected a redirect");
        Ok(ns)
    }

    /// Nanoseconds a packet of open flows in random order: ours, and the empty program's.
    pub(super) fn measure(&mut self, vip: SocketAddrV4, flows: u32, packets: u32) -> Result<(f64, f64)> {
        // Numerical Recipes' generator: full period modulo any power of two.
        let template = template(vip, flows, (1_664_525, 1_013_904_223))?;
        let _pinned = Pinned::here()?;
        aim(&mut self.wrapper, &self.empty, &template)?;
        let (empty, verdict) = shoot(&mut self.wrapper, self.ingress, packets)?;
        ensure!(verdict == TX, "the empty program returned {verdict}");
        aim(&mut self.wrapper, &self.ours, &template)?;
        let (ours, verdict) = shoot(&mut self.wrapper, self.ingress, packets)?;
        ensure!(verdict == REDIRECT, "a packet of an open flow got verdict {verdict}, expected a redirect");
        Ok((ours, empty))
    }
}

/// While it lives, the calling thread stays on its CPU: the wrapper numbers flows on each CPU for itself, so one that
/// is moved in the middle would begin anew.
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

/// A segment of a TCP connection, of one of `flows` (a power of two) clients, which follow each other by the linear
/// congruence.
fn template(vip: SocketAddrV4, flows: u32, (multiplier, increment): (u32, u32)) -> Result<FrameTemplate> {
    ensure!(flows.is_power_of_two(), "expected a power of two, got {flows} flows");
    let client = Ipv4Addr::new(198, 18, 0, 1);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 0x22])
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
        reserved: 0,
    })
}
