//! The links that are pinned: where they stand, whether they still work, and their new programs.

use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink as AyaPinnedLink};
use aya_obj::generated::bpf_attach_type;

use super::{AttachedMode, Hook, tc};
use crate::{
    Error, Paths,
    loader::{INGRESS, Loaded, TC_EGRESS, TC_INGRESS},
    net::{self, Interface},
    pins,
    sys::{LinkInfo, link_info, tcx_links},
};

/// A pin in the directory of links.
#[derive(Clone, Debug)]
pub(crate) struct PinnedLink {
    pub(crate) hook: Hook,
    pin: PathBuf,
    /// Name of the interface when it was attached.
    interface: String,
    /// What the kernel says; `None` for clsact, which has no links.
    info: Option<LinkInfo>,
    /// Where it stands now, and what that is called now.
    now: Option<(u32, String)>,
}

/// All pins in the directory of links, alive or not.
pub(crate) fn pinned_links(paths: &Paths) -> Result<Vec<PinnedLink>, Error> {
    let pins = pins::entries(&paths.links())?;
    if pins.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = net::interfaces()?;
    let named: Vec<_> = pins
        .into_iter()
        .filter_map(|pin| pin.file_name().and_then(|name| name.to_str()).and_then(Hook::parse).map(|name| (pin, name)))
        .collect();
    let mut links = Vec::new();
    for (pin, (interface, hook)) in named.iter().cloned() {
        let info = if hook.is_clsact() { None } else { Some(link_info(&pin).map_err(Error::io("read link", &pin))?) };
        let now = match info {
            // In another network namespace the index means another interface. That does not carry this link; or if it
            // carries the same XDP program, then by a link of its own, whose pin bears its name.
            Some(info) => match interfaces.iter().find(|other| other.index == info.ifindex) {
                Some(other) => {
                    let is_its_own = |(_, name): &(PathBuf, (String, Hook))| *name == (other.name.clone(), hook);
                    let is_here = other.name == interface || !named.iter().any(is_its_own);
                    (is_here && carries(other, hook, info)?).then_some(other)
                }
                None => None,
            },
            None => interfaces.iter().find(|other| other.name == interface),
        };
        let now = now.map(|interface| (interface.index, interface.name.clone()));
        links.push(PinnedLink { hook, pin, interface, info, now });
    }
    Ok(links)
}

/// Whether a link may be one of this interface: for TCX, whether it is; for XDP, whether its program is there.
fn carries(interface: &Interface, hook: Hook, link: LinkInfo) -> Result<bool, Error> {
    let place = match hook {
        Hook::Xdp(_) => return Ok(interface.xdp.iter().any(|attachment| attachment.program_id == link.program_id)),
        Hook::TcEgress | Hook::ClsactEgress => bpf_attach_type::BPF_TCX_EGRESS,
        Hook::TcIngress | Hook::ClsactIngress => bpf_attach_type::BPF_TCX_INGRESS,
    };
    let links = tcx_links(interface.index, place).map_err(Error::io("ask for the TCX links of", &interface.name))?;
    Ok(links.contains(&link.id))
}

/// An interface that carries the programs now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// How it is attached.
    pub mode: AttachedMode,
}

/// The interfaces that carry an instance's programs, by name.
pub(crate) fn attached_interfaces(paths: &Paths) -> Result<Vec<AttachedInterface>, Error> {
    let alive = pinned_links(paths)?.into_iter().filter(PinnedLink::is_alive);
    let with_mode = alive.filter_map(|link| Some(AttachedInterface { mode: link.hook.mode()?, name: link.name() }));
    let mut interfaces: Vec<_> = with_mode.collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(interfaces)
}

/// Whether any interface carries an instance's programs: asks for less than [`attached_interfaces`].
pub(crate) fn is_attached(paths: &Paths) -> Result<bool, Error> {
    for pin in pins::entries(&paths.links())? {
        let name = pin.file_name().and_then(|name| name.to_str());
        let Some((_, hook)) = name.and_then(Hook::parse) else { continue };
        if hook.is_clsact() || link_info(&pin).map_err(Error::io("read link", &pin))?.ifindex != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

impl PinnedLink {
    /// Whether the interface is still there.
    pub(crate) fn is_alive(&self) -> bool {
        match self.info {
            // In another network namespace it has an index that means nothing here, but it works.
            Some(info) => info.ifindex != 0,
            None => self.now.is_some(),
        }
    }

    /// Whether it works, but somewhere else than on the interface that has the name of its pin.
    pub(crate) fn stands_in_the_way_of(&self, interface: &Interface) -> bool {
        self.interface == interface.name && self.is_alive() && !self.is_on(interface)
    }

    /// Whether it stands on this interface.
    pub(crate) fn is_on(&self, interface: &Interface) -> bool {
        self.ifindex() == Some(interface.index)
    }

    /// Whether it is meant by this name: where it stands, or where it stood if that is gone.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        self.name() == name
    }

    pub(crate) fn ifindex(&self) -> Option<u32> {
        self.now.as_ref().map(|(index, _)| *index)
    }

    pub(crate) fn program_id(&self) -> Option<u32> {
        self.info.map(|info| info.program_id)
    }

    fn name(&self) -> String {
        self.now.as_ref().map_or(&self.interface, |(_, name)| name).clone()
    }

    /// Gives the link the newly loaded program, without a gap.
    pub(crate) fn update(&self, loaded: &mut Loaded, paths: &Paths) -> Result<(), Error> {
        let result = match self.hook {
            Hook::ClsactIngress => {
                return tc::attach_clsact(paths, loaded.classifier(TC_INGRESS)?, &self.name(), self.hook);
            }
            Hook::ClsactEgress => {
                return tc::attach_clsact(paths, loaded.classifier(TC_EGRESS)?, &self.name(), self.hook);
            }
            Hook::Xdp(_) => {
                let program = loaded.xdp(INGRESS)?;
                self.open().and_then(|link| program.attach_to_link(link.try_into()?).map_err(Into::into)).map(drop)
            }
            Hook::TcIngress | Hook::TcEgress => {
                let name = if self.hook == Hook::TcIngress { TC_INGRESS } else { TC_EGRESS };
                let program = loaded.classifier(name)?;
                self.open().and_then(|link| program.attach_to_link(link.try_into()?).map_err(Into::into)).map(drop)
            }
        };
        let mode = self.hook.mode().unwrap_or(AttachedMode::Tc).name();
        let hint = "; nothing has been changed there. `bgctl detach` and attach it again if it stays so";
        result.map_err(|source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
            interface: self.name(),
            mode,
            hint,
            source,
        })
    }

    /// Takes the program off and removes the pin.
    pub(crate) fn remove(&self, _paths: &Paths) -> Result<(), Error> {
        if self.hook.is_clsact() && self.now.is_some() {
            tc::detach_clsact(&self.name(), self.hook)?;
        }
        // The pin is the link's last reference.
        pins::remove(&self.pin)
    }

    fn open(&self) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AyaPinnedLink::from_pin(&self.pin)?.into())
    }
}
