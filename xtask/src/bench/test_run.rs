//! Packets through a loaded program by `BPF_PROG_TEST_RUN`, behind the wrapper of `bg-ebpf/src/bench.rs`.
//!
//! XDP redirects only what an edge in use knows the way for. Two things stand between a fresh instance and that:
//!
//! - It takes frames for the MAC address that `tc_ingress` has noted of the interface. [`warm`] has it noted.
//! - It leaves a packet of each next hop to `tc_ingress` now and then, for the sake of the kernel's neighbour table. Such a
//!   packet returns `XDP_PASS` and is not counted. [`Wrapper::run`] and [`most_left_to_tc`] allow for it.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRunOptions, Xdp},
};
use bg_common::FrameTemplate;
use std::{mem::offset_of, path::Path, time::Duration};

/// XDP_PASS, XDP_TX and XDP_REDIRECT (linux/bpf.h).
pub(super) const PASS: u32 = 2;
pub(super) const TX: u32 = 3;
pub(super) const REDIRECT: u32 = 4;

/// The MAC address of the edge's interfaces, which frames are sent to.
pub(super) const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

/// Where frames come from.
pub(super) const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// Has `tc_ingress` meet a frame for the host on an interface of the calling thread's namespace, so that XDP knows its MAC
/// address. The frame is of an EtherType for experiments (IEEE 802), which concerns nobody.
pub(super) fn warm(tc_ingress: &SchedClassifier, ifindex: u32) -> Result<()> {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&EDGE_MAC);
    frame[6..12].copy_from_slice(&SENDER_MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    // The first fields of `struct __sk_buff` (linux/bpf.h); `ifindex` is the eleventh word.
    let mut context = [0_u8; 44];
    context[40..].copy_from_slice(&ifindex.to_ne_bytes());
    let options = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::new() };
    tc_ingress.test_run(options).context("cannot run tc_ingress")?;
    Ok(())
}

/// Packets of one next hop that XDP leaves to `tc_ingress` in that time, at most: one every four ticks, which are 256 ms where
/// the kernel's tick rate is 1,000 a second, and longer elsewhere.
pub(super) fn most_left_to_tc(time: Duration) -> u64 {
    1 + time.as_millis() as u64 / 256
}

/// The wrapper, which restores the frame before each run and tail-calls the program under test.
pub(super) struct Wrapper {
    object: Ebpf,
}

/// What came of sending packets.
pub(super) struct Sent {
    /// Nanoseconds a packet.
    pub(super) ns: f64,
    /// Packets, with the one more that may have been needed to see a verdict.
    pub(super) packets: u64,
}

impl Wrapper {
    pub(super) fn load(object: &Path) -> Result<Self> {
        let mut object = EbpfLoader::new().load_file(object)?;
        for name in ["restore", "empty"] {
            program(&mut object, name)?.load()?;
        }
        Ok(Self { object })
    }

    /// The program that does nothing, to compare with.
    pub(super) fn empty(&mut self) -> Result<ProgramFd> {
        Ok(program(&mut self.object, "empty")?.fd()?.try_clone()?)
    }

    /// Puts a program and a frame behind the wrapper.
    pub(super) fn aim(&mut self, target: &ProgramFd, template: &FrameTemplate) -> Result<()> {
        let mut templates: Array<_, FrameTemplate> = self.object.map_mut("template").context("template")?.try_into()?;
        templates.set(0, template, 0)?;
        let mut targets: ProgramArray<_> = self.object.map_mut("target").context("target")?.try_into()?;
        Ok(targets.set(0, target, 0)?)
    }

    /// Sends so many packets. The last of them must return this verdict, or the next one, if XDP has left just that one to
    /// `tc_ingress`.
    pub(super) fn run(&mut self, ingress: u32, packets: u32, expected: u32) -> Result<Sent> {
        let (ns, mut verdict) = self.shoot(ingress, packets)?;
        let mut sent = Sent { ns, packets: packets.into() };
        if verdict == PASS && expected != PASS {
            (_, verdict) = self.shoot(ingress, 1)?;
            sent.packets += 1;
        }
        ensure!(verdict == expected, "expected verdict {expected}, got {verdict}");
        Ok(sent)
    }

    /// Sends so many packets; ns a packet, and the last one's verdict.
    fn shoot(&mut self, ingress: u32, packets: u32) -> Result<(f64, u32)> {
        let frame = [0; FrameTemplate::LEN];
        let context = context_of(ingress);
        let options =
            TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), repeat: packets, ..TestRunOptions::new() };
        let result = program(&mut self.object, "restore")?.test_run(options)?;
        Ok((result.duration.as_nanos() as f64, result.return_value))
    }
}

/// A `struct xdp_md` (linux/bpf.h) for a frame that came in by an interface.
pub(super) fn context_of(ifindex: u32) -> [u8; 24] {
    #[repr(C)]
    struct XdpMd {
        data: u32,
        data_end: u32,
        data_meta: u32,
        ingress_ifindex: u32,
        rx_queue_index: u32,
        egress_ifindex: u32,
    }
    let mut context = [0; size_of::<XdpMd>()];
    context[offset_of!(XdpMd, data_end)..][..4].copy_from_slice(&(FrameTemplate::LEN as u32).to_ne_bytes());
    context[offset_of!(XdpMd, ingress_ifindex)..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

pub(super) fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
