//! Keeping a switch that waits for its confirmation (`switch/confirm.rs` of user space).

use crate::{
    claim::fence,
    command::Outcome,
    memory::Shared,
    mutation::Mutation,
    reading::{NEVER, had_conditions, reading, settled},
    run::Run,
};
use bg_common::LiveFlags;

/// From now on, nothing has to take this generation back.
fn asked(shared: &mut Shared, generation: u32) {
    let known = shared.known(generation);
    (known.deadline, known.is_asked) = (0, true);
}

pub(crate) fn keep(run: &Run<'_>) -> Option<Outcome> {
    loop {
        let reading = settled(run)?;
        let generation = reading.generation;
        let slot = reading.stored.terms_slot();
        if reading.is_taken_back() {
            return Some(Outcome::TooLate { generation });
        }
        let timing = &reading.timing;
        let needs_it = timing.window != 0 || timing.conditions != 0;
        let is_timed = reading.stored.flags().has(LiveFlags::TIMED);
        let had_conditions = !run.is(Mutation::BlindConfirm) && had_conditions(run, &reading)?;
        let is_asked = timing.revert_at != 0 || had_conditions;
        if !needs_it && !is_asked {
            return Some(Outcome::Refused);
        }
        if !is_timed {
            return Some(Outcome::Kept { generation });
        }
        if reading.is_pending() {
            if !run.is(Mutation::ForgottenConfirm) {
                run.does(|shared| {
                    shared.memory.update(slot, |timing| timing.revert_at = NEVER);
                    asked(shared, generation);
                })?;
            }
            run.does(|shared| {
                shared.memory.update(slot, |timing| (timing.window, timing.conditions) = (0, 0));
                asked(shared, generation);
            })?;
            if !run.is(Mutation::HastyConfirm) {
                fence(run)?;
            }
            let after = self::reading(run)?;
            if after.stored == reading.stored && after.is_pending() {
                return Some(Outcome::Kept { generation });
            }
            // It has taken effect meanwhile, perhaps with a deadline.
            continue;
        }
        let kept = reading.stored.with_flags(reading.stored.flags().without(LiveFlags::TIMED));
        let there = run.replace(reading.stored, kept, Some(Mutation::ConfirmByStore), |shared| {
            shared.known(generation).is_kept = true;
        })?;
        if there == kept {
            return Some(Outcome::Kept { generation });
        }
    }
}
