//! The arguments of commands that change what is live, or how flows come to an end.

use std::{net::SocketAddr, time::Duration};

use bg_common::Colour;
use bg_userspace::{
    Condition,
    config::{DivideBy, OnSwitch},
};
use clap::{Args as ClapArgs, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::parse::{percent, period};
use crate::complete;

#[derive(Debug, ClapArgs)]
pub(crate) struct Switch {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// The colour to make live [default: the idle one]
    #[arg(value_enum)]
    pub(crate) to: Option<ColourName>,
    #[command(flatten)]
    pub(crate) change: Change,
    /// Go back after this time, unless `bgctl confirm` comes before; nothing has to keep running for it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) confirm_within: Option<Duration>,
    /// Go back as soon as this holds for new flows of the new colour: "resets > 5% of 200" (answered with a reset), "unanswered > 5% of 200"
    /// (without an answer after a second), or "silence 2s" (none answered for so long); until `bgctl confirm` or the next change. The number after "of" is the least
    /// number of flows that may judge. One of each kind; nothing has to keep running for it
    #[arg(long, value_name = "CONDITION")]
    pub(crate) revert_if: Vec<Condition>,
    /// Move the share of new flows from the old colour to the new one in this time, by the clock; nothing has to keep running
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) ramp: Option<Duration>,
    /// Take effect, or begin the ramp, at this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<jiff::Timestamp>,
    /// Hold new flows from before the switch until after it, for this time at most; if it is not complete by then, the old colour
    /// stays live
    #[arg(long, value_name = "DURATION", value_parser = period, conflicts_with_all = ["confirm_within", "revert_if", "ramp", "at"])]
    pub(crate) freeze: Option<Duration>,
    /// With --freeze: a shell command that runs first, when no new flow is opened any more
    #[arg(long, value_name = "CMD", requires = "freeze")]
    pub(crate) before: Option<String>,
    /// With --freeze: a shell command that runs after the switch, before new flows go on
    #[arg(long, value_name = "CMD", requires = "freeze")]
    pub(crate) after: Option<String>,
    /// Ask none of the gates that the configuration has for this deployment
    #[arg(long)]
    pub(crate) skip_gates: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Drain {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// Wait until no flow is left
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait for this long at most
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// What happens to flows that are still left then
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Then::Keep)]
    pub(crate) then: Then,
    /// The flows of this backend, whatever its colour. It gets no new ones if its weight is 0
    #[arg(long, value_name = "ADDR:PORT", add = ArgValueCandidates::new(complete::backends))]
    pub(crate) backend: Option<SocketAddr>,
}

#[cfg(feature = "serve")]
#[derive(Debug, ClapArgs)]
pub(crate) struct Drill {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// How long the other colour stays live; longer, if its gates are not through by then
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(crate) back_after: Duration,
    /// What happens to open flows, on both ways [default: as configured]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_switch: Option<OnSwitchName>,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// Go on even if no interface is attached
    #[arg(long)]
    pub(crate) force: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Then {
    /// They stay on their backend
    Keep,
    /// They end; TCP connections are reset at both ends
    Reset,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Confirm {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Split {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// How much of the new flows goes to green, in percent, with at most two decimals
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) green: u16,
    /// What the share divides: flows, or clients, so that a client meets one colour only [default: as before, if both colours get new
    /// flows already, else as configured]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) by: Option<ByName>,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// Change the share even if no interface is attached
    #[arg(long)]
    pub(crate) force: bool,
    /// Change nothing. Print what would happen to open flows, whether the backends are there, and what would be refused
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Let the split make another colour live although the deployment has gates, of which it asks none; the history says so
    #[arg(long)]
    pub(crate) skip_gates: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ByName {
    /// Each flow by itself
    Flow,
    /// All flows of a client, over all services of the deployment
    Client,
}

impl From<ByName> for DivideBy {
    fn from(name: ByName) -> Self {
        match name {
            ByName::Flow => Self::Flow,
            ByName::Client => Self::Client,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rollback {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// The colour to make live [default: the one that was live before the last change]
    #[arg(value_enum)]
    pub(crate) to: Option<ColourName>,
    #[command(flatten)]
    pub(crate) change: Change,
    /// Go to a colour that was not kept before although the deployment has gates, of which a rollback asks none; the history says so
    #[arg(long)]
    pub(crate) skip_gates: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Freeze {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// After this time the freeze ends by itself
    #[arg(long, value_name = "DURATION", value_parser = period, default_value = "10s")]
    pub(crate) max: Duration,
    /// Drop packets that would open a flow, rather than hold them
    #[arg(long)]
    pub(crate) drop: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Thaw {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// The options of a change of colour.
#[derive(Debug, ClapArgs)]
pub(crate) struct Change {
    /// What happens to open flows [default: as configured]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_switch: Option<OnSwitchName>,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// Switch even if no interface is attached
    #[arg(long)]
    pub(crate) force: bool,
    /// Change nothing. Print what would happen to open flows, whether the backends are there, and what would be refused
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColourName {
    Blue,
    Green,
}

impl From<ColourName> for Colour {
    fn from(name: ColourName) -> Self {
        match name {
            ColourName::Blue => Self::Blue,
            ColourName::Green => Self::Green,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnSwitchName {
    /// They stay on their backend until they end
    Drain,
    /// They end or move at once
    Cut,
}

impl From<OnSwitchName> for OnSwitch {
    fn from(name: OnSwitchName) -> Self {
        match name {
            OnSwitchName::Drain => Self::Drain,
            OnSwitchName::Cut => Self::Cut,
        }
    }
}
