//! Waiting until every program that ran when the wait began has ended, on every CPU: then no packet is
//! decided by anything read before.
//!
//! An update of a map of maps returns only after an RCU grace period (since Linux 4.20, so that programs
//! do not meet the old inner map afterwards), and every XDP and tc program runs inside one RCU read-side
//! section. That is the fence. Nothing that user space can do by itself tells the same: a thread that has
//! run on each CPU in turn knows that each has scheduled, but where softirqs can be preempted (PREEMPT_RT)
//! that may happen in the middle of a program.
//!
//! An ordinary grace period takes a few ticks, 5 to 20 ms and more on a busy machine; an expedited one, which
//! means the same and asks the CPUs instead of waiting for them, 50 µs. So the kernel is told to expedite for
//! as long as the call lasts (`/sys/kernel/rcu_expedited`). The file is locked meanwhile, so that two
//! instances do not take each other's setting for the administrator's. Where it cannot be written, or the
//! kernel is told to prefer ordinary ones (`rcu_normal`), the wait is longer and just as good. A process that
//! is killed in these microseconds leaves the setting at 1: later grace periods cost more interrupts, nothing
//! else.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
};

use aya::maps::{Array, ArrayOfMaps, MapData};

use crate::{Error, Paths, doctor::preconditions::capabilities, lock::try_lock, maps::typed};

const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// All that the wait needs, so that it is not found missing after the change that is to be waited for.
pub(crate) struct Fence {
    map: ArrayOfMaps<MapData, Array<MapData, u32>>,
    inner: Array<MapData, u32>,
}

impl Fence {
    /// Opens and makes what is needed; takes `CAP_BPF`.
    pub(crate) fn prepare(paths: &Paths) -> Result<Self, Error> {
        let map = typed(paths, "fence")?;
        // Who lacks privileges is told so rather than which map he may not make.
        let inner = Array::create(1, 0)
            .map_err(Error::map("make", "fence"))
            .or_else(|error| capabilities().map_err(Error::from).and(Err(error)))?;
        Ok(Self { map, inner })
    }

    /// Waits until no program that ran before runs any more.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        let _expedited = Expedited::begin();
        self.map.set(0, &self.inner, 0).map_err(Error::map("write", "fence"))
    }
}

/// While it lives, the kernel expedites grace periods.
struct Expedited {
    file: File,
}

impl Expedited {
    /// `None` if they are expedited anyway, or cannot be.
    fn begin() -> Option<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(RCU_EXPEDITED).ok()?;
        if !try_lock(&file).ok()? {
            return None;
        }
        let mut setting = String::new();
        file.read_to_string(&mut setting).ok()?;
        if setting.trim() != "0" {
            return None;
        }
        write(&mut file, b"1").ok()?;
        Some(Self { file })
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        // It was writable a moment ago, and an error could not be mended here.
        let _ = write(&mut self.file, b"0");
    }
}

fn write(file: &mut File, setting: &[u8]) -> std::io::Result<()> {
    file.rewind()?;
    file.write_all(setting)
}
