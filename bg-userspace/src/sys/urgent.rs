//! Running before other work.

use rustix::process::{getpriority_process, setpriority_process};

/// While this exists, the processor prefers this thread to others: many packets wait for it. Nothing changes without `CAP_SYS_NICE`.
pub(crate) struct Urgent {
    /// Its nice value otherwise.
    usual: Option<i32>,
}

impl Urgent {
    const NICE: i32 = -20;

    pub(crate) fn begin() -> Self {
        // On Linux, these are a thread's own.
        let usual = getpriority_process(None).ok();
        Self { usual: usual.filter(|_| setpriority_process(None, Self::NICE).is_ok()) }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(usual) = self.usual {
            // It may always be preferred less.
            let _ = setpriority_process(None, usual);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_urgent_only_for_a_while() {
        std::thread::spawn(|| {
            let usual = getpriority_process(None).unwrap();
            let urgent = Urgent::begin();
            let is_allowed = urgent.usual.is_some();
            assert_eq!(getpriority_process(None).unwrap(), if is_allowed { Urgent::NICE } else { usual });
            drop(urgent);
            assert_eq!(getpriority_process(None).unwrap(), usual);
        })
        .join()
        .unwrap();
    }
}
