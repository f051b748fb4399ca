//! A process with one command: what `bg_userspace` does under the switch lock, with the same names. What cannot be observed in the maps is left
//! out: preconditions, the journal, neighbours.

use crate::{
    command::{Command, Outcome},
    confirm::keep,
    fault::Fault,
    freeze::freeze,
    memory::Shared,
    mutation::Mutation,
    run::Run,
    store::change,
};
use bg_common::LiveFlags;

/// A process with one command, up to its end.
pub(crate) fn program(run: &Run<'_>, process: usize, command: Command) -> Option<Outcome> {
    let is_locking = !run.is(Mutation::NoLock);
    run.step(|shared| {
        if is_locking && shared.lock.is_some() {
            return None;
        }
        shared.lock = Some(process);
        Some([0])
    })?;
    match command {
        Command::Confirm => keep(run),
        Command::Freeze(units) => freeze(run, units),
        Command::Switch(_) | Command::Rollback => change(run, command),
    }
}

/// Releases the lock, and compares what a command says with what is so.
pub(crate) fn returned(shared: &mut Shared, command: Command, outcome: Outcome) {
    shared.lock = None;
    shared.urgent_since = None;
    let stored = shared.memory.live();
    match outcome {
        Outcome::Refused => {
            let known = shared.known(stored.generation());
            let is_repeated = command == Command::Confirm && (known.is_asked || known.is_kept);
            shared.is_at_fault_if(is_repeated, Fault::Forgotten);
        }
        Outcome::Frozen { until } => shared.frozen_until = until,
        Outcome::Done { changed, generation, is_pending } => {
            let is_timed = matches!(command, Command::Switch(switch) if switch.is_timed());
            let is_own = generation == stored.generation() && changed && !is_timed;
            shared.is_at_fault_if(is_own && stored.flags().has(LiveFlags::TIMED), Fault::LeftArmed);
            if !is_pending {
                shared.fenced = shared.fenced.max(generation);
                // From now on, packets judge.
                let now = shared.clock();
                if let Some(watch) = shared.watches.get_mut(generation as usize).filter(|_| changed) {
                    watch.judged_from = watch.judged_from.min(now);
                }
            }
        }
        Outcome::Kept { generation } => {
            let known = shared.known(generation);
            known.is_kept = true;
            let is_taken_back = known.is_taken_back;
            shared.is_at_fault_if(is_taken_back, Fault::TwoOutcomes);
        }
        Outcome::TooLate { generation } => {
            let was_kept = shared.known(generation - 1).is_kept;
            shared.is_at_fault_if(was_kept, Fault::TwoOutcomes);
            shared.floor = shared.floor.max(generation);
        }
    }
}
