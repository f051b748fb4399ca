//! How the interfaces stand that an instance was attached to: attached still, or lost.

use serde::Serialize;

use super::{AttachedMode, Hook, OtherProgram, PinnedLink, others::others, pinned::pinned_links};
use crate::{Error, Paths, net};

/// Whether an interface still carries the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceState {
    /// It does.
    Attached,
    /// It is there and does not, or not all of them: a link was detached by somebody else, or the interface was made
    /// anew.
    Detached,
    /// It is not in this network namespace: it was deleted, or moved to another one.
    Gone,
}

impl InterfaceState {
    /// As `status` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Gone => "gone",
        }
    }
}

/// An interface that an instance was attached to, and has not been detached from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// How it was attached.
    pub mode: AttachedMode,
    /// Whether it still carries the programs.
    pub state: InterfaceState,
    /// What to do if it does not.
    pub remedy: Option<String>,
    /// Programs of others that packets meet before this instance's, and that may keep packets from it.
    pub in_front: Vec<OtherProgram>,
}

impl AttachedInterface {
    /// A sentence for an interface that does not carry the programs any more; `None` if it does.
    pub fn problem(&self) -> Option<String> {
        let Self { name, mode, state, .. } = self;
        let mode = mode.name();
        match state {
            InterfaceState::Attached => None,
            InterfaceState::Detached => Some(format!(
                "{name} ({mode}) has lost this instance's programs: somebody has detached them, or it was made anew. Its packets are not switched"
            )),
            InterfaceState::Gone => {
                Some(format!("{name} ({mode}) is gone: it was deleted, or moved to another network namespace"))
            }
        }
    }
}

/// The interfaces that an instance was attached to, by name.
pub(crate) fn attached_interfaces(paths: &Paths) -> Result<Vec<AttachedInterface>, Error> {
    let links = pinned_links(paths)?;
    let present = if links.is_empty() { Vec::new() } else { net::interfaces()? };
    let mut interfaces = Vec::new();
    for (link, mode) in links.iter().filter_map(|link| Some((link, link.hook.mode()?))) {
        let name = link.name();
        let works = |link: &&PinnedLink| link.works() && link.is_here();
        let has_egress =
            links.iter().filter(works).any(|other| other.hook.is_same_place(Hook::TcEgress) && other.name() == name);
        let interface = present.iter().find(|interface| interface.name == name);
        let state = match interface {
            _ if works(&link) && has_egress => InterfaceState::Attached,
            // In another namespace an interface of this name is another one.
            Some(_) if link.is_in_this_namespace => InterfaceState::Detached,
            None if link.is_in_this_namespace => InterfaceState::Gone,
            _ => InterfaceState::Detached,
        };
        let remedy = match state {
            InterfaceState::Attached => None,
            InterfaceState::Detached => Some(format!("bgctl attach {name} --mode {}", mode.name())),
            InterfaceState::Gone => Some(format!(
                "bgctl attach {name} --mode {} when it is back, bgctl detach {name} if it will not be",
                mode.name()
            )),
        };
        let in_front = match interface {
            Some(interface) if link.is_on(interface) => {
                others(paths, interface, &links)?.into_iter().filter(|other| other.in_front).collect()
            }
            _ => Vec::new(),
        };
        interfaces.push(AttachedInterface { name, mode, state, remedy, in_front });
    }
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(interfaces)
}

/// Those that have lost the programs: packets of their services pass unswitched there.
pub(crate) fn lost_interfaces(paths: &Paths) -> Result<Vec<AttachedInterface>, Error> {
    let mut interfaces = attached_interfaces(paths)?;
    interfaces.retain(|interface| interface.state != InterfaceState::Attached);
    Ok(interfaces)
}
