//! Keeping a switch that waits for its confirmation.

use std::time::{Duration, Instant};

use bg_common::LiveFlags;

use super::{
    request::{ConfirmRequest, Switched},
    store::Stored,
};
use crate::{
    Error, Instance, Refusal,
    config::OnSwitch,
    fence::Fence,
    history::Action,
    live::{NEVER, Reading, exchange},
    lock::{Lock, Recording},
    state::Past,
};

impl Instance {
    /// Keeps a switch that waits for its confirmation. It is too late as soon as anybody has taken the switch back: then this is refused.
    pub fn confirm(&self, deployment: &str, request: &ConfirmRequest) -> Result<Switched, Error> {
        let (index, _) = self.deployment(deployment)?;
        let mut fence = Fence::prepare(&self.paths)?;
        let recording = Recording::begin(&self.paths);
        let lock = Lock::switch(&self.paths)?;
        let stored = self.keep(deployment, index, request, &mut fence);
        drop(lock);
        let _ = self.end_confined();
        let stored = self.recorded(deployment, Action::Confirm, request.reason.as_deref(), recording, stored)?;
        Ok(stored.switched(&self.words, index, deployment, Duration::ZERO))
    }

    fn keep(&self, name: &str, index: u16, request: &ConfirmRequest, fence: &mut Fence) -> Result<Stored, Error> {
        // Whether this has seen to it that a switch which has not taken effect yet needs no confirmation.
        let mut changed = false;
        loop {
            let reading = self.settled(index)?;
            let past = Past::read(&self.words, index, name).1;
            let (deployment, generation) = (name.to_owned(), reading.generation);
            if let Some(expected) = request.if_generation.filter(|expected| *expected != generation) {
                // A switch that was taken back has made another generation.
                if reading.is_taken_back() && generation == expected.wrapping_add(1) {
                    return Err(self.too_late(name, index, &reading).into());
                }
                return Err(Refusal::OtherGeneration { deployment, expected, got: generation }.into());
            }
            let on_switch = if reading.timing.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut };
            let at = Instant::now();
            let stored = |changed, to| Stored {
                from: reading,
                to,
                changed,
                on_switch,
                at,
                receipt: None,
                past: past.clone(),
                revert_by: None,
            };
            let needs_it = reading.timing.window != 0 || !reading.conditions().is_empty();
            let is_timed = reading.stored.flags().has(LiveFlags::TIMED);
            // A confirmation that was killed has left `NEVER`, or a packet has put a deadline there since: it had read the time for a confirmation
            // before, and made the switch take effect.
            let is_asked = reading.timing.revert_at != 0 || self.words.had_conditions(index, &reading);
            match reading.is_taken_back() {
                true => return Err(self.too_late(name, index, &reading).into()),
                _ if !needs_it && !is_asked => {
                    return Err(Refusal::NothingToConfirm { deployment, generation }.into());
                }
                // Confirmed before.
                _ if !is_timed => return Ok(stored(changed, reading)),
                _ => {}
            }
            let slot = reading.stored.terms_slot();
            if reading.is_pending() {
                // It has not taken effect, so there is no deadline yet, and there shall be none, nor conditions. If this is killed, the next
                // confirmation must find that this was to be kept, so that is written first.
                self.words.timing.update(index.into(), |slots| slots[slot].revert_at = NEVER);
                self.words.timing.update(index.into(), |slots| (slots[slot].window, slots[slot].conditions) = (0, 0));
                changed |= needs_it;
                fence.wait()?;
                let after = self.words.reading(index, 0);
                if after.stored == reading.stored && after.is_pending() {
                    return Ok(stored(changed, after));
                }
                // It has taken effect meanwhile, perhaps with a deadline.
                continue;
            }
            let kept = reading.stored.with_flags(reading.stored.flags().without(LiveFlags::TIMED));
            if exchange(&self.words, index, reading.stored, kept).is_ok() {
                return Ok(stored(true, self.words.reading(index, 0)));
            }
        }
    }

    fn too_late(&self, name: &str, index: u16, reading: &Reading) -> Refusal {
        Refusal::TooLateToConfirm {
            deployment: name.to_owned(),
            because: self.words.why_taken_back(index, reading),
            live: reading.word.live().name(),
            generation: reading.generation,
        }
    }
}
