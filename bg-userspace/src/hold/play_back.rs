//! Playing packets back: a test run of the program `play_back` brings a frame to the ingress of the interface that it came in by.

use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use bg_common::ClockId;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use super::{
    checksum,
    log::{Held, HeldLog, Next},
};
use crate::{Error, Paths, live::now};

const PROGRAM: &str = "play_back";

/// The age beyond which a packet is not played back: the maximum segment lifetime of RFC 9293. Nobody waits for an answer any more.
const MAX_AGE: Duration = Duration::from_secs(120);

/// How long a record may take to be written. A program that writes one is not interrupted for long.
const PATIENCE: Duration = Duration::from_secs(2);

/// What has become of the packets of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Played {
    /// How many were played back.
    pub(crate) packets: u64,
    /// How many were too old, or their interface was gone. They are counted as `held_too_long`.
    pub(crate) expired: u64,
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
        let mut queue = self.log.queue(deployment);
        let mut played = Played::default();
        let mut progress = Instant::now();
        loop {
            match queue.next() {
                Next::Closed => return Ok(played),
                Next::Packet(held) => {
                    if self.play_one(&held)? {
                        played.packets += 1;
                    } else {
                        played.expired += 1;
                    }
                    self.log.done(&held);
                    progress = Instant::now();
                }
                Next::Soon if progress.elapsed() < PATIENCE => std::thread::yield_now(),
                Next::Soon => return Err(Error::HeldLogDamaged),
            }
        }
    }

    /// Plays one packet back. `false`: nobody gets it any more.
    fn play_one(&self, held: &Held) -> Result<bool, Error> {
        const ATTEMPTS: u32 = 100;
        let age = Duration::from_nanos(now(ClockId::Boot).saturating_sub(held.header.time));
        if age <= MAX_AGE {
            let mut frame = held.frame.clone();
            checksum::finish(&mut frame);
            let vlan = u32::from(held.header.vlan_protocol) << 16 | u32::from(held.header.vlan_tci);
            for _ in 0..ATTEMPTS {
                match self.run(&frame, held.header.ifindex, vlan)? {
                    0 => return Ok(true),
                    // The CPU's queue is full (NET_RX_DROP).
                    1 => std::thread::sleep(Duration::from_millis(1)),
                    _ => break,
                }
            }
        }
        self.run(&held.frame, 0, 0)?;
        Ok(false)
    }

    /// Runs the program, which returns zero or an error of the kernel.
    fn run(&self, frame: &[u8], ifindex: u32, vlan: u32) -> Result<i32, Error> {
        // `struct __sk_buff` up to `cb`, see linux/bpf.h.
        let mut context = [0_u32; 17];
        (context[12], context[13]) = (ifindex, vlan);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::new()
        };
        let result = self.program.test_run(options).map_err(Error::program("run", PROGRAM))?;
        Ok(result.return_value as i32)
    }
}

impl Drop for Player<'_> {
    fn drop(&mut self) {
        if let Some(cpus) = &self.cpus {
            let _ = sched_setaffinity(None, cpus);
        }
    }
}
