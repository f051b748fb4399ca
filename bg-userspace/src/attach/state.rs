//! The state of the interfaces that an instance was attached to: still attached, or lost.

use serde::Serialize;

use super::{AttachedMode, Hook, OtherProgram, PinnedLink, others::others, pinned::pinned_links};
use crate::{
    Error, Paths,
    net::{self, Interface},
};

/// Whether an interface still carries the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceState {
    /// It carries them.
    Attached,
    /// It exists, but does not carry all of them: somebody has detached a link, or the interface was created
    /// anew.
    Detached,
    /// It is not in this network namespace: it was deleted, or moved to another namespace.
    Gone,
}

impl InterfaceState {
    /// Its name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Gone => "gone",
        }
    }
}

/// An interface that an instance was attached to and not detached from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// The mode in which it was attached.
    pub mode: AttachedMode,
    /// Whether it still carries the programs.
    pub state: InterfaceState,
    /// What to do if it does not carry them.
    pub remedy: Option<String>,
    /// Programs of others that see packets before this instance's, and may keep packets from it.
    pub in_front: Vec<OtherProgram>,
}

impl AttachedInterface {
    /// A sentence about an interface that no longer carries the programs; `None` if it does.
    pub fn problem(&self) -> Option<String> {
        let Self { name, mode, state, .. } = self;
        let mode = mode.name();
        match state {
            InterfaceState::Attached => None,
            InterfaceState::Detached => Some(format!(
                "{name} ({mode}) has lost this instance's programs: somebody has detached them, or the interface was created anew. Its packets are not switched"
            )),
            InterfaceState::Gone => {
                Some(format!("{name} ({mode}) is gone: it was deleted, or moved to another network namespace"))
            }
        }
    }
}

/// The interfaces that an instance was attached to, by name.
pub(crate) fn attached_interfaces(paths: &Paths) -> Result<Vec<AttachedInterface>, Error> {
    let Seen { links, present, mut interfaces } = look(paths)?;
    for interface in interfaces.iter_mut().filter(|interface| interface.state == InterfaceState::Attached) {
        if let Some(present) = present.iter().find(|it| it.name == interface.name) {
            let others = others(paths, present, &links)?;
            interface.in_front = others.into_iter().filter(|other| other.in_front).collect();
        }
    }
    Ok(interfaces)
}

/// The interfaces that have lost the programs, where packets are not switched. Reads less than
/// [`attached_interfaces`].
pub(crate) fn lost_interfaces(paths: &Paths) -> Result<Vec<AttachedInterface>, Error> {
    let mut interfaces = look(paths)?.interfaces;
    interfaces.retain(|interface| interface.state != InterfaceState::Attached);
    Ok(interfaces)
}

struct Seen {
    links: Vec<PinnedLink>,
    present: Vec<Interface>,
    /// Without programs of others.
    interfaces: Vec<AttachedInterface>,
}

fn look(paths: &Paths) -> Result<Seen, Error> {
    let links = pinned_links(paths)?;
    // In another namespace, the same name means another interface.
    let is_here = links.iter().any(|link| link.is_in_this_namespace);
    let present = if is_here { net::interfaces()? } else { Vec::new() };
    let works = |link: &&PinnedLink| link.works() && link.is_here();
    let mut interfaces = Vec::new();
    for (link, mode) in links.iter().filter_map(|link| Some((link, link.hook.mode()?))) {
        let name = link.name();
        // The XDP modes use tc ingress too.
        let is_xdp = |link: &PinnedLink| matches!(link.hook, Hook::Xdp(_));
        if !is_xdp(link) && links.iter().any(|other| is_xdp(other) && other.name() == name) {
            continue;
        }
        let has =
            |hook: Hook| links.iter().filter(works).any(|other| other.hook.is_same_place(hook) && other.name() == name);
        let is_present = present.iter().any(|interface| interface.name == name);
        let state = if works(&link) && has(Hook::TcIngress) && has(Hook::TcEgress) {
            InterfaceState::Attached
        } else if is_present || !is_here {
            InterfaceState::Detached
        } else {
            InterfaceState::Gone
        };
        let attach = format!("`bgctl attach {name} --mode {}`", mode.name());
        let remedy = match state {
            InterfaceState::Attached => None,
            InterfaceState::Detached => Some(attach),
            InterfaceState::Gone => {
                Some(format!("{attach} when it is back, or `bgctl detach {name}` if it will not come back"))
            }
        };
        interfaces.push(AttachedInterface { name, mode, state, remedy, in_front: Vec::new() });
    }
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Seen { links, present, interfaces })
}
