//! Attaching an instance's programs to interfaces, and detaching them.
//!
//! Mode `tc` attaches `tc_ingress` and `tc_egress`. The XDP modes also attach `ingress`, which runs first, redirects
//! the packets that it can, and leaves the others to `tc_ingress`. All links are pinned, so that no
//! process has to keep running. If the interface is attached already, the program of the link is replaced in place.

mod detach;
mod egress;
mod held;
mod hook;
mod mode;
mod other_program;
mod others;
mod owner;
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
pub(crate) use held::is_attached;
pub(crate) use hook::Hook;
pub use mode::{AttachMode, AttachedMode};
pub use other_program::OtherProgram;
pub(crate) use others::others;
use pinned::mode_of;
pub(crate) use pinned::{PinnedLink, pinned_links};
use plan::{Plan, plan};
pub use state::{AttachedInterface, InterfaceState};
pub(crate) use state::{attached_interfaces, lost_interfaces};

use crate::{
    Error, Paths,
    doctor::preconditions,
    history::Action,
    loader::{Loaded, TC_EGRESS, TC_INGRESS, WantedSizes},
    lock::Lock,
    maps::typed,
    net::{self, ARPHRD_ETHER, ARPHRD_LOOPBACK, Interface},
    pins::{self, PinRoot},
    state::{Change, Pending, Witness},
    tunnels,
};

/// Options of [`attach`].
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// The mode.
    pub mode: AttachMode,
    /// Room for this many IPv4 and this many IPv6 flows. `None` is the present room, or
    /// [`DEFAULT_FLOWS`](crate::DEFAULT_FLOWS) for a new instance.
    pub flows: Option<u32>,
    /// Room for this many services. `None` is the present room, or
    /// [`DEFAULT_SERVICES`](crate::DEFAULT_SERVICES) for a new instance.
    pub services: Option<u32>,
    /// Room for this many backends, of all services and both colours. `None` is the present room, or
    /// [`DEFAULT_BACKENDS`](crate::DEFAULT_BACKENDS) for a new instance.
    pub backends: Option<u32>,
    /// A pinned XDP program that gets the packets that are not for a VIP. `None` keeps the present one.
    pub next: Option<PathBuf>,
    /// Attach even behind another instance of bgctl, or if the pins vanish with the mount namespace of this process.
    pub force: bool,
    /// How long to wait for another bgctl that works on the instance. `None` is [`PATIENCE`].
    pub wait: Option<Duration>,
}

/// The default time that [`attach`] and [`detach`] wait for another bgctl that works on the instance. An attach takes half a second,
/// and at boot there may be one for each interface.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An interface that carries the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// The mode in which it is attached.
    pub mode: AttachedMode,
    /// Whether it was attached before, and its programs were replaced in place.
    pub updated: bool,
    /// Programs of others that see packets before this instance's, and may keep packets from it.
    pub in_front: Vec<OtherProgram>,
}

/// Loads the programs and attaches them to interfaces. An instance that exists keeps its maps.
///
/// All interfaces that the instance is attached to get the new programs too. If one of the interfaces cannot
/// be attached, none is. If the call is killed at any instant, calling it again completes it.
pub fn attach(paths: &Paths, interfaces: &[String], options: &AttachOptions) -> Result<Vec<Attached>, Error> {
    let wanted: Vec<_> = interfaces.iter().map(|name| (name.clone(), options.mode)).collect();
    attach_in_modes(paths, &wanted, options)
}

/// Like [`attach`], with a mode for each interface. The mode in `options` is ignored. If an interface is named twice,
/// its first mode counts.
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
        // The lock has created the directory. It can be removed only if it is empty.
        let _ = std::fs::remove_dir(&paths.pin_root);
    }
    let (attached, pending) = attached?;
    let names = attached.iter().map(|interface| interface.name.clone()).collect();
    Witness::of(paths).record(Action::Attach, names, "the attach is done", &pending)?;
    Ok(attached)
}

fn attach_locked(
    paths: &Paths,
    wanted: &[(Interface, AttachMode)],
    options: &AttachOptions,
    next: Option<&mut Xdp>,
) -> Result<(Vec<Attached>, Pending), Error> {
    let lock = Lock::attach(paths, options.wait.unwrap_or(PATIENCE))?;
    // Refuses pins of another version or another network namespace before anything is changed.
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
    let names = interfaces.iter().map(|interface| interface.name.clone()).collect();
    let change = Change { action: Action::Attach, interfaces: names, ..Change::default() };
    let pending = Pending::begin(paths, &lock, &[change]);
    let attached = load_and_attach(paths, &interfaces, &plans, &ours, options, next);
    if attached.is_err() {
        pending.cancel();
        if is_new && !is_attached(paths)? {
            // An instance that is not attached would only take memory.
            pins::remove_all(paths)?;
        }
    }
    // Routes and addresses may have come since the apply. What is not known is no failure of the attach, and `status` tells.
    let _ = tunnels::learn(paths, &lock);
    Ok((attached?, pending))
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
    // If an interface changes from XDP to tc, XDP is detached last, so that packets are switched all the time.
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
    // Their programs have changed since they were read.
    let interfaces = net::interfaces()?;
    for attached in &mut attached {
        let Some(interface) = interfaces.iter().find(|interface| interface.name == attached.name) else { continue };
        attached.in_front = others(paths, interface, &links)?.into_iter().filter(|other| other.in_front).collect();
    }
    Ok(attached)
}

/// Detaches what this call has attached before it failed: all links that are not among `before`.
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
        // `status` reports what could not be detached. The first error is the one to fix.
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
            "the kernel does not allow calls to it ({error}); it must be an XDP program with the expected attach \
             type BPF_XDP, loaded without fragment support, as bgctl's own"
        ),
    };
    let fd = next.fd().map_err(|error| refused(error.to_string()))?;
    map.set(0, fd, 0)
        .map_err(|error| refused(std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)))
}
