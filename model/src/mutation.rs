//! Faults that the protocol could have, each of which the model must find.

/// A deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A command writes terms without having waited for packets that may still read what was there.
    NoFenceBefore,
    /// A command returns without having waited for packets that may have read the word before.
    NoFenceAfter,
    /// A confirmation stores the word, whatever is there.
    ConfirmByStore,
    /// A packet that takes a switch back stores the word, whatever is there.
    ExpiryByStore,
    /// The word is published before its terms and its timing.
    WordFirst,
    /// A deadline that is about to pass is not put off.
    NoReprieve,
    /// A command does not look whether the state is the same after it has waited.
    NoSecondLook,
    /// A command does not look at the clock before it replaces the word.
    NoLastLook,
    /// A command goes on although something has come due while it read.
    ImplicitState,
    /// The deadline is only stored after the fence.
    LateDeadline,
    /// A switch that is scheduled is confirmed without waiting for packets that may have read its window.
    HastyConfirm,
    /// A confirmation leaves no trace of the time for it, if the switch has not taken effect.
    ForgottenConfirm,
    /// A confirmation does not look for conditions that another one has ended.
    BlindConfirm,
    /// A switch is cancelled without a look at the clock before its timing is written.
    NoFirstLook,
    /// A switch is cancelled although packets may still judge it, since the confirmation that has ended its conditions was killed.
    HastyCancel,
    /// A freeze writes its end although a packet may be about to take a switch back.
    BlindFreeze,
    /// A freeze does not look whether it holds after it has waited.
    HastyFreeze,
    /// A switch forgets the end of a freeze.
    ForgottenFreeze,
    /// The conditions of a switch are judged although packets may still need the terms before it.
    NoPause,
    /// A command ends the pause of a switch that has not taken effect, which a packet may have begun meanwhile.
    LostPause,
    /// A command never ends the pause.
    LastingPause,
    /// Counters are not cleared when they are used again.
    KeptCounters,
    /// Counters are used again although packets may still count for the switch before.
    CountsGoOn,
    /// Flows that a ramp has moved count for the generation before, if that had conditions.
    ColourlessCount,
    /// A ramp that is cancelled leaves its word timed.
    ArmedCancel,
    /// A switch that goes on with a ramp does not know where that began.
    ForgottenRamp,
    /// A condition is armed that the old colour meets too.
    NoDisarm,
    /// Commands do not lock.
    NoLock,
}
