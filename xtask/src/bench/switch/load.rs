//! The load: live frames (BPF_F_TEST_XDP_LIVE_FRAMES), each of a new flow, through the pinned
//! program to an XDP program at the backend's interface. Both ends record in mapped memory what they do.
//!
//! The generator stamps a frame and passes it on by a tail call, so the stamp is the moment before the packet is
//! decided. Both happen in one run of programs, which is one RCU read-side section.

use super::super::{
    edge,
    test_run::{EDGE_MAC, SENDER_MAC, context_of},
};
use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, Map, MapData, ProgramArray},
    programs::{TestRunAttrs, TestRunOptions, Xdp, xdp::XdpMode},
};
use aya_obj::programs::XdpAttachType;
use bg_common::{ColourSeen, SWITCH_CPUS, SwitchLoad, SwitchSeen, SwitchSent};
use etherparse::PacketBuilder;
use memmap2::{MmapOptions, MmapRaw};
use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use std::{
    marker::PhantomData,
    net::SocketAddrV4,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The source addresses of the flows.
const CLIENTS: &str = "198.18.0.0:1024";
/// Flow numbers: 17 bits of addresses (198.18.0.0/15) and [`SwitchLoad::PORT_BITS`] of ports.
const FLOWS: u64 = 1 << (17 + SwitchLoad::PORT_BITS);
/// How long the load may take until the first packet arrives. It is long, since other processes may use the CPU meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// No round begins within this many frames before the end of a call, which is a good part of a second.
const MARGIN: u64 = 1 << 17;

/// The two programs and their records.
pub(super) struct Load {
    object: Ebpf,
    sent: Rows<SwitchSent>,
    seen: Rows<SwitchSeen>,
    round: Rows<u64>,
    generators: Vec<Generator>,
    ingress: u32,
    batch: u32,
    call: u32,
    flows_each: u64,
}

/// A CPU that sends frames.
struct Generator {
    cpu: usize,
    /// The number of frames after which its present call ends. Between two calls it sends nothing for about 20 ms.
    call_ends: AtomicU64,
    /// The same for the call in which the present round began.
    round_ends: AtomicU64,
}

/// Tells the generators to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How to send.
pub(super) struct Shape {
    /// The index of the interface at which frames arrive.
    pub(super) ingress: u32,
    /// Their destination.
    pub(super) vip: SocketAddrV4,
    /// The number of frames that are created, decided and sent in one batch.
    pub(super) batch: u32,
    /// The number of frames per system call.
    pub(super) call: u32,
}

/// The CPUs that send, and the CPU that is left for the switching thread.
pub(super) struct Cpus {
    pub(super) generators: Vec<usize>,
    pub(super) switcher: usize,
}

impl Cpus {
    /// Of the CPUs that this process may use, the first is left for the switching thread.
    pub(super) fn of_this_machine() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut allowed = (0..SWITCH_CPUS as usize).filter(|cpu| allowed.is_set(*cpu));
        let switcher = allowed.next().context("no CPU")?;
        let generators: Vec<_> = allowed.collect();
        ensure!(!generators.is_empty(), "expected two CPUs or more: one sends while the other one switches");
        Ok(Self { generators, switcher })
    }

    /// Ties the calling thread, and what it starts later, to one CPU.
    pub(super) fn pin(cpu: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu);
        Ok(sched_setaffinity(None, &set)?)
    }
}

impl Load {
    /// Loads the programs in the calling thread's namespace, and attaches the receiver.
    pub(super) fn prepare(object: &Path, target: &Path, shape: &Shape, cpus: &Cpus) -> Result<Self> {
        let mut object = EbpfLoader::new().load_file(object)?;
        let target = Xdp::from_pin(target, XdpAttachType::Interface)
            .with_context(|| format!("cannot open {}", target.display()))?;
        let mut slot: ProgramArray<_> = object.map_mut("target").context("target")?.try_into()?;
        slot.set(0, target.fd()?, 0)?;
        let mut frame: Array<_, SwitchLoad> = object.map_mut("load").context("load")?.try_into()?;
        frame.set(0, load(shape.vip)?, 0)?;
        for name in ["generate", "receive"] {
            let program: &mut Xdp = object.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        let receive: &mut Xdp = object.program_mut("receive").context("receive")?.try_into()?;
        receive.attach(edge::BACKEND, XdpMode::Driver)?;

        // No two CPUs send one flow.
        let flows_each = FLOWS / cpus.generators.len() as u64;
        let (sent, seen) = (Rows::of(&object, "sent", SWITCH_CPUS)?, Rows::of(&object, "seen", SWITCH_CPUS)?);
        for (number, cpu) in cpus.generators.iter().enumerate() {
            sent.write(*cpu, &SwitchSent { first_flow: number as u64 * flows_each, ..SwitchSent::default() });
        }
        let generator =
            |cpu: &usize| Generator { cpu: *cpu, call_ends: AtomicU64::new(0), round_ends: AtomicU64::new(0) };
        let generators = cpus.generators.iter().map(generator).collect();
        let round = Rows::of(&object, "round", 1)?;
        let &Shape { ingress, batch, call, .. } = shape;
        Ok(Self { object, sent, seen, round, generators, ingress, batch, call, flows_each })
    }

    /// Sends from every generator's CPU as long as `work` runs, and until at least `frames` were sent in total.
    pub(super) fn during<T>(&self, frames: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stop = AtomicBool::new(false);
        let generate: &Xdp = self.object.program("generate").context("generate")?.try_into()?;
        thread::scope(|scope| {
            let go_on = || !stop.load(Ordering::Relaxed) || self.sent().0 < frames;
            let start = |generator| scope.spawn(move || self.send(generate, generator, go_on));
            let threads: Vec<_> = self.generators.iter().map(start).collect();
            let result = {
                let _stop = Stop(&stop);
                work()
            };
            for thread in threads {
                thread.join().ok().context("a generator panicked")??;
            }
            result
        })
    }

    fn send(&self, program: &Xdp, generator: &Generator, go_on: impl Fn() -> bool) -> Result<()> {
        Cpus::pin(generator.cpu)?;
        // A driver's poll does not wait for user space to be done, so neither does what stands for it.
        setpriority_process(None, -20).context("cannot have the CPU before others")?;
        let (frame, context) = ([0; SwitchLoad::LEN], context_of(self.ingress));
        while go_on() {
            let sent = self.sent.read(generator.cpu).frames;
            if sent + u64::from(self.call) > self.flows_each {
                bail!("all five-tuples of CPU {} have been sent", generator.cpu);
            }
            generator.call_ends.store(sent + u64::from(self.call), Ordering::SeqCst);
            program.test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat: self.call,
                attrs: TestRunAttrs::new().xdp_live_frames(self.batch),
                ..TestRunOptions::new()
            })?;
        }
        Ok(())
    }

    /// The number of frames sent, and of frames that have arrived, by colour.
    pub(super) fn sent(&self) -> (u64, [u64; 2]) {
        let sent = self.generators.iter().map(|generator| self.sent.read(generator.cpu).frames).sum();
        // Whichever CPU they arrived on.
        let seen = (0..SWITCH_CPUS as usize).map(|cpu| self.seen.read(cpu).colours.map(|colour| colour.frames));
        (sent, seen.fold([0; 2], |sum, seen| [sum[0] + seen[0], sum[1] + seen[1]]))
    }

    /// Begins a round. Returns when frames of every generator have arrived in it, and no call is near its end.
    pub(super) fn begin(&self, round: u64, live: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let is_flowing = |generator: &Generator| {
            let (sent, ends) = (self.sent.read(generator.cpu).frames, generator.call_ends.load(Ordering::SeqCst));
            sent + MARGIN < ends && sent + u64::from(self.call) > ends + u64::from(self.batch)
        };
        while !self.generators.iter().all(is_flowing) {
            ensure!(Instant::now() < end, "the load does not flow");
            thread::yield_now();
        }
        for generator in &self.generators {
            generator.round_ends.store(generator.call_ends.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.round.write(0, &round);
        for generator in &self.generators {
            let has_begun = |seen: &SwitchSeen| seen.round == round && seen.colours[live].first_decided != 0;
            self.wait(generator, end, has_begun).context("the load does not flow")?;
        }
        Ok(())
    }

    /// The records of each generator's frames since [`Load::begin`], when all frames go to `colour`. `None` if a
    /// generator was between two calls meanwhile.
    pub(super) fn finish(&self, colour: usize) -> Result<Option<Vec<[ColourSeen; 2]>>> {
        let end = Instant::now() + PATIENCE;
        let has_switched = |seen: &SwitchSeen| {
            let seen = seen.colours[colour];
            seen.first_decided != 0 && seen.first_arrived != 0
        };
        let seen = |generator| Ok(self.wait(generator, end, has_switched)?.colours);
        let all: Result<Vec<_>> = self.generators.iter().map(seen).collect();
        let all = all.context("no packet on the new colour")?;
        let goes_on =
            |generator: &Generator| self.sent.read(generator.cpu).frames < generator.round_ends.load(Ordering::SeqCst);
        Ok(self.generators.iter().all(goes_on).then_some(all))
    }

    fn wait(&self, generator: &Generator, end: Instant, until: impl Fn(&SwitchSeen) -> bool) -> Result<SwitchSeen> {
        loop {
            let seen = self.seen.read(generator.cpu);
            if until(&seen) {
                return Ok(seen);
            }
            ensure!(Instant::now() < end, "waited {PATIENCE:?} for CPU {}; its row: {seen:?}", generator.cpu);
            std::hint::spin_loop();
        }
    }
}

/// The frame: a datagram to the VIP, without a UDP checksum.
fn load(vip: SocketAddrV4) -> Result<SwitchLoad> {
    let client: SocketAddrV4 = CLIENTS.parse()?;
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(SENDER_MAC, EDGE_MAC);
    let builder = builder.ipv4(client.ip().octets(), vip.ip().octets(), 64).udp(client.port(), vip.port());
    builder.write(&mut bytes, &[0; SwitchLoad::LEN - 42])?;
    bytes[40..42].fill(0);
    let address = u32::from(*client.ip());
    Ok(SwitchLoad { frame: bytemuck::pod_read_unaligned(&bytes), address, reserved: 0 })
}

/// A mapped array with one row per CPU, whose words are read one by one.
struct Rows<T> {
    memory: MmapRaw,
    rows: usize,
    row: PhantomData<T>,
}

impl<T: bytemuck::Pod> Rows<T> {
    fn of(object: &Ebpf, name: &str, rows: u32) -> Result<Self> {
        let map = object.map(name).with_context(|| format!("no map {name}"))?;
        let Map::Array(map) = map else { bail!("{name} is no array") };
        Self::map(map, rows as usize).with_context(|| format!("cannot map {name}"))
    }

    fn map(map: &MapData, rows: usize) -> Result<Self> {
        let memory = MmapOptions::new().len(rows * size_of::<T>()).map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(Self { memory, rows, row: PhantomData })
    }

    fn words(&self, row: usize) -> &[AtomicU64] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let words = size_of::<T>() / 8;
        // SAFETY: inside of the mapping, which is aligned to a page and lives as long as `self`; this process sees it
        // as atomics only, and the programs in the kernel write aligned words.
        unsafe { std::slice::from_raw_parts(self.memory.as_mut_ptr().cast::<AtomicU64>().add(row * words), words) }
    }

    fn read(&self, row: usize) -> T {
        let mut value = T::zeroed();
        for (to, from) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).zip(self.words(row)) {
            to.copy_from_slice(&from.load(Ordering::Acquire).to_ne_bytes());
        }
        value
    }

    fn write(&self, row: usize, value: &T) {
        for (from, to) in bytemuck::bytes_of(value).chunks_exact(8).zip(self.words(row)) {
            to.store(u64::from_ne_bytes(from.try_into().unwrap_or_default()), Ordering::Release);
        }
    }
}
