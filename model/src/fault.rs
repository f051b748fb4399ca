//! What must not happen.

/// Something that must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A packet decides by terms of another generation than that of its word, or the timing beside a word is that of another one.
    ForeignTerms,
    /// The generation shrinks, or the share of a generation changes.
    WentBack,
    /// A confirmed switch is taken back, or one that was taken back is confirmed.
    TwoOutcomes,
    /// A confirmation is refused although one that was killed has asked for the same.
    Forgotten,
    /// A packet since the deadline decides by a switch that nobody has confirmed.
    NotTakenBack,
    /// A packet since the end of a command decides by an earlier word.
    OldWord,
    /// A word that no packet may take back is taken back, or one that awaits nothing.
    NotGuarded,
    /// A switch that was refused or has changed nothing leaves a word that changes by itself.
    LeftArmed,
    /// A scheduled switch takes effect too early or too late.
    OffSchedule,
    /// A scheduled switch takes effect that was cancelled.
    Uncancelled,
    /// The share of a growing ramp shrinks.
    Shrank,
    /// A packet since the end of a freeze command, and before the end of the freeze, is not held.
    NotHeld,
    /// A packet since the end of all freezes is held.
    HeldTooLong,
    /// A condition takes a switch back that none of its own flows has met.
    FalseTrip,
    /// A condition takes a switch back before that has begun.
    EarlyTrip,
    /// A packet decides by a switch whose flows have met its condition before that.
    NotTripped,
    /// A condition takes a switch back to a colour that fails the same test.
    FromBadToBad,
    /// A condition takes a switch back to a share that a ramp before it has reached on its way.
    HalfWayBack,
}
