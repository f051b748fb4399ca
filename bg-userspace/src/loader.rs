//! Loading the object. Pinned maps are reused, and the others are created and pinned. Then `meta` is written, and then the programs
//! are loaded.

use std::{io, time::Duration};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, MapError},
    programs::{Program, ProgramError, ProgramType, SchedClassifier, Xdp},
    sys::{BpfHelper, is_helper_supported},
};
use bg_common::{ABI_VERSION, FlowHash, Meta, TableSizes};
use rustix::{
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, Timespec, clock_getres},
};

use crate::{
    Error, Paths,
    doctor::preconditions::KernelVersion,
    lock::Lock,
    map_specs::MAPS,
    maps::typed,
    net,
    pins::{self, PinRoot},
    sizes::{DEFAULT_BACKENDS, DEFAULT_FLOWS, DEFAULT_SERVICES, Setting, Sizes},
};

/// The object that the build script has embedded; empty if there was none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bg.bpf.o"));

/// The object of the programs that explain.
static EXPLAINING: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/explain.bpf.o"));

/// The name of a program.
pub(crate) const INGRESS: &str = "ingress";
pub(crate) const TC_INGRESS: &str = "tc_ingress";
pub(crate) const TC_EGRESS: &str = "tc_egress";

/// The room that an instance should have. `None` is its present room, or the default for a new instance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WantedSizes {
    pub(crate) flows: Option<u32>,
    pub(crate) services: Option<u32>,
    pub(crate) backends: Option<u32>,
}

impl WantedSizes {
    const fn of(&self, setting: Setting) -> Option<u32> {
        match setting {
            Setting::Flows => self.flows,
            Setting::Services => self.services,
            Setting::Backends => self.backends,
        }
    }

    /// The sizes of a new instance.
    fn or_default(&self) -> Result<Sizes, Error> {
        for (setting, wanted) in Setting::ALL.into_iter().filter_map(|setting| Some((setting, self.of(setting)?))) {
            let (what, most) = (setting.name(), setting.most());
            if wanted > most {
                let what = format!("an instance has room for at most {most} {what}, but --{what} asks for {wanted}");
                return Err(Error::Unrepresentable { what });
            }
        }
        Ok(Sizes::new(
            self.flows.unwrap_or(DEFAULT_FLOWS),
            self.services.unwrap_or(DEFAULT_SERVICES),
            self.backends.unwrap_or(DEFAULT_BACKENDS),
        ))
    }

    /// The present sizes, which cannot be changed, if they are as requested.
    fn are(&self, sizes: Sizes) -> Result<Sizes, Error> {
        for setting in Setting::ALL {
            let got = sizes.room(setting);
            let is_other = |wanted: &u32| *wanted > setting.most() || sizes.with(setting, *wanted).room(setting) != got;
            if let Some(expected) = self.of(setting).filter(is_other) {
                return Err(Error::OtherSize { what: setting.name(), expected, got });
            }
        }
        Ok(sizes)
    }
}

/// Loaded programs that use pinned maps. Dropping it does not change the pins.
pub(crate) struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    /// Loads the programs for the instance at `paths`, which may not exist yet.
    pub(crate) fn load(paths: &Paths, wanted: &WantedSizes) -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NoObject);
        }
        let (meta, sizes) = match PinRoot::inspect(paths)? {
            PinRoot::Instance { meta, sizes } => (Some(meta), wanted.are(sizes)?),
            PinRoot::Unfinished => {
                pins::clear(paths)?;
                (None, wanted.or_default()?)
            }
            PinRoot::Empty => (None, wanted.or_default()?),
        };
        pins::make_directories(paths)?;

        // The hash keys of an instance determine where its flows are.
        let hash = meta.map_or_else(|| draw().map(FlowHash), |meta| Ok(meta.flow_hash))?;
        let mut ebpf = open(OBJECT, paths, hash, sizes)?;
        ebpf.programs_mut().try_for_each(|(name, program)| load(program, name))?;
        if meta.is_none() {
            let mut map: Array<MapData, Meta> = typed(paths, "meta")?;
            let meta = Meta {
                abi_version: ABI_VERSION,
                hz: kernel_hz(),
                identity: draw()?,
                netns_cookie: net::namespace_cookie()?,
                flow_hash: hash,
            };
            map.set(0, meta, 0).map_err(Error::map("write", "meta"))?;
        }
        Ok(Self { ebpf })
    }

    pub(crate) fn xdp(&mut self, name: &str) -> Result<&mut Xdp, Error> {
        self.program(name)?.try_into().map_err(Error::program("find", name))
    }

    pub(crate) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, Error> {
        self.program(name)?.try_into().map_err(Error::program("find", name))
    }

    /// Pins every program. An older pin is replaced by a rename, so there is always one.
    pub(crate) fn pin_programs(&mut self, paths: &Paths) -> Result<(), Error> {
        for (name, program) in self.ebpf.programs_mut() {
            let (pin, temporary) = (paths.program(name), paths.program(&format!("{name}:new")));
            // A killed attach may have left this pin.
            pins::remove(&temporary)?;
            program.pin(&temporary).map_err(Error::program("pin", name))?;
            std::fs::rename(&temporary, &pin).map_err(Error::io("replace", pin))?;
        }
        Ok(())
    }

    fn program(&mut self, name: &str) -> Result<&mut Program, Error> {
        let missing = || Error::program("find", name)("the object has no program of this name");
        self.ebpf.program_mut(name).ok_or_else(missing)
    }
}

/// Opens the object that explains, on the maps of the instance at `paths`. [`loaded`] loads its programs.
pub(crate) fn load_explaining(paths: &Paths) -> Result<Ebpf, Error> {
    // Held while the maps are opened: nobody removes them meanwhile, so that none is created and pinned anew.
    let _lock = Lock::detach(paths, Duration::from_secs(5))?;
    let PinRoot::Instance { meta, sizes } = PinRoot::inspect(paths)? else {
        return Err(Error::NoInstance { pin_root: paths.pin_root.clone(), hint: String::new() });
    };
    open(EXPLAINING, paths, meta.flow_hash, sizes)
}

/// A program of the object, which is loaded if it is not yet.
pub(crate) fn loaded<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, Error> {
    let missing = || Error::program("find", name)("the object has no program of this name");
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    if program.fd().is_err() {
        load(program, name)?;
    }
    Ok(program)
}

/// Opens an object on the maps of an instance; those that are missing are created and pinned.
fn open(object: &[u8], paths: &Paths, hash: FlowHash, sizes: Sizes) -> Result<Ebpf, Error> {
    if object.is_empty() {
        return Err(Error::NoObject);
    }
    let tables = TableSizes {
        flow_hash: hash,
        flow_masks: sizes.flow_buckets.map(|buckets| buckets - 1),
        vip_mask: 2 * sizes.vip_index_rows - 1,
        backend_mask: 2 * sizes.backend_index_rows - 1,
        weakly_ordered: cfg!(not(target_arch = "x86_64")).into(),
        has_tai: has_tai().into(),
    };
    let mut loader = EbpfLoader::new();
    // The reason for a refusal, without the megabytes of states that led to it.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    loader.override_global("TABLE_SIZES", &tables, true);
    for map in &MAPS {
        loader.map_max_entries(map.name, map.entries(&sizes)).map_pin_path(map.name, paths.map(map.name));
    }
    loader.load(object).map_err(|error| not_loaded(error, sizes))
}

/// Loads a program.
fn load(program: &mut Program, name: &str) -> Result<(), Error> {
    match program {
        Program::Xdp(xdp) => uninterrupted(|| xdp.load()),
        Program::SchedClassifier(classifier) => uninterrupted(|| classifier.load()),
        _ => return Ok(()),
    }
    .map_err(|error| refused(error, name))
}

/// Loads a program. The verifier returns `EAGAIN` if a signal arrives meanwhile. Then loading is repeated.
fn uninterrupted(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 10;
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
    load()
}

/// Whether programs can read `CLOCK_TAI` (since Linux 6.1).
pub(crate) fn has_tai() -> bool {
    is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_ktime_get_tai_ns).unwrap_or(false)
}

/// Random words. Whoever knows the keys of the hash could direct many flows to one bucket.
fn draw<const N: usize>() -> Result<[u64; N], Error> {
    let mut words = [0_u64; N];
    let mut octets: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    while !octets.is_empty() {
        match getrandom(&mut *octets, GetRandomFlags::empty()) {
            Ok(drawn) => octets = &mut octets[drawn..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("ask for random numbers from", "getrandom(2)")(error.into())),
        }
    }
    Ok(words)
}

/// The running kernel's `CONFIG_HZ`. By definition, the resolution of its coarse clock is one jiffy.
fn kernel_hz() -> u32 {
    hz_of(clock_getres(ClockId::MonotonicCoarse))
}

fn hz_of(jiffy: Timespec) -> u32 {
    const SECOND: i64 = 1_000_000_000;
    let nanoseconds = jiffy.tv_sec * SECOND + jiffy.tv_nsec;
    // The kernel has rounded one second by HZ to nanoseconds.
    ((SECOND + nanoseconds / 2) / nanoseconds.max(1)) as u32
}

/// The error for a refusal by the kernel.
fn not_loaded(error: EbpfError, sizes: Sizes) -> Error {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error })
            if matches!(io_error.raw_os_error(), Some(libc::ENOMEM | libc::E2BIG)) =>
        {
            Error::NoMemory { map: name, sizes: sizes.to_string(), source: io_error }
        }
        other => Error::Load(Box::new(other)),
    }
}

/// The error for a program that could not be loaded.
fn refused(error: ProgramError, program: &str) -> Error {
    if let ProgramError::LoadError { verifier_log, .. } = &error
        && let Some(reason) = reason(&verifier_log.to_string())
    {
        let release = KernelVersion::running().map_or_else(|error| error.to_string(), |(_, release)| release);
        return Error::Verifier { release, program: program.to_owned(), reason };
    }
    Error::program("load", program)(error)
}

/// What the verifier says beside its statistics. If it was not even asked, nothing.
fn reason(log: &str) -> Option<String> {
    const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];
    let is_reason = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    let lines: Vec<_> = log.lines().filter(is_reason).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_verifier_is_told_in_its_words() {
        let error = |errno, log: &str| ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(errno),
            verifier_log: aya_obj::VerifierLog::new(log.to_owned()),
        };
        let statistics =
            "verification time 9686503 usec\nstack depth 352+88\nprocessed 1000001 insns (limit 1000000)\n";
        let log = format!("BPF program is too large. Processed 1000001 insn\n{statistics}");
        let text = refused(error(libc::E2BIG, &log), INGRESS).to_string();
        let (_, release) = KernelVersion::running().unwrap();
        for part in
            [&*release, "\"ingress\"", "BPF program is too large. Processed 1000001 insn", "boot another kernel"]
        {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(!text.contains("stack depth"), "{text}");
        for log in ["", statistics] {
            assert!(matches!(refused(error(libc::EPERM, log), INGRESS), Error::Program { .. }), "{log}");
        }
    }

    #[test]
    fn the_frequency_is_exact_though_a_jiffy_is_not() {
        for hz in [100_u32, 250, 300, 1000] {
            let jiffy = (1_000_000_000 + hz / 2) / hz;
            assert_eq!(hz_of(Timespec { tv_sec: 0, tv_nsec: jiffy.into() }), hz);
        }
    }

    #[test]
    fn the_frequency_is_that_of_the_clock_that_ticks() {
        assert!([100, 250, 300, 1000].contains(&kernel_hz()), "{}", kernel_hz());
    }

    #[test]
    fn the_verifier_is_asked_again_when_a_signal_has_interrupted_it() {
        let refusal = |errno| ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(errno),
            verifier_log: aya_obj::VerifierLog::new(String::new()),
        };
        // Interrupted so often, then this result: how often it was asked, and what came of it.
        let asked = |interrupted, result: fn(i32) -> Result<(), i32>| {
            let mut asked = 0;
            let outcome = uninterrupted(|| {
                asked += 1;
                result(if asked > interrupted { 0 } else { libc::EAGAIN }).map_err(refusal)
            });
            let errno = outcome.err().map(|error| match error {
                ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
                other => panic!("{other}"),
            });
            (asked, errno.flatten())
        };
        let then_loaded = |errno| if errno == 0 { Ok(()) } else { Err(errno) };
        let then_refused = |errno| Err(if errno == 0 { libc::EACCES } else { errno });
        assert_eq!(asked(0, then_loaded), (1, None));
        assert_eq!(asked(3, then_loaded), (4, None));
        assert_eq!(asked(3, then_refused), (4, Some(libc::EACCES)), "a refusal is final");
        assert_eq!(asked(99, then_loaded), (10, Some(libc::EAGAIN)), "not for ever");
    }

    #[test]
    fn want_of_memory_is_told_from_a_refusal() {
        let refused = |errno| {
            let io_error = std::io::Error::from_raw_os_error(errno);
            let error = EbpfError::MapError(MapError::CreateError { name: "flows6".to_owned(), io_error });
            not_loaded(error, WantedSizes { flows: Some(1 << 20), ..WantedSizes::default() }.or_default().unwrap())
        };
        let text = refused(libc::ENOMEM).to_string();
        assert!(text.contains("192.0 MiB for 1048576 flows") && text.contains("--flows"), "{text}");
        assert!(matches!(refused(libc::E2BIG), Error::NoMemory { .. }));
        assert!(matches!(refused(libc::EPERM), Error::Load(_)));
    }
}
