//! Playing packets back: a test run of the program `play_back` brings a frame to the ingress of the interface that it came in by.

use std::time::{Duration, Instant};

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use bg_common::{COPY_FOR, ClockId};
use rustix::{
    rand::{GetRandomFlags, getrandom},
    thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
};

use super::{
    checksum,
    log::{Held, HeldLog, Next},
};
use crate::{Error, Paths, live::now};

const PROGRAM: &str = "play_back";

/// The age beyond which a packet is not played back: the maximum segment lifetime of RFC 9293. Nobody waits for an answer any more.
const MAX_AGE: Duration = Duration::from_secs(120);

/// A frame for a run that only counts.
const NO_FRAME: [u8; 64] = [0; 64];

/// How long a record may take to be written. A program that writes one is not interrupted for long.
const PATIENCE: Duration = Duration::from_secs(2);

/// What has become of the packets of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Played {
    /// How many were played back.
    pub(crate) packets: u64,
    /// How many were too old, or their interface was gone. They are counted as `held_too_long`.
    pub(crate) expired: u64,
    /// Whether others may be lost: the log was damaged.
    pub(crate) is_damaged: bool,
}

/// Plays packets back. While it exists, this thread stays on one CPU: its packets go through the queue of that CPU, which keeps
/// them in order.
pub(crate) struct Player<'a> {
    log: &'a HeldLog,
    program: SchedClassifier,
    /// Where the thread may run otherwise.
    cpus: Option<CpuSet>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(paths: &Paths, log: &'a HeldLog) -> Result<Self, Error> {
        let program = SchedClassifier::from_pin(paths.program(PROGRAM)).map_err(Error::program("open", PROGRAM))?;
        let cpus = sched_getaffinity(None).ok();
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        // If it fails, packets of a flow may change their order when the kernel moves the thread.
        let _ = sched_setaffinity(None, &here);
        Ok(Self { log, program, cpus })
    }

    /// Plays back the queue of a deployment, and closes it.
    pub(crate) fn play(&self, deployment: u16) -> Result<Played, Error> {
        let mark = draw_mark()?;
        self.log.set_mark(deployment, mark);
        play_all(self.log, deployment, PATIENCE, |held| self.play_one(held, mark))
    }

    /// Plays one packet back. `false`: nobody gets it any more.
    fn play_one(&self, held: &Held, mark: u16) -> Result<bool, Error> {
        const ATTEMPTS: u32 = 100;
        let age = Duration::from_nanos(now(ClockId::Boot).saturating_sub(held.header.time));
        if age <= MAX_AGE {
            let mut frame = held.frame.clone();
            checksum::finish(&mut frame);
            let vlan = u32::from(held.header.vlan_protocol) << 16 | u32::from(held.header.vlan_tci);
            for _ in 0..ATTEMPTS {
                match self.run(&frame, [held.header.ifindex, vlan, mark.into()])? {
                    0 => return Ok(true),
                    // The CPU's queue is full (NET_RX_DROP).
                    1 => std::thread::sleep(Duration::from_millis(1)),
                    _ => break,
                }
            }
        }
        self.run(&NO_FRAME, [0; 3])?;
        Ok(false)
    }

    /// Runs the program with the first words of `cb`. It returns zero or an error of the kernel, which may refuse the frame, too.
    fn run(&self, frame: &[u8], cb: [u32; 3]) -> Result<i32, Error> {
        // `struct __sk_buff` up to `cb`, see linux/bpf.h.
        let mut context = [0_u32; 17];
        context[12..15].copy_from_slice(&cb);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::new()
        };
        match self.program.test_run(options) {
            Ok(result) => Ok(result.return_value as i32),
            // It was damaged, and is shorter than its headers, say.
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(-libc::EINVAL)
            }
            Err(error) => Err(Error::program("run", PROGRAM)(error)),
        }
    }
}

/// Plays the queue of a deployment back, and closes it. What does not come for `patience` never comes: then the log is damaged.
fn play_all(
    log: &HeldLog,
    deployment: u16,
    patience: Duration,
    mut play_one: impl FnMut(&Held) -> Result<bool, Error>,
) -> Result<Played, Error> {
    const PAUSE: Duration = Duration::from_micros(50);
    let mut queue = log.queue(deployment);
    let mut played = Played::default();
    let mut progress = Instant::now();
    loop {
        match queue.next() {
            Next::Closed => return Ok(Played { is_damaged: queue.is_damaged(), ..played }),
            Next::Packet(held) => {
                let count = if play_one(&held)? { &mut played.packets } else { &mut played.expired };
                *count += 1;
                log.done(&held);
                progress = Instant::now();
            }
            Next::Soon if progress.elapsed() < patience => std::thread::sleep(PAUSE),
            Next::Soon => queue.search(),
        }
    }
}

/// A mark for packets that are played back. It is none of a copy for the mirror.
fn draw_mark() -> Result<u16, Error> {
    loop {
        let mut octets = [0; 2];
        getrandom(&mut octets[..], GetRandomFlags::empty())
            .map_err(|error| Error::io("ask for random numbers from", "getrandom(2)")(error.into()))?;
        let mark = u16::from_ne_bytes(octets);
        if mark != 0 && !(COPY_FOR..COPY_FOR + 2).contains(&mark) {
            return Ok(mark);
        }
    }
}

impl Drop for Player<'_> {
    fn drop(&mut self) {
        if let Some(cpus) = &self.cpus {
            let _ = sched_setaffinity(None, cpus);
        }
    }
}
