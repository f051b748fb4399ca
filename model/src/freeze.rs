//! Freezing a deployment (`freeze.rs` of user space).

use crate::{
    claim::{Claim, claim, end_reprieve, fence, is_in_time},
    command::Outcome,
    memory::duration,
    mutation::Mutation,
    reading::{reading, settled},
    run::Run,
};
use bg_common::LiveFlags;

/// The end of the freeze is in both slots: until a word takes effect, packets go by the one before.
pub(crate) fn freeze(run: &Run<'_>, units: u64) -> Option<Outcome> {
    let until = run.clock()? + duration(units);
    let is_blind = run.is(Mutation::BlindFreeze);
    loop {
        let reading = if is_blind { reading(run)? } else { settled(run)? };
        let word = reading.stored;
        let claim = if is_blind { Some(Claim::ENDLESS) } else { claim(run, &reading)? };
        let Some(claim) = claim else { continue };
        run.does(|shared| {
            shared.last_hold = shared.last_hold.max(until);
            // It may end sooner than the one before.
            shared.frozen_until = shared.frozen_until.min(until);
            (0..2).for_each(|slot| shared.memory.update(slot, |timing| timing.hold_until = until));
        })?;
        if !is_blind && !is_in_time(run, claim.until)? {
            continue;
        }
        let frozen = word.with_flags(word.flags().with(LiveFlags::HOLD));
        if run.replace(word, frozen, None, |shared| shared.urgent_since = None)? != frozen {
            continue;
        }
        fence(run)?;
        if !is_blind {
            end_reprieve(run, &reading, claim)?;
        }
        let [holds] = run.step(|shared| {
            let word = shared.memory.live();
            let hold_until = shared.memory.timing(word.terms_slot()).hold_until;
            Some([u64::from(word.flags().has(LiveFlags::HOLD) && hold_until == until)])
        })?;
        if holds != 0 || run.is(Mutation::HastyFreeze) || run.clock()? >= until {
            return Some(Outcome::Frozen { until });
        }
    }
}
