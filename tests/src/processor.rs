//! Measuring on one processor, and the time that it has worked.

use anyhow::{Context, Result};
use std::{fs, io, mem, time::Duration};

/// A processor that this process may use.
#[derive(Clone, Debug)]
pub struct Processor {
    number: usize,
    /// `/proc/<pid>/schedstat` of its `ksoftirqd`.
    softirqs: String,
}

impl Processor {
    /// The processors that this process may use.
    pub fn all() -> Result<Vec<Self>> {
        let allowed = allowed()?;
        // SAFETY: the numbers are below the size of the set.
        let numbers = (0..libc::CPU_SETSIZE as usize).filter(|number| unsafe { libc::CPU_ISSET(*number, &allowed) });
        numbers.map(Self::numbered).collect()
    }

    /// The last processor that this process may use. The first one tends to get the machine's interrupts.
    pub fn last() -> Result<Self> {
        Self::all()?.pop().context("no processor")
    }

    fn numbered(number: usize) -> Result<Self> {
        let name = format!("ksoftirqd/{number}\n");
        for entry in fs::read_dir("/proc")?.flatten() {
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm == name) {
                return Ok(Self { number, softirqs: entry.path().join("schedstat").display().to_string() });
            }
        }
        anyhow::bail!("no ksoftirqd/{number} in /proc")
    }

    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Ties the calling thread to it permanently.
    pub fn adopt_thread(&self) -> Result<()> {
        // SAFETY: all bits zero is a set without a processor.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        // SAFETY: the number was one of the set that the kernel gave.
        unsafe { libc::CPU_SET(self.number, &mut set) };
        // SAFETY: the pointer is to a set of the size given, which outlives the call.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).context("cannot tie a thread to a processor"),
        }
    }

    /// How long it has worked for the calling thread: in the thread itself, including the softirqs that interrupt it, and
    /// in `ksoftirqd`, which finishes the work of these softirqs. Waiting and other threads do not count.
    pub fn worked(&self) -> Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a timespec that outlives the call.
        if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error()).context("no clock of the thread");
        }
        let thread = Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32);
        let text = fs::read_to_string(&self.softirqs).with_context(|| format!("cannot read {}", self.softirqs))?;
        let softirqs = text.split(' ').next().and_then(|ns| ns.parse().ok()).context("a schedstat without time")?;
        Ok(thread + Duration::from_nanos(softirqs))
    }
}

fn allowed() -> Result<libc::cpu_set_t> {
    // SAFETY: all bits zero is a set without a processor.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a set of the size given, which outlives the call.
    match unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } {
        0 => Ok(set),
        _ => Err(io::Error::last_os_error()).context("cannot tell the processors of this process"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        thread,
        time::{Duration, Instant},
    };

    #[test]
    fn waiting_is_no_work() {
        let processor = Processor::last().unwrap();
        thread::spawn(move || {
            processor.adopt_thread().unwrap();
            let (start, before) = (Instant::now(), processor.worked().unwrap());
            thread::sleep(Duration::from_millis(200));
            let worked = processor.worked().unwrap() - before;
            assert!(worked < start.elapsed() / 2, "{worked:?} of {:?}", start.elapsed());
        })
        .join()
        .unwrap();
    }
}
