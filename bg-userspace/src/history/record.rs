//! A record of the journal.

use bg_common::Cause;
use serde::{Deserialize, Serialize};

use super::{caller::Caller, chain::Link, moment::Moment, receipt::Receipt, who::Who};

/// A kind of change to a deployment or to an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Its configuration was applied.
    #[default]
    Apply,
    /// Another colour was made live.
    Switch,
    /// The colour that was live before was made live again.
    Rollback,
    /// Its last live colour was restored, for example after a reboot.
    Recovered,
    /// The share of new flows was changed.
    Split,
    /// A switch was confirmed.
    Confirm,
    /// New flows were held.
    Freeze,
    /// New flows went on, since a command or the end of the freeze has let them.
    Thaw,
    /// A scheduled switch has taken effect, or a ramp has ended.
    Activated,
    /// A switch was taken back, because nobody had confirmed it in time.
    Expired,
    /// A switch was taken back, because its new flows met a condition.
    Tripped,
    /// The programs were attached to interfaces.
    Attach,
    /// The programs were detached from interfaces.
    Detach,
}

impl Action {
    /// What the data path has done if it has made a generation for this reason.
    pub(crate) const fn of_data_path(cause: Cause) -> Option<Self> {
        match cause {
            Cause::Expired => Some(Self::Expired),
            Cause::Tripped => Some(Self::Tripped),
            Cause::Unknown | Cause::Switch | Cause::Rollback | Cause::Split | Cause::Cancelled => None,
        }
    }

    /// Its name in the journal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Switch => "switch",
            Self::Rollback => "rollback",
            Self::Recovered => "recovered",
            Self::Split => "split",
            Self::Confirm => "confirm",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Activated => "activated",
            Self::Expired => "expired",
            Self::Tripped => "tripped",
            Self::Attach => "attach",
            Self::Detach => "detach",
        }
    }
}

/// The reason in the first record of a life of the instance whose state directory held another state.
pub(crate) const OTHER_LIFE: &str = "the state directory held the state of another instance, or of an earlier life of this one; the running state counts";

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The time, in RFC 3339 format in the file.
    pub time: jiff::Timestamp,
    /// Name of the deployment; empty if the change concerns the whole instance.
    #[serde(default)]
    pub deployment: String,
    /// Names of the interfaces that were attached or detached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// The kind of change.
    pub action: Action,
    /// Its state before; `None` if it did not exist.
    pub from: Option<Moment>,
    /// Its state after; `None` if it was removed.
    pub to: Option<Moment>,
    /// Who made the change.
    pub who: Who,
    /// The reason, if one was given.
    pub reason: Option<String>,
    /// The command line of the process.
    pub command: String,
    /// Whether a reboot takes the change back, as long as it is not confirmed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
    /// What a switch has done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
    /// Its place in the chain. `None` until it is written, and for records of versions without a chain.
    #[serde(flatten)]
    pub link: Option<Link>,
}

impl Record {
    /// Whether generations before it are of another life of the instance, or of an earlier deployment of this name.
    pub(crate) fn begins_life(&self) -> bool {
        self.from.is_none() || (self.action == Action::Recovered && self.reason.as_deref() == Some(OTHER_LIFE))
    }

    /// Whether it is about a change of the live word, or of the time when that changes.
    pub(super) fn is_of_word(&self) -> bool {
        match self.action {
            Action::Switch
            | Action::Rollback
            | Action::Split
            | Action::Confirm
            | Action::Activated
            | Action::Expired
            | Action::Tripped => true,
            // Such a record may come after that of a later change.
            Action::Recovered => !self.begins_life() && self.to.is_some_and(|to| self.covers(to.generation)),
            Action::Apply | Action::Freeze | Action::Thaw | Action::Attach | Action::Detach => false,
        }
    }

    /// The state before, in the same life.
    pub(crate) fn before(&self) -> Option<Moment> {
        self.from.filter(|_| !self.begins_life())
    }

    /// Whether it tells how a generation was made, in the same life.
    pub(crate) fn covers(&self, generation: u32) -> bool {
        let Some(to) = self.to else { return false };
        let is_later = self.before().map_or(to.generation <= generation, |before| before.generation < generation);
        is_later && generation <= to.generation
    }

    /// A record of a change that this process makes now, for the caller of this thread if there is one, without the change.
    pub(crate) fn of_this_process() -> Self {
        let words = || std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
        let of_process = || Caller { who: Who::of_this_process(), command: words().join(" ") };
        let Caller { who, command } = Caller::present().unwrap_or_else(of_process);
        Self {
            time: jiff::Timestamp::now(),
            deployment: String::new(),
            interfaces: Vec::new(),
            action: Action::Recovered,
            from: None,
            to: None,
            who,
            reason: None,
            command,
            unconfirmed: false,
            receipt: None,
            link: None,
        }
    }
}
