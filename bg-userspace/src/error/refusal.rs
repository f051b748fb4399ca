//! Preconditions of a change: why they do not hold, and what to do about it.

use crate::plan::ColourChange;

/// A precondition of a switch or an apply that does not hold. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The deployment is at another generation than expected.
    #[error(
        "deployment \"{deployment}\" is at generation {got}, not at {expected} as --if-generation expects: somebody else has switched; see `bgctl history {deployment}`"
    )]
    OtherGeneration {
        /// Its name.
        deployment: String,
        /// What was asked for.
        expected: u32,
        /// What it is at.
        got: u32,
    },
    /// Both colours get new flows, so no colour drains.
    #[error(
        "both colours of deployment \"{deployment}\" get new flows, so none of them drains. Switch to one of them, or name a backend with --backend"
    )]
    NoIdleColour {
        /// Its name.
        deployment: String,
    },
    /// The backend belongs to a service in mode `tee`.
    #[error(
        "{backend} is behind a listener of `bgctl serve` (mode \"tee\" of a service of deployment \"{deployment}\"), so the flow table does not tell which \
         flows it has. Give it the weight 0 in the configuration and apply: it keeps its connections and gets no new ones"
    )]
    BehindTee {
        /// The deployment's name.
        deployment: String,
        /// The backend.
        backend: std::net::SocketAddr,
    },
    /// A condition would judge flows whose answers nobody here sees.
    #[error(
        "the conditions of --revert-if judge answers, and backends of service \"{service}\" of deployment \"{deployment}\" reply to clients directly (mode \"{mode}\"): \
         this host sees no answer. Use --confirm-within with gates, or bgctl confirm"
    )]
    Unheard {
        /// The deployment's name.
        deployment: String,
        /// The service's name.
        service: String,
        /// Its mode.
        mode: &'static str,
    },
    /// The deployment has no live word.
    #[error(
        "deployment \"{deployment}\" does not run: an apply has just removed it, or was killed before the deployment \
         started. See `bgctl status`; apply the configuration again to complete it"
    )]
    NotRunning {
        /// Its name.
        deployment: String,
    },
    /// No other colour was live before.
    #[error(
        "deployment \"{deployment}\" has always been {live}, so there is nothing to roll back to; `bgctl switch {deployment}` makes the idle colour live"
    )]
    NothingToRollBackTo {
        /// Its name.
        deployment: String,
        /// Its live colour.
        live: &'static str,
    },
    /// The last change was a rollback already, or went away from what was not kept, and the request does not show that its sender knows that.
    #[error(
        "the last change of deployment \"{deployment}\" was a rollback already (perhaps of a schedule), or went away from what was not kept: {live} is kept at generation \
         {generation}. To undo that anyway, name a colour (`bgctl rollback {deployment} {previous}`) or the present generation \
         (`bgctl rollback {deployment} --if-generation {generation}`)"
    )]
    RolledBackAlready {
        /// Its name.
        deployment: String,
        /// The colour that is kept.
        live: &'static str,
        /// The other one.
        previous: &'static str,
        /// Its generation.
        generation: u32,
    },
    /// The switch was taken back before it was confirmed.
    #[error(
        "it is too late to confirm: the switch of deployment \"{deployment}\" was taken back {because}, \
         and {live} is live since generation {generation}; see `bgctl history {deployment}`"
    )]
    TooLateToConfirm {
        /// Its name.
        deployment: String,
        /// Why it was taken back.
        because: String,
        /// Its live colour.
        live: &'static str,
        /// Its generation.
        generation: u32,
    },
    /// The switch was taken back before it could be confirmed.
    #[error(
        "the switch of deployment \"{deployment}\" was made, but its time for a confirmation had passed before all packets went by it, so it \
         was taken back, and {live} is live; give it more time (`--confirm-within`)"
    )]
    TakenBackMeanwhile {
        /// Its name.
        deployment: String,
        /// Its live colour.
        live: &'static str,
    },
    /// No switch waits for a confirmation.
    #[error(
        "deployment \"{deployment}\" (generation {generation}) has no switch that waits for a confirmation: `bgctl switch {deployment} \
         --confirm-within 5m` makes one"
    )]
    NothingToConfirm {
        /// Its name.
        deployment: String,
        /// Its generation.
        generation: u32,
    },
    /// No interface carries the programs, so a switch would have no visible effect.
    #[error(
        "no interface is attached, so the switch would move no traffic: run `bgctl attach IFACE` first, or use --force"
    )]
    NoInterface,
    /// Another instance is attached to the interface.
    #[error(
        "{interface} already carries the {program}. If two instances have the same VIP, only the first sees its packets. Use \
         its --pin-root; or remove it (`bgctl --pin-root DIR detach {interface}`, or {removal} if its pins are lost); or, for \
         other VIPs, attach behind it with --force"
    )]
    OtherInstance {
        /// The interface's name.
        interface: String,
        /// The other instance's program.
        program: String,
        /// The command that removes it.
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
    /// Virtual addresses would change their live colour because they move to another deployment.
    #[error(
        "{}; their clients would reach the other colour at once. Switch so that the colours agree, then apply; or use --force",
        told(changes)
    )]
    ColourChanges {
        /// All of these changes; at least one.
        changes: Vec<ColourChange>,
    },
    /// A virtual address would leave a deployment whose switch waits for its confirmation or its time.
    #[error(
        "\"{to}\" would take virtual addresses over from \"{deployment}\", which has a switch that is not confirmed or has not taken effect \
         yet, and which would concern them no more. Confirm it (`bgctl confirm {deployment}`) or roll it back (`bgctl rollback {deployment}`), \
         then apply; or use --force"
    )]
    SwitchWaits {
        /// Its name.
        deployment: String,
        /// The deployment that would have the virtual address.
        to: String,
    },
    /// A command of a switch with `--freeze` has failed.
    #[error(
        "the command --{name} of the switch of deployment \"{deployment}\" has failed ({status}): {command}. {live} stays live, and new flows go on"
    )]
    HookFailed {
        /// Its name.
        deployment: String,
        /// `before` or `after`.
        name: &'static str,
        /// The command.
        command: String,
        /// How it has ended.
        status: String,
        /// The live colour.
        live: &'static str,
    },
    /// A gate has failed.
    #[error("gate {gate} ({when} the switch of deployment \"{deployment}\") has failed: {why}; {then}")]
    GateFailed {
        /// Its name.
        deployment: String,
        /// What messages call the gate.
        gate: String,
        /// `before` or `after`.
        when: &'static str,
        /// Why it has failed.
        why: String,
        /// What follows for the switch, and the live colour.
        then: String,
    },
    /// An apply has changed a deployment while its gates were asked, or the gates that were given are not its own.
    #[error(
        "an apply has changed deployment \"{deployment}\" since its gates were read, or these are not its gates; nothing was switched: switch again to ask those of now"
    )]
    ChangedMeanwhile {
        /// Its name.
        deployment: String,
    },
    /// The reason for a failover does not hold any more.
    #[error("the failover of deployment \"{deployment}\" is not due any more: {why}")]
    NotDue {
        /// Its name.
        deployment: String,
        /// What has changed.
        why: String,
    },
    /// A switch would go back, by itself, to one that was not kept, or leave new flows there until its time.
    #[error(
        "deployment \"{deployment}\" has gates, and a switch that is not kept yet, to which this one would go back: confirm that one first (`bgctl confirm \
         {deployment}`) or roll it back (`bgctl rollback {deployment}`)"
    )]
    NotKeptYet {
        /// Its name.
        deployment: String,
    },
    /// A split would make another colour live than the one that is kept, or a rollback one that was not kept before either, and the gates have not judged that.
    #[error(
        "deployment \"{deployment}\" may have gates, and a {command} asks none, so it does not make {to} live: `bgctl switch {deployment} {to}` asks \
         them. --skip-gates (`skip_gates` in the API) goes without, and the history tells that. A rollback that names neither a colour nor a generation is never refused for gates"
    )]
    GatesNotAsked {
        /// Its name.
        deployment: String,
        /// `split` or `rollback`.
        command: &'static str,
        /// The colour that would be live.
        to: &'static str,
    },
    /// An apply would change gates that are commands, and must not.
    #[error(
        "this apply would {change} a gate of deployment \"{deployment}\" that is a command on this host: only its root may do that, by the socket or `bgctl apply`"
    )]
    CommandsChange {
        /// Its name.
        deployment: String,
        /// `add`, `change` or `remove`.
        change: &'static str,
    },
    /// A drill would change nothing.
    #[error("deployment \"{deployment}\" has no other colour to switch to, so there is nothing to rehearse")]
    NothingToDrill {
        /// Its name.
        deployment: String,
    },
    /// While a switch in a frozen window was being made, another command has ended the freeze, or has set its end.
    #[error(
        "another command has ended the freeze of deployment \"{deployment}\", or set its end, so nothing was switched, and {live} stays live: bgctl \
         history {deployment}"
    )]
    FreezeTakenOver {
        /// Its name.
        deployment: String,
        /// The live colour.
        live: &'static str,
    },
    /// Another controller runs on the instance.
    #[error(
        "a controller runs on this instance already ({holder}), and two would judge the same backends: stop that one first"
    )]
    SecondController {
        /// The process that holds the lock.
        holder: String,
    },
    /// Somebody has decided during a drill that it is not gone back on.
    #[error(
        "somebody has confirmed the switch of this drill, or changed deployment \"{deployment}\" meanwhile, so the drill does not go back: see `bgctl status {deployment}`. \
         `bgctl rollback {deployment}` goes back, if {live} is live and should not be"
    )]
    DrillKept {
        /// Its name.
        deployment: String,
        /// The colour that the drill has made live.
        live: &'static str,
    },
    /// There is no next generation.
    #[error(
        "deployment \"{deployment}\" has used up all generations: remove it from the configuration and apply, then add it again and apply"
    )]
    GenerationsExhausted {
        /// Its name.
        deployment: String,
    },
}

/// The first few changes, and the number of further ones.
fn told(changes: &[ColourChange]) -> String {
    const SHOWN: usize = 5;
    let mut text = changes.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = changes.len().checked_sub(SHOWN) {
        text += &format!("; and {more} more");
    }
    text
}
