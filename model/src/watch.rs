//! The conditions of a switch: its row, and what is known of them. There is one condition, that a flow was reset (`resets > 0% of 1`). So of a counter it
//! matters only whether it is zero.

use bg_common::Colour;

/// A slot of the deployment's row in `trips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) generation: u32,
    pub(crate) colour: Colour,
    pub(crate) paused_until: u64,
    /// Whether it has counted a flow, and a reset one.
    pub(crate) opened: bool,
    pub(crate) reset: bool,
}

impl Row {
    pub(crate) const fn new(generation: u32, colour: Colour) -> Self {
        Self { generation, colour, paused_until: 0, opened: false, reset: false }
    }
}

/// What is known of a generation's conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Watch {
    /// The colour that it switches to. `None`: it has no conditions.
    pub(crate) colour: Option<Colour>,
    /// When it begins to take effect, as an instant.
    pub(crate) begins: u64,
    /// From when on packets must judge, as an instant.
    pub(crate) judged_from: u64,
    /// Flows were opened on that colour, and some have been reset.
    pub(crate) opened: bool,
    pub(crate) reset: bool,
    /// A flow whose answer may still come.
    pub(crate) awaited: Option<Awaited>,
}

/// A flow without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Awaited {
    /// The generation that it was opened in.
    pub(crate) generation: u32,
    /// Whether it was counted.
    pub(crate) is_counted: bool,
}

impl Watch {
    pub(crate) fn put_off(&mut self, until: u64) {
        self.judged_from = self.judged_from.max(until);
    }

    /// Whether a packet that begins at this instant must take it back.
    pub(crate) fn must_trip(&self, began: u64) -> bool {
        self.colour.is_some() && self.opened && self.reset && self.begins.max(self.judged_from) <= began
    }
}
