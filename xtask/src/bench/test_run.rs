//! Sending packets through a loaded program by `BPF_PROG_TEST_RUN`, behind the wrappers of `bg-ebpf/src/bench.rs`.
//!
//! XDP redirects a packet only on an edge in use, for two reasons:
//!
//! - It accepts only frames for the MAC address that `tc_ingress` has recorded for the interface. [`warm`] has it recorded.
//! - It sometimes leaves a packet of a next hop to `tc_ingress`, so that the kernel sees that the neighbour is in use. For such a
//!   packet it returns `XDP_PASS` and does not count it. [`Wrapper::run`] and [`most_left_to_tc`] allow for that.

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRunOptions, TestRunResult, Xdp},
    util::nr_cpus,
};
use bg_common::{FrameTemplate, Turn};
use bytemuck::Zeroable as _;
use std::{mem::offset_of, path::Path, time::Duration};

/// XDP_PASS, XDP_TX and XDP_REDIRECT (linux/bpf.h).
pub(super) const PASS: u32 = 2;
pub(super) const TX: u32 = 3;
pub(super) const REDIRECT: u32 = 4;

/// TC_ACT_UNSPEC, TC_ACT_OK and TC_ACT_REDIRECT (linux/pkt_cls.h).
pub(super) const TC_UNSPEC: u32 = u32::MAX;
pub(super) const TC_OK: u32 = 0;
pub(super) const TC_REDIRECT: u32 = 7;

/// The MAC address of the edge's interfaces, to which frames are sent.
pub(super) const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

/// The source MAC address of frames.
pub(super) const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// Runs `tc_ingress` on a frame for the host at an interface of the calling thread's namespace, so that XDP knows its MAC
/// address. The frame has an EtherType for experiments (IEEE 802), which nothing else uses.
pub(super) fn warm(tc_ingress: &SchedClassifier, ifindex: u32) -> Result<()> {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&EDGE_MAC);
    frame[6..12].copy_from_slice(&SENDER_MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let context = skb_context_of(ifindex);
    let options = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::new() };
    tc_ingress.test_run(options).context("cannot run tc_ingress")?;
    Ok(())
}

/// The most packets of one next hop that XDP leaves to `tc_ingress` in this time: one every four ticks, which are 256 ms if
/// the kernel has 1,000 timer ticks per second, and longer otherwise.
pub(super) fn most_left_to_tc(time: Duration) -> u64 {
    1 + time.as_millis() as u64 / 256
}

/// The hook of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    /// The verdict of the programs for comparison.
    pub(super) fn verdict_of_empty(self) -> u32 {
        match self {
            Self::Xdp => TX,
            Self::Tc => TC_OK,
        }
    }
}

/// The wrapper, which restores the frame before each run and tail-calls the program under test.
pub(super) struct Wrapper {
    object: Ebpf,
    aim: Aim,
}

/// The target of a wrapper.
struct Aim {
    hook: Hook,
    /// The number of templates that take turns.
    turns: u32,
    /// The frame of the first template. The kernel reads its Ethernet header before tc runs.
    frame: [u8; FrameTemplate::LEN],
}

/// The memory of the programs for comparison.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    /// The number of cache lines of the program that loads one, a power of two.
    pub(super) lines: u32,
    /// The number of entries of the kernel's LRU hash.
    pub(super) lru: u32,
}

impl Memory {
    /// The memory for a comparison only with the empty program.
    pub(super) const LEAST: Self = Self { lines: 1, lru: 1 };
}

/// The result of sending packets.
pub(super) struct Sent {
    /// Nanoseconds per packet. The kernel reports whole nanoseconds.
    pub(super) ns: f64,
    /// The number of packets, including a few more that may have been needed to see a verdict.
    pub(super) packets: u64,
}

impl Wrapper {
    /// Loads it.
    pub(super) fn load(object: &Path, memory: Memory) -> Result<Self> {
        let Memory { lines, lru } = memory;
        ensure!(lines.is_power_of_two(), "expected a power of two, got {lines} cache lines");
        let mask = lines - 1;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("lines", lines).map_max_entries("lru_hash", lru).override_global(
            "LINE_MASK",
            &mask,
            true,
        );
        let mut object = loader.load_file(object)?;
        for name in ["restore", "empty", "line", "lru"] {
            xdp(&mut object, name)?.load()?;
        }
        for name in ["tc_restore", "tc_empty", "tc_line"] {
            tc(&mut object, name)?.load()?;
        }
        Ok(Self { object, aim: Aim { hook: Hook::Xdp, turns: 1, frame: [0; FrameTemplate::LEN] } })
    }

    /// The empty program.
    pub(super) fn empty(&mut self, hook: Hook) -> Result<ProgramFd> {
        match hook {
            Hook::Xdp => Ok(xdp(&mut self.object, "empty")?.fd()?.try_clone()?),
            Hook::Tc => Ok(tc(&mut self.object, "tc_empty")?.fd()?.try_clone()?),
        }
    }

    /// The program that only loads the flow's cache line, one load after the other.
    pub(super) fn line(&mut self, hook: Hook) -> Result<ProgramFd> {
        match hook {
            Hook::Xdp => Ok(xdp(&mut self.object, "line")?.fd()?.try_clone()?),
            Hook::Tc => Ok(tc(&mut self.object, "tc_line")?.fd()?.try_clone()?),
        }
    }

    /// The XDP program that only looks up the flow in the kernel's LRU hash, and inserts it if necessary.
    pub(super) fn lru(&mut self) -> Result<ProgramFd> {
        Ok(xdp(&mut self.object, "lru")?.fd()?.try_clone()?)
    }

    /// Sets the program behind the wrapper and the frames that take turns, and starts with the first frame and its first flow.
    pub(super) fn aim(&mut self, hook: Hook, target: &ProgramFd, templates: &[FrameTemplate]) -> Result<()> {
        let turns = u32::try_from(templates.len())?;
        ensure!((1..=FrameTemplate::TURNS).contains(&turns), "{turns} templates");
        let mut rows: Array<_, FrameTemplate> = self.object.map_mut("templates").context("templates")?.try_into()?;
        for (row, template) in (0..).zip(templates) {
            rows.set(row, FrameTemplate { next: (row + 1) % turns, ..*template }, 0)?;
        }
        let name = match hook {
            Hook::Xdp => "xdp_target",
            Hook::Tc => "tc_target",
        };
        let mut targets: ProgramArray<_> = self.object.map_mut(name).context(name)?.try_into()?;
        targets.set(0, target, 0)?;
        let mut rows: PerCpuArray<_, Turn> = self.object.map_mut("turn").context("turn")?.try_into()?;
        let processors = nr_cpus().map_err(|(file, error)| anyhow!("cannot read {file}: {error}"))?;
        rows.set(0, PerCpuValues::try_from(vec![Turn::zeroed(); processors])?, 0)?;
        self.aim = Aim { hook, turns, frame: bytemuck::cast(templates[0].frame) };
        Ok(())
    }

    /// Sends this many packets. The last one must return this verdict. If XDP has left the last one to `tc_ingress`,
    /// the next one must return the verdict.
    pub(super) fn run(&mut self, ifindex: u32, packets: u32, expected: u32) -> Result<Sent> {
        let Aim { hook, turns, .. } = self.aim;
        let (ns, mut verdict) = self.shoot(ifindex, packets)?;
        let mut sent = Sent { ns, packets: packets.into() };
        if (hook, verdict) == (Hook::Xdp, PASS) && expected != PASS {
            (_, verdict) = self.shoot(ifindex, turns)?;
            sent.packets += u64::from(turns);
        }
        ensure!(verdict == expected, "expected verdict {expected}, got {verdict}");
        Ok(sent)
    }

    /// Sends this many packets. Returns ns per packet, and the verdict for the last one.
    fn shoot(&mut self, ifindex: u32, packets: u32) -> Result<(f64, u32)> {
        let frame = self.aim.frame;
        let options = TestRunOptions { data_in: Some(&frame), repeat: packets, ..TestRunOptions::new() };
        let result: TestRunResult = match self.aim.hook {
            Hook::Xdp => {
                let context = context_of(ifindex);
                xdp(&mut self.object, "restore")?.test_run(TestRunOptions { ctx_in: Some(&context), ..options })?
            }
            Hook::Tc => {
                let context = skb_context_of(ifindex);
                tc(&mut self.object, "tc_restore")?.test_run(TestRunOptions { ctx_in: Some(&context), ..options })?
            }
        };
        Ok((result.duration.as_nanos() as f64, result.return_value))
    }
}

/// A `struct xdp_md` (linux/bpf.h) for a frame that arrived at an interface.
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

/// The first words of a `struct __sk_buff` (linux/bpf.h) for a packet at an interface. `ifindex` is the eleventh word.
fn skb_context_of(ifindex: u32) -> [u8; 44] {
    let mut context = [0; 44];
    context[40..].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn tc<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
