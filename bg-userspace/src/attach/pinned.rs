//! The pinned links: where they are attached, whether they still work, and how their programs are replaced.

use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink as AyaPinnedLink};
use aya_obj::generated::bpf_attach_type;

use super::{
    held::{Held, held},
    hook::Hook,
    mode::AttachedMode,
    tc,
};
use crate::{
    Error, Paths,
    loader::{INGRESS, Loaded, TC_EGRESS, TC_INGRESS},
    net::{self, Interface},
    pins,
    sys::{self, LinkInfo, tcx_programs},
};

/// A pin in the directory of links.
#[derive(Clone, Debug)]
pub(crate) struct PinnedLink {
    pub(crate) hook: Hook,
    /// Whether the caller is in the instance's network namespace. In another one, the interface is unknown.
    pub(crate) is_in_this_namespace: bool,
    pin: PathBuf,
    /// The name of the interface when it was attached.
    interface: String,
    held: Held,
    /// The index and the present name of the interface that carries it now.
    now: Option<(u32, String)>,
}

/// All pins in the directory of links, whether they work or not.
pub(crate) fn pinned_links(paths: &Paths) -> Result<Vec<PinnedLink>, Error> {
    let pins = pins::entries(&paths.links())?;
    if pins.is_empty() {
        return Ok(Vec::new());
    }
    let is_here = pins::is_in_this_namespace(paths)?;
    let interfaces = if is_here { net::interfaces()? } else { Vec::new() };
    let named: Vec<_> = pins
        .into_iter()
        .filter_map(|pin| pin.file_name().and_then(|name| name.to_str()).and_then(Hook::parse).map(|name| (pin, name)))
        .collect();
    let mut links = Vec::new();
    for (pin, (interface, hook)) in named.iter().cloned() {
        let Some(held) = held(&pin, hook)? else { continue };
        let now = match held {
            // After the interface was moved to another network namespace, the index means another interface. That interface does not carry
            // this link. If it carries the same XDP program, then by its own link, whose pin has its name.
            Held::Link(info) => match interfaces.iter().find(|other| other.index == info.ifindex) {
                Some(other) => {
                    let is_its_own = |(_, name): &(PathBuf, (String, Hook))| *name == (other.name.clone(), hook);
                    let is_here = other.name == interface || !named.iter().any(is_its_own);
                    (is_here && carries(other, hook, info)?).then_some(other)
                }
                None => None,
            },
            Held::Program(id) => interfaces
                .iter()
                .find(|other| other.name == interface)
                .filter(|other| tc::carries(other.index, hook, id)),
        };
        let now = now.map(|interface| (interface.index, interface.name.clone()));
        links.push(PinnedLink { hook, is_in_this_namespace: is_here, pin, interface, held, now });
    }
    Ok(links)
}

/// Whether a link may be attached to this interface. For TCX this is certain; for XDP, the interface carries the link's program.
fn carries(interface: &Interface, hook: Hook, link: LinkInfo) -> Result<bool, Error> {
    let place = match hook {
        Hook::Xdp(_) => return Ok(interface.xdp.iter().any(|attachment| attachment.program_id == link.program_id)),
        Hook::TcEgress | Hook::ClsactEgress => bpf_attach_type::BPF_TCX_EGRESS,
        Hook::TcIngress | Hook::ClsactIngress => bpf_attach_type::BPF_TCX_INGRESS,
    };
    let programs = tcx_programs(interface.index, place);
    let programs = programs.map_err(Error::io("ask for the TCX programs of", &interface.name))?;
    Ok(programs.iter().any(|program| program.link_id == Some(link.id)))
}

/// The mode of an interface that carries these links: that of its XDP link, if there is one.
pub(crate) fn mode_of<'a>(links: impl IntoIterator<Item = &'a PinnedLink>) -> Option<AttachedMode> {
    links.into_iter().filter_map(|link| link.hook.mode()).min_by_key(|mode| *mode == AttachedMode::Tc)
}

impl PinnedLink {
    /// Whether it works, in this or in another network namespace.
    pub(crate) fn works(&self) -> bool {
        match self.held {
            // Zero if the interface is gone or the link was detached.
            Held::Link(info) => info.ifindex != 0,
            // An interface in another namespace cannot be examined.
            Held::Program(_) => self.now.is_some() || !self.is_in_this_namespace,
        }
    }

    /// Whether it is attached to an interface of the instance's namespace, as far as the caller can tell.
    pub(crate) fn is_here(&self) -> bool {
        self.now.is_some() || !self.is_in_this_namespace
    }

    /// Whether it works, but on another interface than the one that has the name of its pin.
    pub(crate) fn stands_in_the_way_of(&self, interface: &Interface) -> bool {
        self.interface == interface.name && self.works() && !self.is_on(interface)
    }

    /// Whether it is attached to this interface.
    pub(crate) fn is_on(&self, interface: &Interface) -> bool {
        self.ifindex() == Some(interface.index)
    }

    /// Whether it is the remnant of a link on an interface of this name.
    pub(crate) fn is_remnant_of(&self, interface: &Interface) -> bool {
        self.interface == interface.name && !self.works()
    }

    /// Whether this is the name of its interface, or of its former interface if that is gone.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        self.name() == name
    }

    /// Whether both are the same attachment, read at two moments.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self.held, other.held) {
            (Held::Link(link), Held::Link(other)) => link.id == other.id,
            (Held::Program(_), Held::Program(_)) => self.pin == other.pin && self.works() == other.works(),
            _ => false,
        }
    }

    pub(crate) fn ifindex(&self) -> Option<u32> {
        self.now.as_ref().map(|(index, _)| *index)
    }

    pub(crate) fn program_id(&self) -> Option<u32> {
        Some(match self.held {
            Held::Link(info) => info.program_id,
            Held::Program(id) => id,
        })
    }

    /// The id of the link in the kernel; `None` for clsact.
    pub(crate) fn link_id(&self) -> Option<u32> {
        match self.held {
            Held::Link(info) => Some(info.id),
            Held::Program(_) => None,
        }
    }

    pub(crate) fn name(&self) -> String {
        self.now.as_ref().map_or(&self.interface, |(_, name)| name).clone()
    }

    /// Replaces the link's program by the newly loaded one, without a gap.
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
        let hint = "; nothing has been changed there. If this persists, run `bgctl detach` for it and attach it again";
        result.map_err(|source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
            interface: self.name(),
            mode,
            hint,
            source,
        })
    }

    /// Detaches the program and removes the pin.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        if self.hook.is_clsact() && self.now.is_some() {
            tc::detach_clsact(&self.name(), self.hook)?;
        }
        if matches!(self.held, Held::Link(_)) {
            // Before the pin is removed, so that the next attach finds the hook free.
            sys::detach_link(&self.pin).map_err(Error::io("detach", &self.pin))?;
        }
        pins::remove(&self.pin)
    }

    fn open(&self) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AyaPinnedLink::from_pin(&self.pin)?.into())
    }
}
