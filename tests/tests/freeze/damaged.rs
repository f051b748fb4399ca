//! A log of held packets that is damaged loses what is damaged, and nothing else.

use crate::{
    PATIENCE, phase,
    several::{OTHER, other_vip, with_other},
};
use anyhow::{Result, ensure};
use aya::maps::MapData;
use bg_common::{HELD_LOG_BYTES, HELD_LOG_START, HeldState, held_record_bytes};
use bg_tests::{
    Chance, Ready, address,
    config::{DEPLOYMENT, udp_vip},
    load::Echo,
};
use memmap2::{MmapOptions, MmapRaw};
use std::{
    net::SocketAddr,
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

const FLOWS: usize = 6;

/// The pinned log.
struct Log(MmapRaw);

impl Log {
    fn open(ready: &Ready) -> Result<Self> {
        let map = MapData::from_pin(ready.lab.sandbox.pin_root().join("maps/held"))?;
        Ok(Self(MmapOptions::new().len(HELD_LOG_BYTES).map_raw(map.fd().as_fd().as_raw_fd())?))
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < HELD_LOG_BYTES / 8);
        // SAFETY: an aligned word of the mapping, which lives as long as `self`. Others write it by atomic operations, too.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast::<u64>().add(at)) }
    }

    /// The words of each record, and those of the whole log that are in use.
    fn records(&self) -> (Vec<Range<usize>>, usize) {
        let end = (HELD_LOG_START + self.word(0).load(Ordering::SeqCst) as usize) / 8;
        let (mut at, mut records) = (HELD_LOG_START / 8, Vec::new());
        while at < end {
            let len = HeldState(self.word(at).load(Ordering::SeqCst)).len();
            records.push(at..at + held_record_bytes(len) / 8);
            at += held_record_bytes(len) / 8;
        }
        (records, end)
    }

    fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::SeqCst);
    }
}

/// Sends a datagram of each of some new flows, alternately to both deployments, and waits until all are held.
fn hold(ready: &Ready) -> Result<[Vec<Echo>; 2]> {
    let Ready { bgctl, lab, .. } = ready;
    for deployment in [OTHER, DEPLOYMENT] {
        bgctl.run(&["freeze", deployment, "--max", "1m"])?;
    }
    let open = |to: SocketAddr| (0..FLOWS).map(|_| Echo::open(&lab.client, to)).collect::<Result<Vec<_>>>();
    let flows = [open(udp_vip(address::VIP_V4))?, open(other_vip(address::VIP_V4))?];
    for nth in 0..FLOWS {
        flows.iter().try_for_each(|flows| flows[nth].send(&nth.to_string()))?;
    }
    let start = Instant::now();
    for deployment in [OTHER, DEPLOYMENT] {
        while bgctl.deployment(deployment)?["held"] != FLOWS {
            ensure!(start.elapsed() < PATIENCE, "not all are held");
        }
    }
    Ok(flows)
}

/// Thaws a deployment. How many of its flows are answered, and whether the command has warned.
fn thaw(ready: &Ready, deployment: &str, flows: &[Echo], patience: Duration) -> Result<(usize, bool)> {
    let output = ready.bgctl.try_run(&["thaw", deployment])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_ne!(phase(&ready.bgctl, deployment)?, "frozen");
    let mut answered = 0;
    for (nth, flow) in flows.iter().enumerate() {
        flow.set_patience(patience)?;
        answered += usize::from(flow.receive(&nth.to_string()).is_ok());
    }
    Ok((answered, said.contains("was damaged")))
}

#[test]
fn a_damaged_log_loses_what_is_damaged_and_the_next_freeze_works() -> Result<()> {
    let ready = with_other()?;
    let log = Log::open(&ready)?;
    let mut chance = Chance::new();
    // A packet of the one deployment, then one of the other.
    for (kind, victim) in [(0, 2), (1, 3), (2, 2), (3, 3)] {
        let flows = hold(&ready)?;
        let (records, end) = log.records();
        assert_eq!(records.len(), 2 * FLOWS);
        let deployment = HeldState(log.word(records[victim].start).load(Ordering::SeqCst)).deployment();
        match kind {
            // As left by a writer that has never gone on.
            0 => log.set(records[victim].start, 0),
            1 => records[victim].clone().for_each(|at| log.set(at, chance.number())),
            // It says that it is longer than it is.
            2 => log.set(records[victim].start, HeldState::waiting(deployment, 1000).0),
            // How much of the log is in use.
            _ => log.set(0, chance.number() % (8 * end as u64)),
        }
        let (ours, has_warned) = thaw(&ready, DEPLOYMENT, &flows[0], Duration::from_millis(500))?;
        let (others, _) = thaw(&ready, OTHER, &flows[1], Duration::from_millis(500))?;
        let expected = 2 * FLOWS - usize::from(kind < 3);
        // A frame of the wrong length may be a datagram all the same.
        assert!(ours + others == expected || (kind == 2 && ours + others == 2 * FLOWS), "{kind}: {ours} and {others}");
        assert!(ours.min(others) >= FLOWS - 1, "{kind}: {ours} and {others}");
        assert!(has_warned || kind == 3, "{kind}");

        let flows = hold(&ready)?;
        assert_eq!(thaw(&ready, OTHER, &flows[1], PATIENCE)?, (FLOWS, false), "{kind}");
        assert_eq!(thaw(&ready, DEPLOYMENT, &flows[0], PATIENCE)?, (FLOWS, false), "{kind}");
    }
    ready.neighbour_is_undisturbed()
}
