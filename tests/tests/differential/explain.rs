//! The programs that explain leave no trace, and tell what the others do.

use bg_common::Event;
use bg_ebpf::step::Step;
use bg_tests::twin::{Explainer, Host, Kernel, Outcome, Program};

/// Explains a frame, and looks for a trace in the maps.
pub(crate) fn explain(
    explainer: &mut Explainer,
    kernel: &Kernel,
    program: Program,
    frame: &[u8],
) -> (Outcome, Vec<Step>) {
    // Some maps take long to read.
    let all = frame.iter().fold(0_u8, |sum, octet| sum.wrapping_add(*octet)).is_multiple_of(8);
    let before = kernel.bytes(all).expect("the maps");
    assert!(before.len() >= if all { 18 } else { 12 }, "these are not all maps");
    let explained = explainer.run(program, frame).expect("run");
    for ((name, before), (_, after)) in before.iter().zip(kernel.bytes(all).expect("the maps")) {
        assert!(*before == after, "{name} has changed: {frame:02x?}");
    }
    explained
}

/// Compares what was explained with what a program has done, and the steps with those of the engine on the host.
pub(crate) fn agrees(explained: &Outcome, found: &Outcome, steps: &[Step], host: &Host) {
    assert_eq!(explained, found, "{steps:?}");
    assert_eq!(comparable(steps), comparable(&host.notes()));
    // Whoever drops a packet says why, or has kept a copy.
    if let [.., Step::Counted { event }, Step::Verdict { action, .. }] = steps
        && *action == bg_ebpf::Action::Drop as u64
    {
        let event = Event::ALL[*event as usize];
        assert!(event.is_drop() || event == Event::Held, "{steps:?}");
    }
}

/// The steps without those that depend on the age of a next hop, and without ticks: each clock has its own.
fn comparable(steps: &[Step]) -> Vec<Step> {
    let depends_on_age = |step: &Step| {
        matches!(
            step,
            Step::CachedHop { .. }
                | Step::Route { .. }
                | Step::NoRedirect { .. }
                | Step::Asks {}
                | Step::ByStack { .. }
        )
    };
    let without_ticks = |step| match step {
        Step::Begin { direction, .. } => Step::Begin { direction, now: 0 },
        // The upper bits of a state are the row's version, and half of a note may be a tick.
        Step::Flow { backend, generation, state, .. } => {
            Step::Flow { backend, generation, state: state & 0x3ffc, last_seen: 0, note: 0 }
        }
        Step::Silent { .. } => Step::Silent { last_seen: 0 },
        step => step,
    };
    steps.iter().filter(|step| !depends_on_age(step)).map(|step| without_ticks(*step)).collect()
}
