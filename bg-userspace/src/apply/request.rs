//! What a caller says about an apply.

/// How to apply a configuration.
#[derive(Clone, Debug, Default)]
pub struct ApplyRequest {
    /// The reason, for the journal.
    pub reason: Option<String>,
    /// Apply even if virtual addresses change their live colour because they move to another deployment, or leave one whose switch waits.
    pub force: bool,
    /// Refuse to add, change or remove gates that are commands on this host.
    pub keep_commands: bool,
}
