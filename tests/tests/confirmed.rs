//! Confirmations and packets that find the deadline passed, at the same moment, on the loaded program and its maps: they exchange the same word,
//! so exactly one of them wins, and the packet goes where the word says.

use anyhow::{Result, ensure};
use bg_common::{Cause, Colour, LiveFlags, LiveWord, Mode, Protocol, SwitchTerms, Timing};
use bg_tests::{
    boot_ns,
    frames::{PacketSpec, ends, tcp_flags},
    twin::{BackendAt, Kernel, Program, Scenario, ServiceAt},
};
use std::{
    net::SocketAddr,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

const ROUNDS: u32 = 100_000;
const VIP: &str = "203.0.113.10:443";
const BACKENDS: [&str; 2] = ["10.0.1.11:8443", "10.0.2.11:8443"];
/// The deployment under test is not the first.
const DEPLOYMENT: u16 = 1;

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn scenario() -> Scenario {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.deployment();
    let backends = |address| vec![BackendAt { address: at(address), out_of: None }];
    scenario.service(&ServiceAt {
        deployment: DEPLOYMENT,
        vip: at(VIP),
        preview: None,
        protocol: Protocol::Tcp,
        mode: Mode::Local,
        backends: BACKENDS.map(backends),
    });
    scenario
}

#[test]
fn a_confirmation_and_a_packet_at_the_deadline_have_one_outcome() -> Result<()> {
    let mut kernel = Kernel::load(4096)?;
    kernel.fill(&scenario())?;
    let page = kernel.live_page()?;
    // SAFETY: a page of aligned words that are only changed by atomic operations, and the row lies in it.
    let live = unsafe { AtomicU64::from_ptr(page.as_mut_ptr().cast::<u64>().add(DEPLOYMENT.into())) };
    // Nobody remembers a reset of a connection that nobody knows: each one is decided anew.
    let frame = PacketSpec::tcp(at("192.0.2.1:40000"), at(VIP), tcp_flags::RST).frame();
    let (deadline, guarded) = (AtomicU64::new(0), AtomicU64::new(0));
    let (begin, end, is_over) = (Barrier::new(2), Barrier::new(2), AtomicBool::new(false));
    let is_kept = AtomicBool::new(false);
    let mut outcomes = [0_u32; 2];
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            loop {
                begin.wait();
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let word = LiveWord(guarded.load(Ordering::SeqCst));
                let kept = word.with_flags(word.flags().without(LiveFlags::TIMED));
                // From just before the packet to well after it.
                let late = u64::from(word.generation() / 2 % 64) * 400;
                while boot_ns() + 300 < deadline.load(Ordering::SeqCst) + late {}
                let exchanged = live.compare_exchange(word.0, kept.0, Ordering::SeqCst, Ordering::SeqCst);
                is_kept.store(exchanged.is_ok(), Ordering::SeqCst);
                end.wait();
            }
        });
        let mut run = || -> Result<()> {
            for round in 0..ROUNDS {
                let generation = 2 * round + 2;
                let word = LiveWord::new(generation, LiveFlags::TIMED, 0, Colour::Green.full_share());
                // Packets take some microseconds from the system call on.
                let revert_at = boot_ns() + 12_000 + u64::from(round % 16) * 500;
                let timing = Timing { generation, window: 1, revert_at, on_switch: 1, ..Timing::default() };
                kernel.set_timing(DEPLOYMENT, word, timing)?;
                kernel.set_live(DEPLOYMENT, word, SwitchTerms::default())?;
                deadline.store(revert_at, Ordering::SeqCst);
                guarded.store(word.0, Ordering::SeqCst);
                begin.wait();
                while boot_ns() < revert_at {}
                let sent = kernel.run(Program::TcIngress, &frame)?;
                end.wait();
                let is_kept = is_kept.load(Ordering::SeqCst);
                outcomes[usize::from(is_kept)] += 1;
                let to: &str = BACKENDS[usize::from(is_kept)];
                let to_found = ends(&sent.frame).1;
                ensure!(to_found == at(to), "round {round}, kept: {is_kept}: {to_found:?}");
                let after = LiveWord(live.load(Ordering::SeqCst));
                if is_kept {
                    ensure!(after == word.with_flags(LiveFlags::NONE), "round {round}: {after:?}");
                } else {
                    let timing = kernel.timings(DEPLOYMENT)?[after.terms_slot()];
                    ensure!(
                        (after.generation(), after.live()) == (generation + 1, Colour::Blue)
                            && (timing.generation, timing.cause) == (generation + 1, Cause::Expired as u8),
                        "round {round}: {after:?} {timing:?}"
                    );
                }
            }
            Ok(())
        };
        let result = run();
        is_over.store(true, Ordering::SeqCst);
        begin.wait();
        result
    })?;
    println!("taken back and kept: {outcomes:?}");
    ensure!(outcomes.iter().all(|count| *count > ROUNDS / 1000), "no race: {outcomes:?}");
    Ok(())
}
