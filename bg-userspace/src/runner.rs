//! Running a command of the configuration: a gate or a health check.

use std::{
    ffi::OsString,
    io::{self, PipeReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getppid, kill_process_group,
        set_parent_process_death_signal, setrlimit, waitid,
    },
};

/// How much of a command's output is kept, from its end.
const KEPT: usize = 4096;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Variables that systemd gives to its own child and that are not meant for a command: it would answer in that one's name.
const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The limit of open files that commands get, if this process has raised its own: programs that use select(2) break above 1024.
pub(crate) static FILES_OF_COMMANDS: OnceLock<Rlimit> = OnceLock::new();

/// A command and how it is run.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) command: &'a [String],
    pub(crate) variables: &'a [(&'static str, OsString)],
    /// When it is killed, with all that it has started.
    pub(crate) deadline: Instant,
    /// Whether what it says on stdout is kept, as is that on stderr.
    pub(crate) hears_stdout: bool,
    /// Whether what it has started is killed after its end too.
    pub(crate) kills_rest: bool,
}

/// What has become of a command. The text is the end of what it has said, after a colon, or empty.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ended(ExitStatus, String),
    /// It was killed at the deadline.
    Late(String),
    /// It was killed because nobody wants to know any more.
    Moot,
    NotRun(io::Error),
    /// Somebody else has taken its status.
    Lost,
}

/// Runs a command. This blocks its thread, also for longer than the deadline if the program is on a file system that does not respond. The
/// command is killed if the thread ends.
pub(crate) fn run(job: &Job<'_>, is_moot: &dyn Fn() -> bool) -> Outcome {
    let (mut child, mut output) = match start(job) {
        Ok(started) => started,
        Err(error) => return Outcome::NotRun(error),
    };
    let mut tail = Tail::default();
    loop {
        tail.read(&mut output);
        match has_ended(&child) {
            Ok(true) => break,
            Ok(false) => {}
            Err(_) => return Outcome::Lost,
        }
        if Instant::now() >= job.deadline {
            kill(&mut child);
            return Outcome::Late(tail.text().unwrap_or_default());
        }
        if is_moot() {
            kill(&mut child);
            return Outcome::Moot;
        }
    }
    // What it has written before its end. Others may have the pipe open for longer.
    tail.read(&mut output);
    if job.kills_rest {
        kill_group(&child);
    }
    child.wait().map_or(Outcome::Lost, |status| Outcome::Ended(status, tail.text().unwrap_or_default()))
}

fn start(job: &Job<'_>) -> io::Result<(Child, PipeReader)> {
    let [program, arguments @ ..] = job.command else { return Err(io::Error::other("there is no command")) };
    let (reader, writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    let mut command = Command::new(program);
    NOT_INHERITED.iter().for_each(|name| _ = command.env_remove(name));
    command.args(arguments).envs(job.variables.iter().map(|(name, value)| (name, value)));
    let stdout = if job.hears_stdout { writer.try_clone()?.into() } else { Stdio::null() };
    command.stdin(Stdio::null()).stdout(stdout).stderr(writer);
    // A group of its own, so that what it has started is killed with it.
    command.process_group(0);
    let parent = rustix::process::getpid();
    let files = FILES_OF_COMMANDS.get().copied();
    let prepare = move || {
        if let Some(files) = files {
            // With another limit it runs too.
            let _ = setrlimit(Resource::Nofile, files);
        }
        // Nobody would know the outcome of one that goes on after its runner was killed.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure makes three system calls, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    // The command has the only other end of the pipe.
    Ok((command.spawn()?, reader))
}

/// Whether it has ended. It is not waited for, so that its id stays its own, and that of its group.
fn has_ended(child: &Child) -> io::Result<bool> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(pid), options)?.is_some())
}

fn kill(child: &mut Child) {
    kill_group(child);
    let _ = child.wait();
}

/// Kills all of its group. It must not have been waited for.
fn kill_group(child: &Child) {
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
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
