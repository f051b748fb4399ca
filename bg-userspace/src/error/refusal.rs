//! Preconditions that refuse a change: what holds instead, and what to do about it.

use crate::plan::ColourChange;

/// A precondition of a switch or an apply that does not hold. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Expected this generation.
    #[error(
        "deployment \"{deployment}\" is at generation {got}, --if-generation expects {expected}: somebody else has switched; look at `bgctl history {deployment}`"
    )]
    OtherGeneration {
        /// Its name.
        deployment: String,
        /// What was asked for.
        expected: u32,
        /// What it is at.
        got: u32,
    },
    /// Expected a live word.
    #[error(
        "deployment \"{deployment}\" runs no more, or not yet: an apply has just removed it, or was killed before it \
         began. Look at `bgctl status`; applying the configuration again completes it"
    )]
    NotRunning {
        /// Its name.
        deployment: String,
    },
    /// Nothing was live before.
    #[error(
        "deployment \"{deployment}\" has always been {live}: there is nothing to roll back to; `bgctl switch {deployment}` makes the idle colour live"
    )]
    NothingToRollBackTo {
        /// Its name.
        deployment: String,
        /// Its live colour.
        live: &'static str,
    },
    /// The last change was a rollback already, and nothing says that this one knows of it.
    #[error(
        "the last change of deployment \"{deployment}\" was a rollback already: {live} is live since generation {generation}. To \
         go back to {previous} all the same, name it (`bgctl rollback {deployment} {previous}`) or say which state you mean \
         (`bgctl rollback {deployment} --if-generation {generation}`)"
    )]
    RolledBackAlready {
        /// Its name.
        deployment: String,
        /// Its live colour.
        live: &'static str,
        /// The colour that was live before.
        previous: &'static str,
        /// Its generation.
        generation: u32,
    },
    /// No interface carries the programs, so a switch would have no effect that anybody sees.
    #[error("no interface is attached, so no traffic would move: `bgctl attach IFACE` first, or --force")]
    NoInterface,
    /// Another instance is attached to the interface.
    #[error(
        "{interface} already carries the {program}, and of two instances with the same VIP only the first is ever asked: use \
         its --pin-root; or remove it (`bgctl --pin-root DIR detach {interface}`, or {removal} if its pins are lost); or attach behind it \
         for other VIPs with --force"
    )]
    OtherInstance {
        /// The interface's name.
        interface: String,
        /// The other instance's program.
        program: String,
        /// The command that takes it off.
        removal: String,
    },
    /// The colour has no backends.
    #[error("{colour} of deployment \"{deployment}\" has no backends{of}: apply a configuration that gives it some")]
    EmptyColour {
        /// Its name.
        deployment: String,
        /// The colour asked for.
        colour: &'static str,
        /// " in service ..." or empty.
        of: String,
    },
    /// Virtual addresses would change their live colour because they change hands.
    #[error(
        "{}; their clients would meet the other colour at once. Switch so that the colours agree, then apply; or --force",
        told(changes)
    )]
    ColourChanges {
        /// All of them; at least one.
        changes: Vec<ColourChange>,
    },
    /// Generations have run out.
    #[error(
        "deployment \"{deployment}\" has used up all generations: remove it from the configuration, apply, put it back, apply"
    )]
    GenerationsExhausted {
        /// Its name.
        deployment: String,
    },
}

/// The first few of them, and how many more there are.
fn told(changes: &[ColourChange]) -> String {
    const SHOWN: usize = 5;
    let mut text = changes.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = changes.len().checked_sub(SHOWN) {
        text += &format!("; and {more} more");
    }
    text
}
