//! The programs that explain: they are loaded on the maps of the running instance, which they only read, and attached nowhere.
//!
//! They log each step with aya-log: its code and its values. The log is a ring buffer of this load alone, which nothing pins.

use std::sync::{Arc, Mutex, PoisonError};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use aya_log::EbpfLogger;
use bg_ebpf::step::{Step, WORDS};

use crate::{
    Error, Paths,
    loader::{self, INGRESS, TC_EGRESS, TC_INGRESS},
    net::LOOPBACK,
};

/// Where a packet is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Xdp,
    TcIngress,
    TcEgress,
}

impl Hook {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc ingress",
            Self::TcEgress => "tc egress",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Xdp => INGRESS,
            Self::TcIngress => TC_INGRESS,
            Self::TcEgress => TC_EGRESS,
        }
    }
}

/// A run of a program on a frame.
pub(super) struct Run {
    pub(super) steps: Vec<Step>,
    pub(super) frame: Vec<u8>,
}

pub(super) struct Programs {
    ebpf: Ebpf,
    logger: EbpfLogger<Records>,
    records: Records,
}

impl Programs {
    pub(super) fn load(paths: &Paths) -> Result<Self, Error> {
        let mut ebpf = loader::load_explaining(paths)?;
        let records = Records::default();
        let logger =
            EbpfLogger::init_with_logger(&mut ebpf, records.clone()).map_err(Error::map("open", "AYA_LOGS"))?;
        Ok(Self { ebpf, logger, records })
    }

    /// Runs the program of a hook on a frame at an interface.
    pub(super) fn run(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<Run, Error> {
        let name = hook.program();
        let program = loader::loaded(&mut self.ebpf, name)?;
        // A header may grow, though no program of today makes it.
        let mut out = vec![0; frame.len() + 256];
        let run = match program {
            Program::Xdp(xdp) => run_xdp(xdp, ifindex, frame, &mut out),
            Program::SchedClassifier(classifier) => run_tc(classifier, ifindex, frame, &mut out),
            _ => return Err(Error::program("run", name)("it is neither XDP nor tc")),
        };
        let length = run.map_err(Error::program("run", name))?;
        out.truncate(length as usize);
        self.logger.flush();
        Ok(Run { steps: self.records.take(), frame: out })
    }
}

fn run_xdp(program: &Xdp, ifindex: u32, frame: &[u8], out: &mut [u8]) -> Result<u32, ProgramError> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, and two more.
    let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
    Ok(program.test_run(options(frame, out, &context))?.data_size_out)
}

fn run_tc(program: &SchedClassifier, ifindex: u32, frame: &[u8], out: &mut [u8]) -> Result<u32, ProgramError> {
    // struct __sk_buff, as far as the kernel takes it over: ingress_ifindex and ifindex. The rest is zero. Packets of this host
    // itself come by its loopback interface.
    let mut context = [0; 11];
    context[9] = if ifindex == LOOPBACK { LOOPBACK } else { 0 };
    context[10] = ifindex;
    Ok(program.test_run(options(frame, out, &context))?.data_size_out)
}

fn options<'a>(frame: &'a [u8], out: &'a mut [u8], context: &'a [u32]) -> TestRunOptions<'a> {
    TestRunOptions {
        data_in: Some(frame),
        data_out: Some(out),
        ctx_in: Some(bytemuck::cast_slice(context)),
        ..TestRunOptions::new()
    }
}

/// The steps that have been logged.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<Step>>>);

impl Records {
    fn take(&self) -> Vec<Step> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl log::Log for Records {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let words: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        let step = <[u64; WORDS]>::try_from(words).ok().and_then(Step::from_words);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(step);
    }

    fn flush(&self) {}
}
