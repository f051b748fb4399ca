//! What a process is asked for, and what it says.

/// What is asked of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Switch(Switch),
    /// To the share before.
    Rollback,
    Confirm,
    /// For so many units.
    Freeze(u64),
}

impl Command {
    pub(crate) const fn has_conditions(self) -> bool {
        matches!(self, Self::Switch(Switch { is_watched: true, .. }))
    }
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Switch {
    pub(crate) share: u16,
    pub(crate) is_cut: bool,
    pub(crate) is_guarded: bool,
    pub(crate) is_watched: bool,
    /// Units from the beginning of the model.
    pub(crate) at: Option<u64>,
    pub(crate) is_ramp: bool,
}

impl Switch {
    /// At once, and it drains.
    pub const fn to(share: u16) -> Self {
        Self { share, is_cut: false, is_guarded: false, is_watched: false, at: None, is_ramp: false }
    }

    pub const fn cut(self) -> Self {
        Self { is_cut: true, ..self }
    }

    /// With a time for its confirmation.
    pub const fn guarded(self) -> Self {
        Self { is_guarded: true, ..self }
    }

    /// On the condition that no flow is reset.
    pub const fn watched(self) -> Self {
        Self { is_watched: true, ..self }
    }

    pub const fn at(self, moment: u64) -> Self {
        Self { at: Some(moment), ..self }
    }

    pub const fn ramp(self) -> Self {
        Self { is_ramp: true, ..self }
    }

    /// Whether the word changes by itself afterwards.
    pub(crate) const fn is_timed(self) -> bool {
        self.is_guarded || self.is_watched || self.at.is_some() || self.is_ramp
    }
}

/// What a command says when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Refused,
    /// This state is as it was asked for.
    Done {
        changed: bool,
        generation: u32,
        is_pending: bool,
    },
    /// The switch is kept.
    Kept {
        generation: u32,
    },
    /// The switch was taken back before, by this generation.
    TooLate {
        generation: u32,
    },
    /// New flows are held until this instant.
    Frozen {
        until: u64,
    },
}
