//! The programs that explain, on the maps of a loaded object.

use super::{Kernel, Outcome, Program, kernel::run};
use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, programs};
use aya_log::EbpfLogger;
use bg_common::{FLOW_WAYS, FlowHash, TableSizes};
use bg_ebpf::step::{Step, WORDS};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// Loaded programs that explain.
pub struct Explainer {
    object: Ebpf,
    logger: EbpfLogger<Records>,
    records: Records,
}

impl Explainer {
    /// Loads the committed object, or the one that `BGCTL_EXPLAIN_OBJECT` names, on the maps of another object.
    pub fn load(kernel: &mut Kernel) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bg-explainer-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let pins = Pins(PathBuf::from("/sys/fs/bpf").join(name));
        std::fs::create_dir(&pins.0).context("a directory for pins")?;
        let path = std::env::var_os("BGCTL_EXPLAIN_OBJECT").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bg-userspace/bpf/explain.bpf.o"),
            PathBuf::from,
        );
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (rows, heads) = (kernel.sizes().rows, kernel.sizes().heads);
        let tables = TableSizes {
            flow_hash: FlowHash::PUBLIC,
            flow_masks: [rows / FLOW_WAYS - 1; 2],
            vip_mask: heads - 1,
            backend_mask: heads - 1,
            weakly_ordered: 0,
            has_tai: 0,
        };
        let mut loader = EbpfLoader::new();
        loader.override_global("TABLE_SIZES", &tables, true);
        let shared: Vec<String> =
            kernel.object().maps().map(|(name, _)| name.to_owned()).filter(|name| is_shared(name)).collect();
        for name in &shared {
            let pin = pins.0.join(name);
            kernel.object().map(name).context("a map")?.pin(&pin)?;
            loader.map_pin_path(name, pin);
        }
        let mut object = loader.load(&bytes).with_context(|| format!("cannot load {}", path.display()))?;
        let records = Records::default();
        let logger = EbpfLogger::init_with_logger(&mut object, records.clone())?;
        for (_, program) in object.programs_mut() {
            match program {
                programs::Program::Xdp(xdp) => xdp.load()?,
                programs::Program::SchedClassifier(classifier) => classifier.load()?,
                _ => {}
            }
        }
        Ok(Self { object, logger, records })
    }

    /// Explains what a program does with a frame: what comes of it, and the steps.
    pub fn run(&mut self, program: Program, frame: &[u8]) -> Result<(Outcome, Vec<Step>)> {
        let outcome = run(&mut self.object, program, frame)?;
        self.logger.flush();
        let steps = std::mem::take(&mut *self.records.0.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((outcome, steps))
    }
}

/// Whether an instance pins the map: the others are of one load alone.
fn is_shared(name: &str) -> bool {
    !name.starts_with('.') && !["scratch", "route_call", "error_rate"].contains(&name)
}

/// A directory of pins, which are needed only while the object is loaded.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The steps that have been logged.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<Step>>>);

impl log::Log for Records {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let words: Vec<u64> = text.split(' ').map(|word| word.parse().expect("a number")).collect();
        let words: [u64; WORDS] = words.try_into().expect("the words of a step");
        let step = Step::from_words(words).unwrap_or_else(|| panic!("no step: {text}"));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    fn flush(&self) {}
}
