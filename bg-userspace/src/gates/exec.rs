//! Gates that are commands.

use std::{
    ffi::OsString,
    io::{self, PipeReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal},
};

use super::failure::Failure;

/// How much of a command's output is kept, from its end.
const KEPT: usize = 4096;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Variables that systemd gives to its own child and that are not meant for a command: it would answer in that one's name.
const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Runs a command, which passes if it exits with 0. At the deadline it is killed, with all that it has started.
pub(super) fn run(
    command: &[String],
    variables: &[(&'static str, OsString)],
    deadline: Instant,
    is_moot: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let [program, arguments @ ..] = command else { return Err(Some("it has no command".to_owned())) };
    let failed = |error: io::Error| Some(format!("it cannot be run: {error}"));
    let (mut child, mut output) = start(program, arguments, variables).map_err(failed)?;
    let mut tail = Tail::default();
    loop {
        tail.read(&mut output);
        let ended = child.try_wait();
        if let Ok(None) = ended {
            if Instant::now() >= deadline {
                kill(&mut child);
                return Err(tail.text().map(|said| format!("it had not ended in time, and was killed{said}")));
            }
            if is_moot() {
                kill(&mut child);
                return Err(Some("it was killed, since the switch had been decided elsewhere".to_owned()));
            }
            continue;
        }
        // What it has written before its end. Others may have the pipe open for longer.
        tail.read(&mut output);
        let said = tail.text().unwrap_or_default();
        return match ended {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(Some(format!("{status}{said}"))),
            _ => Err(Some("its end could not be waited for".to_owned())),
        };
    }
}

fn start(
    program: &str,
    arguments: &[String],
    variables: &[(&'static str, OsString)],
) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    let mut command = Command::new(program);
    NOT_INHERITED.iter().for_each(|name| _ = command.env_remove(name));
    command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // A group of its own, so that what it has started is killed with it.
    command.process_group(0);
    let parent = rustix::process::getpid();
    let dies_with_parent = move || {
        // Nobody would know the outcome of one that goes on after its runner was killed.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(dies_with_parent) };
    // The command has the only other end of the pipe.
    Ok((command.spawn()?, reader))
}

fn kill(child: &mut Child) {
    // It has not been waited for, so its id is still its own, and that of its group.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// The end of what a command has said.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Tail {
    /// Reads what there is, and waits for a moment if there is nothing.
    fn read(&mut self, output: &mut PipeReader) {
        // One that writes without end is to be killed in time, too.
        const READS: usize = 16;
        if self.is_over {
            return thread::sleep(LOOK);
        }
        let moment = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&*output, PollFlags::IN)], Some(&moment));
        let mut piece = [0; 4096];
        for _ in 0..READS {
            match output.read(&mut piece) {
                Ok(0) => {
                    self.is_over = true;
                    return;
                }
                Ok(length) => self.bytes.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
            let surplus = self.bytes.len().saturating_sub(KEPT);
            self.bytes.drain(..surplus);
        }
    }

    /// Its last lines, in one, after a colon.
    fn text(&self) -> Option<String> {
        const LINES: usize = 3;
        let text = String::from_utf8_lossy(&self.bytes);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join(" / ");
        (!last.is_empty()).then(|| format!(": {}", crate::text::one_line(&last)))
    }
}
