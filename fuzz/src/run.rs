//! Feeding chosen inputs to a target, without libFuzzer. An input that is no good is kept in a file.

use crate::{Target, chosen::Chosen, corpus};
use std::{
    cell::Cell,
    fmt, fs, io,
    os::fd::AsRawFd as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// When to end.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Packets, or files.
    pub runs: Option<u64>,
    /// Time.
    pub time: Option<Duration>,
    /// The seed of the generator.
    pub seed: u64,
}

/// What was fed.
#[derive(Clone, Copy, Debug)]
pub struct Fed {
    /// Packets, or files.
    pub fed: u64,
    /// Inputs.
    pub inputs: u64,
    /// In this time.
    pub time: Duration,
}

/// Why feeding has ended early.
#[derive(Debug)]
pub enum Failure {
    /// An input is no good.
    NoGood {
        /// Packets, or files, that passed before.
        after: u64,
        /// Where it is.
        kept: PathBuf,
    },
    /// A file could not be read or written.
    File(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGood { after, kept } => {
                write!(f, "an input is no good, after {after} that passed; it is kept in {}", kept.display())
            }
            Self::File(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// Feeds all inputs that are kept, then chosen ones, in the sequence of the seed. Without a bound: a few. An input that is no good is kept in the directory.
pub fn run(target: &Target, bounds: Bounds, directory: &Path) -> Result<Fed, Failure> {
    let kept: Vec<_> = corpus::inputs(target)?.into_iter().map(|(_, bytes)| bytes).collect();
    let few = if bounds.time.is_some() { u64::MAX } else { target.few };
    let (start, most) = (Instant::now(), bounds.runs.unwrap_or(few));
    let mut chosen = Chosen::new(target, &kept, bounds.seed);
    let feeder = Feeder::new(target, directory)?;
    kept.iter().try_for_each(|input| feeder.feed(input))?;
    while feeder.fed.get() < most && bounds.time.is_none_or(|time| start.elapsed() < time) {
        feeder.feed(chosen.choose())?;
    }
    feeder.end(start)
}

/// Feeds one file.
pub fn feed_file(target: &Target, file: &Path, directory: &Path) -> Result<Fed, Failure> {
    let (input, start) = (fs::read(file)?, Instant::now());
    let feeder = Feeder::new(target, directory)?;
    feeder.feed(&input)?;
    feeder.end(start)
}

struct Feeder<'a> {
    target: &'a Target,
    kept: PathBuf,
    _file: fs::File,
    fed: Cell<u64>,
    inputs: Cell<u64>,
}

impl<'a> Feeder<'a> {
    fn new(target: &'a Target, directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let kept = directory.join(format!("{}-found", target.name));
        let file = fs::File::create(&kept)?;
        note_signals(file.as_raw_fd());
        Ok(Self { target, kept, _file: file, fed: Cell::default(), inputs: Cell::default() })
    }

    fn feed(&self, input: &[u8]) -> Result<(), Failure> {
        INPUT.store(input.as_ptr().cast_mut(), Relaxed);
        LENGTH.store(input.len(), Relaxed);
        let Ok(more) = panic::catch_unwind(AssertUnwindSafe(|| (self.target.feed)(input))) else {
            fs::write(&self.kept, input)?;
            return Err(Failure::NoGood { after: self.fed.get(), kept: self.kept.clone() });
        };
        self.fed.set(self.fed.get() + more);
        self.inputs.set(self.inputs.get() + 1);
        Ok(())
    }

    fn end(self, start: Instant) -> Result<Fed, Failure> {
        // Another run of the same target may have removed it.
        let _ = fs::remove_file(&self.kept);
        Ok(Fed { fed: self.fed.get(), inputs: self.inputs.get(), time: start.elapsed() })
    }
}

static INPUT: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static FILE: AtomicUsize = AtomicUsize::new(0);

/// Has the input written to a file if memory is accessed that is not there.
fn note_signals(file: i32) {
    extern "C" fn write_input(signal: i32) {
        let text = b"an access out of bounds; the input is kept, as found\n";
        // SAFETY: calls that a signal handler may make; the input lives as long as it is being fed.
        unsafe {
            libc::write(FILE.load(Relaxed) as i32, INPUT.load(Relaxed).cast(), LENGTH.load(Relaxed));
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    FILE.store(file as usize, Relaxed);
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the handler makes only calls that it may make.
        unsafe { libc::signal(signal, write_input as *const () as libc::sighandler_t) };
    }
}
