//! Attaching an instance's programs to interfaces, and taking them off again.
//!
//! The tc mode puts `tc_ingress` and `tc_egress` on the interface. XDP modes put `ingress` before them, which redirects
//! what it can and leaves the rest to `tc_ingress`. All are links that are pinned, so that no
//! process needs to live; where the interface has ours already, the link is given the new program in place.

mod detach;
mod egress;
mod hook;
mod others;
mod pinned;
mod plan;
mod state;
mod tc;
mod xdp;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    maps::{MapData, ProgramArray},
    programs::{Xdp, xdp::XdpMode},
};
use aya_obj::programs::XdpAttachType;
use serde::Serialize;

pub use detach::{Detached, Target, detach, detach_within};
pub(crate) use egress::{PortChange, changed_ports};
pub(crate) use hook::Hook;
pub use others::OtherProgram;
pub(crate) use others::others;
use pinned::mode_of;
pub(crate) use pinned::{PinnedLink, is_attached, pinned_links};
use plan::{Plan, plan};
pub use state::{AttachedInterface, InterfaceState};
pub(crate) use state::{attached_interfaces, lost_interfaces};

use crate::{
    Error, Paths,
    doctor::preconditions,
    history,
    loader::{Loaded, TC_EGRESS, TC_INGRESS, WantedSizes},
    lock::Lock,
    maps::typed,
    net::{self, ARPHRD_ETHER, ARPHRD_LOOPBACK, Interface},
    pins::{self, PinRoot},
    state::Witness,
};

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// As it is, if it is attached; else native XDP on hardware whose driver has it, tc elsewhere.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP in the stack, on any interface.
    Generic,
    /// tc, both directions: TCX where the kernel has it (6.6), else clsact.
    Tc,
}

/// How an interface is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachedMode {
    /// XDP in the driver.
    Native,
    /// XDP in the stack.
    Generic,
    /// tc, both directions.
    Tc,
}

impl AttachedMode {
    /// As the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// Options of [`attach`].
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// How.
    pub mode: AttachMode,
    /// Flows that there is room for, IPv4 and IPv6 each; `None` is what the instance has, or
    /// [`DEFAULT_FLOWS`](crate::DEFAULT_FLOWS) for a new one.
    pub flows: Option<u32>,
    /// Services that there is room for; `None` is what the instance has, or
    /// [`DEFAULT_SERVICES`](crate::DEFAULT_SERVICES) for a new one.
    pub services: Option<u32>,
    /// Backends that there is room for, of all services and both colours; `None` is what the instance has, or
    /// [`DEFAULT_BACKENDS`](crate::DEFAULT_BACKENDS) for a new one.
    pub backends: Option<u32>,
    /// A pinned XDP program that gets what is not for a VIP; `None` leaves it as it is.
    pub next: Option<PathBuf>,
    /// Attach behind another instance of bgctl, and where the pins are in a mount namespace that may end before them.
    pub force: bool,
    /// How long to wait for another bgctl that works on the instance; `None` is [`PATIENCE`].
    pub wait: Option<Duration>,
}

/// How long [`attach`] and [`detach`] wait for another bgctl that works on the instance. An attach takes half a second,
/// and at boot there may be one for each interface.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An interface that carries the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// How it is attached.
    pub mode: AttachedMode,
    /// Whether it carried them before, and has them newly now without a gap.
    pub updated: bool,
    /// Programs of others that packets meet before this instance's, and that may keep packets from it.
    pub in_front: Vec<OtherProgram>,
}

/// Loads the programs if there is no instance yet, else anew over its maps, and attaches them.
///
/// Every interface that the instance was attached to before gets the new programs too. If one of the interfaces cannot
/// be attached to, none is. A call that was killed at any instant is completed by the same call.
pub fn attach(paths: &Paths, interfaces: &[String], options: &AttachOptions) -> Result<Vec<Attached>, Error> {
    let wanted: Vec<_> = interfaces.iter().map(|name| (name.clone(), options.mode)).collect();
    attach_in_modes(paths, &wanted, options)
}

/// The same with a mode for each interface; the one in `options` is not looked at. For an interface that is named twice,
/// the first mode counts.
pub fn attach_in_modes(
    paths: &Paths,
    interfaces: &[(String, AttachMode)],
    options: &AttachOptions,
) -> Result<Vec<Attached>, Error> {
    preconditions::prepare(&paths.pin_root, options.force)?;
    let interfaces = named(interfaces)?;
    let mut next = options.next.as_deref().map(open_next).transpose()?;
    let attached = attach_locked(paths, &interfaces, options, next.as_mut());
    if attached.is_err() {
        // The lock has made the directory. It goes only if it is empty.
        let _ = std::fs::remove_dir(&paths.pin_root);
    }
    let attached = attached?;
    let names = attached.iter().map(|interface| interface.name.clone()).collect();
    Witness::of(paths).record(history::Action::Attach, names, "the attach is done")?;
    Ok(attached)
}

fn attach_locked(
    paths: &Paths,
    wanted: &[(Interface, AttachMode)],
    options: &AttachOptions,
    next: Option<&mut Xdp>,
) -> Result<Vec<Attached>, Error> {
    let _lock = Lock::attach(paths, options.wait.unwrap_or(PATIENCE))?;
    // Refuses other versions' pins, and those of another network namespace, before anything is touched.
    let is_new = match PinRoot::inspect(paths)? {
        PinRoot::Instance { meta, .. } => {
            pins::check_namespace(paths, &meta)?;
            false
        }
        PinRoot::Empty | PinRoot::Unfinished => true,
    };
    let ours = pinned_links(paths)?;
    let plan = |(interface, mode): &(Interface, AttachMode)| plan(paths, interface, *mode, options.force, &ours);
    let plans: Vec<Plan> = wanted.iter().map(plan).collect::<Result<_, _>>()?;

    let interfaces: Vec<&Interface> = wanted.iter().map(|(interface, _)| interface).collect();
    let attached = load_and_attach(paths, &interfaces, &plans, &ours, options, next);
    if attached.is_err() && is_new && !is_attached(paths)? {
        // An instance that is attached nowhere would only hold memory.
        pins::remove_all(paths)?;
    }
    attached
}

fn load_and_attach(
    paths: &Paths,
    interfaces: &[&Interface],
    plans: &[Plan],
    ours: &[PinnedLink],
    options: &AttachOptions,
    next: Option<&mut Xdp>,
) -> Result<Vec<Attached>, Error> {
    let AttachOptions { flows, services, backends, .. } = *options;
    let mut loaded = Loaded::load(paths, &WantedSizes { flows, services, backends })?;
    if let (Some(next), Some(path)) = (next, &options.next) {
        set_next(paths, next, path)?;
    }
    loaded.pin_programs(paths)?;
    for link in ours.iter().filter(|link| link.works()) {
        link.update(&mut loaded, paths)?;
    }
    let pairs = || interfaces.iter().zip(plans);
    let attached = pairs().map(|(interface, plan)| attach_one(paths, &mut loaded, interface, plan, ours)).collect();
    let mut attached: Vec<Attached> = match attached {
        Ok(attached) => attached,
        Err(error) => return Err(undo(paths, ours, error)),
    };
    // XDP of an interface that becomes tc goes last, so that packets are switched all the while.
    for (interface, attached) in interfaces.iter().zip(&attached) {
        for link in ours.iter().filter(|link| link.is_on(interface) || link.is_remnant_of(interface)) {
            if matches!(link.hook, Hook::Xdp(other) if other != attached.mode) {
                egress::forget(paths, interface.index)?;
                link.remove()?;
            }
        }
    }
    let links = pinned_links(paths)?;
    egress::refresh(paths, &links)?;
    // Their programs have changed since they were looked at.
    let interfaces = net::interfaces()?;
    for attached in &mut attached {
        let Some(interface) = interfaces.iter().find(|interface| interface.name == attached.name) else { continue };
        attached.in_front = others(paths, interface, &links)?.into_iter().filter(|other| other.in_front).collect();
    }
    Ok(attached)
}

/// Takes off what this call has attached before it failed: all that is not among `before`.
fn undo(paths: &Paths, before: &[PinnedLink], error: Error) -> Error {
    let undone = pinned_links(paths).and_then(|links| {
        let new: Vec<_> = links.iter().filter(|link| !before.iter().any(|old| old.is_same(link))).collect();
        new.iter().try_for_each(|link| link.remove())?;
        let mut names: Vec<_> = new.iter().filter(|link| link.hook.mode().is_some()).map(|link| link.name()).collect();
        names.dedup();
        Ok(names)
    });
    match undone {
        Ok(names) if names.is_empty() => error,
        Ok(names) => Error::Undone { interfaces: names, source: Box::new(error) },
        // What could not be taken off is told by `status`; the first error is what has to be mended.
        Err(_) => error,
    }
}

fn attach_one(
    paths: &Paths,
    loaded: &mut Loaded,
    interface: &Interface,
    plan: &Plan,
    ours: &[PinnedLink],
) -> Result<Attached, Error> {
    let present = |hook: Hook| ours.iter().any(|link| link.hook.is_same_place(hook) && link.is_on(interface));
    let mut mode = plan.mode;
    let updated = mode_of(ours.iter().filter(|link| link.is_on(interface))) == Some(mode);
    if !updated && mode != AttachedMode::Tc {
        let xdp_mode = if mode == AttachedMode::Native { XdpMode::Driver } else { XdpMode::Skb };
        match xdp::attach(paths, loaded, interface, mode, xdp_mode) {
            Err(_) if plan.or_tc => mode = AttachedMode::Tc,
            result => result?,
        }
    }
    if !present(Hook::TcIngress) {
        tc::attach(paths, loaded.classifier(TC_INGRESS)?, interface, Hook::TcIngress)?;
    }
    if !present(Hook::TcEgress) {
        tc::attach(paths, loaded.classifier(TC_EGRESS)?, interface, Hook::TcEgress)?;
    }
    Ok(Attached { name: interface.name.clone(), mode, updated, in_front: Vec::new() })
}

/// The interfaces with these names, each once.
fn named(names: &[(String, AttachMode)]) -> Result<Vec<(Interface, AttachMode)>, Error> {
    let mut interfaces: Vec<(Interface, AttachMode)> = Vec::new();
    for (name, mode) in names {
        let interface = net::interface(name)?;
        match interface.arphrd {
            ARPHRD_ETHER | ARPHRD_LOOPBACK => {}
            arphrd => return Err(Error::NotEthernet { interface: interface.name, arphrd }),
        }
        if !interfaces.iter().any(|(other, _)| other.index == interface.index) {
            interfaces.push((interface, *mode));
        }
    }
    Ok(interfaces)
}

fn open_next(path: &Path) -> Result<Xdp, Error> {
    Xdp::from_pin(path, XdpAttachType::Interface)
        .map_err(|error| Error::Next { path: path.to_owned(), detail: format!("no pinned program: {error}") })
}

fn set_next(paths: &Paths, next: &mut Xdp, path: &Path) -> Result<(), Error> {
    let mut map: ProgramArray<MapData> = typed(paths, "next")?;
    let refused = |error: String| Error::Next {
        path: path.to_owned(),
        detail: format!(
            "the kernel does not let it be called ({error}); it must be an XDP program with the expected attach \
             type BPF_XDP, loaded with or without fragment support as bgctl's own (without)"
        ),
    };
    let fd = next.fd().map_err(|error| refused(error.to_string()))?;
    map.set(0, fd, 0)
        .map_err(|error| refused(std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)))
}
