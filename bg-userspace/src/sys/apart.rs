//! Running work that may never return in a separate process.
//!
//! A file operation does not return if the server of a network file system is gone, or the file system is frozen. No signal ends
//! a process that waits in such an operation. A thread does not help, because its process cannot
//! be reaped before the thread is done. So a grandchild does the work, and no process waits for it. It keeps none of the caller's open
//! files, so a reader of the caller's output sees its end, and no lock is held longer than by the caller.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

/// The work has not finished in time. It continues, and ends when it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unanswered;

/// Runs `work` in another process, which keeps `keep` open, and waits for its result for at most `patience`. An empty
/// result means that the process was killed. If no process can be created, this one does the work.
///
/// `work` gets a copy of the caller's memory, and its changes there are lost. It may allocate, but it
/// must not take a lock that another thread of the caller may hold.
pub(crate) fn apart(
    patience: Duration,
    keep: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>, Unanswered> {
    let Ok((answer, give)) = pipe_with(PipeFlags::CLOEXEC) else {
        return Ok(work());
    };
    // SAFETY: the child calls nothing but fork and _exit before it is a grandchild, which does what the text above allows.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: as above; `_exit` runs no destructor and no handler.
            match unsafe { libc::fork() } {
                0 => grandchild(&give, keep, work),
                // SAFETY: as above.
                result => unsafe { libc::_exit(i32::from(result < 0)) },
            }
        }
        child if child > 0 && is_well(child) => {
            drop(give);
            read(&answer, patience)
        }
        _ => Ok(work()),
    }
}

/// Waits for the child, which ends at once. Returns whether it has created a grandchild.
fn is_well(child: libc::pid_t) -> bool {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if ended == child {
            return status == 0;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            // Another part of the program reaps its children. If there is no grandchild, the result will be empty.
            return true;
        }
    }
}

fn grandchild(give: &OwnedFd, keep: Option<BorrowedFd<'_>>, work: impl FnOnce() -> Vec<u8>) -> ! {
    // A signal from the terminal is meant for the command, which may have ended.
    let _ = rustix::process::setsid();
    let mut kept = [Some(give.as_raw_fd()), keep.map(|keep| keep.as_raw_fd())];
    kept.sort_unstable();
    close_all_but(kept.into_iter().flatten());
    let answer = catch_unwind(AssertUnwindSafe(work)).unwrap_or_default();
    let mut rest = &answer[..];
    while let Ok(written @ 1..) = rustix::io::write(give, rest) {
        rest = &rest[written..];
    }
    // SAFETY: this runs no destructor. The destructors belong to the caller's process.
    unsafe { libc::_exit(0) }
}

/// Closes all files except `kept`, which are in ascending order, and opens /dev/null as the standard files.
fn close_all_but(kept: impl Iterator<Item = RawFd>) {
    let mut first = 0;
    for fd in kept {
        close_range(first, fd - 1);
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
    // The lowest free numbers are used first.
    for _ in 0..3 {
        // SAFETY: the path ends in a zero byte. These files stay open until the process ends.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    }
}

fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: the owners of these files are in the caller's memory, and never come to drop them in this process.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

fn read(answer: &OwnedFd, patience: Duration) -> Result<Vec<u8>, Unanswered> {
    let deadline = Instant::now() + patience;
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let answered = poll(&mut [PollFd::from_borrowed_fd(answer.as_fd(), PollFlags::IN)], Some(&left));
        match answered {
            Ok(0) => return Err(Unanswered),
            Ok(_) => match rustix::io::read(answer, &mut piece) {
                Ok(0) => return Ok(all),
                Ok(length) => all.extend(&piece[..length]),
                Err(Errno::INTR) => {}
                Err(_) => return Ok(all),
            },
            Err(Errno::INTR) => {}
            Err(_) => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, process::Command};

    use super::*;

    #[test]
    fn the_answer_comes_from_another_process() {
        let here = std::process::id();
        let answer = apart(Duration::from_secs(10), None, || std::process::id().to_string().repeat(5000).into_bytes());
        let answer = String::from_utf8(answer.unwrap()).unwrap();
        let there = answer[..answer.len() / 5000].parse::<u32>().unwrap();
        assert_ne!(here, there);
    }

    #[test]
    fn whoever_dies_has_nothing_to_say() {
        assert_eq!(apart(Duration::from_secs(10), None, || std::process::abort()), Ok(Vec::new()));
        assert_eq!(apart(Duration::from_secs(10), None, || panic!("not to be seen")), Ok(Vec::new()));
    }

    #[test]
    fn what_never_returns_is_not_waited_for_and_holds_nothing_of_the_callers() {
        let dir = tempfile::tempdir().unwrap();
        let lock = File::create(dir.path().join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let start = Instant::now();
        let stuck = apart(Duration::from_millis(50), None, || {
            std::thread::sleep(Duration::from_secs(20));
            Vec::new()
        });
        assert_eq!(stuck, Err(Unanswered));
        drop((lock, writer));
        let again = File::open(dir.path().join("lock")).unwrap();
        // Another test may be starting a process at this moment, which has a copy until it has begun.
        while rustix::fs::flock(&again, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "the lock has not been let go");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(std::io::read_to_string(reader).unwrap(), "", "the pipe has come to its end");
        assert!(Command::new("true").status().unwrap().success());
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}
