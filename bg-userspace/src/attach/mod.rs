//! Attaching an instance's programs to interfaces, and taking them off again.
//!
//! XDP modes put `ingress` on the interface, and `tc_egress` as well, where replies of the host's own stack
//! leave. The tc mode puts `tc_ingress` and `tc_egress` on it. All are links that are pinned, so that no
//! process needs to live; where the interface has ours already, the link is given the new program in place.

mod egress;
mod hook;
mod pinned;
mod tc;
mod xdp;

use std::path::{Path, PathBuf};

use aya::{
    maps::{MapData, ProgramArray},
    programs::{Xdp, xdp::XdpMode},
};
use aya_obj::programs::XdpAttachType;
use rustix::mount::MountFlags;
use serde::Serialize;

pub(crate) use hook::Hook;
pub use pinned::AttachedInterface;
pub(crate) use pinned::{PinnedLink, attached_interfaces, is_attached, pinned_links};

use crate::{
    Error, Paths,
    doctor::preconditions,
    loader::{Loaded, TC_EGRESS, TC_INGRESS},
    lock::Lock,
    maps::typed,
    net::{self, ARPHRD_ETHER, ARPHRD_LOOPBACK, Interface},
    pins::{self, PinRoot},
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
    /// Flows that the tables have room for; `None` is what the instance has, or
    /// [`DEFAULT_FLOWS`](crate::DEFAULT_FLOWS) for a new one.
    pub flows: Option<u32>,
    /// A pinned XDP program that gets what is not for a VIP; `None` leaves it as it is.
    pub next: Option<PathBuf>,
}

/// An interface that carries the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// How it is attached.
    pub mode: AttachedMode,
    /// Whether it carried them before, and has them newly now without a gap.
    pub updated: bool,
}

/// What [`detach`] takes the programs off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These interfaces; the instance stays.
    Interfaces(Vec<String>),
    /// All interfaces; every pin is removed, and with the pins the instance.
    All,
}

/// Loads the programs if there is no instance yet, else anew over its maps, and attaches them.
///
/// Every interface that the instance was attached to before gets the new programs too. A call that was
/// killed at any instant is completed by the same call.
pub fn attach(paths: &Paths, interfaces: &[String], options: &AttachOptions) -> Result<Vec<Attached>, Error> {
    check_machine(&paths.pin_root)?;
    let interfaces: Vec<Interface> = interfaces.iter().map(|name| ethernet(name)).collect::<Result<_, _>>()?;
    let mut next = options.next.as_deref().map(open_next).transpose()?;
    let attached = attach_locked(paths, &interfaces, options, next.as_mut());
    if attached.is_err() {
        // The lock has made the directory. It goes only if it is empty.
        let _ = std::fs::remove_dir(&paths.pin_root);
    }
    attached
}

fn attach_locked(
    paths: &Paths,
    interfaces: &[Interface],
    options: &AttachOptions,
    next: Option<&mut Xdp>,
) -> Result<Vec<Attached>, Error> {
    let _lock = Lock::attach(paths)?;
    // Refuses other versions' pins before anything is touched.
    let is_new = !matches!(PinRoot::inspect(paths)?, PinRoot::Instance { .. });
    let ours = pinned_links(paths)?;
    let modes: Vec<Plan> =
        interfaces.iter().map(|interface| plan(interface, options.mode, &ours)).collect::<Result<_, _>>()?;

    let attached = load_and_attach(paths, interfaces, modes, &ours, options, next);
    if attached.is_err() && is_new && !is_attached(paths)? {
        // An instance that is attached nowhere would only hold memory.
        pins::remove_all(paths)?;
    }
    attached
}

fn load_and_attach(
    paths: &Paths,
    interfaces: &[Interface],
    modes: Vec<Plan>,
    ours: &[PinnedLink],
    options: &AttachOptions,
    next: Option<&mut Xdp>,
) -> Result<Vec<Attached>, Error> {
    let mut loaded = Loaded::load(paths, options.flows)?;
    if let (Some(next), Some(path)) = (next, &options.next) {
        set_next(paths, next, path)?;
    }
    loaded.pin_programs(paths)?;
    for link in ours.iter().filter(|link| link.is_alive()) {
        link.update(&mut loaded, paths)?;
    }
    let mut attached = Vec::new();
    for (interface, plan) in interfaces.iter().zip(modes) {
        attached.push(attach_one(paths, &mut loaded, interface, plan, ours)?);
    }
    egress::refresh(paths, &pinned_links(paths)?)?;
    Ok(attached)
}

/// Takes the programs off interfaces. With [`Target::All`] every pin is removed as well; an instance of
/// another ABI version, or a damaged one, can be removed so.
pub fn detach(paths: &Paths, target: &Target) -> Result<(), Error> {
    let _lock = Lock::apply(paths)?;
    let links = pinned_links(paths)?;
    match target {
        Target::All => {
            for link in &links {
                link.remove(paths)?;
            }
            pins::remove_all(paths)
        }
        Target::Interfaces(names) => {
            // All names are looked at before anything is done.
            if let Some(name) = names.iter().find(|name| !links.iter().any(|link| link.is_of(name))) {
                let attached = attached_interfaces(paths)?.into_iter().map(|interface| interface.name).collect();
                return Err(Error::NotAttached { interface: name.clone(), attached });
            }
            for link in links.iter().filter(|link| names.iter().any(|name| link.is_of(name))) {
                if let Some(ifindex) = link.ifindex() {
                    egress::forget(paths, ifindex)?;
                }
                link.remove(paths)?;
            }
            Ok(())
        }
    }
}

/// What is to be done with one interface.
struct Plan {
    mode: AttachedMode,
    /// Whether tc will do, if the driver has no XDP after all.
    or_tc: bool,
}

fn plan(interface: &Interface, wanted: AttachMode, ours: &[PinnedLink]) -> Result<Plan, Error> {
    if ours.iter().any(|link| link.stands_in_the_way_of(interface)) {
        return Err(Error::NameTaken { interface: interface.name.clone() });
    }
    let current = ours.iter().filter(|link| link.is_on(interface)).find_map(|link| link.hook.mode());
    let (mode, or_tc) = match wanted {
        AttachMode::Native => (AttachedMode::Native, false),
        AttachMode::Generic => (AttachedMode::Generic, false),
        AttachMode::Tc => (AttachedMode::Tc, false),
        AttachMode::Auto => match current {
            Some(current) => (current, false),
            None if interface.is_virtual() => (AttachedMode::Tc, false),
            None => (AttachedMode::Native, true),
        },
    };
    match (current, mode) {
        // The kernel keeps native and generic XDP apart; between XDP and tc both may stand for a moment.
        (Some(got @ (AttachedMode::Native | AttachedMode::Generic)), AttachedMode::Native | AttachedMode::Generic)
            if got != mode =>
        {
            return Err(Error::ModeChange {
                interface: interface.name.clone(),
                expected: mode.name(),
                got: got.name(),
            });
        }
        _ => {}
    }
    if mode != AttachedMode::Tc {
        let is_ours = |id| ours.iter().any(|link| link.program_id() == Some(id));
        if let Some(other) = interface.xdp.iter().find(|attachment| !is_ours(attachment.program_id)) {
            return Err(Error::OtherXdpProgram {
                interface: interface.name.clone(),
                program: xdp::program_name(other.program_id),
                id: other.program_id,
                mode: other.mode.name(),
            });
        }
    }
    Ok(Plan { mode, or_tc })
}

fn attach_one(
    paths: &Paths,
    loaded: &mut Loaded,
    interface: &Interface,
    plan: Plan,
    ours: &[PinnedLink],
) -> Result<Attached, Error> {
    let present = |hook: Hook| ours.iter().any(|link| link.hook.is_same_place(hook) && link.is_on(interface));
    let mut mode = plan.mode;
    let updated = match mode {
        AttachedMode::Native | AttachedMode::Generic => present(Hook::Xdp(mode)),
        AttachedMode::Tc => present(Hook::TcIngress),
    };
    if !updated && mode != AttachedMode::Tc {
        let xdp_mode = if mode == AttachedMode::Native { XdpMode::Driver } else { XdpMode::Skb };
        match xdp::attach(paths, loaded, interface, mode, xdp_mode) {
            Err(_) if plan.or_tc => mode = AttachedMode::Tc,
            result => result?,
        }
    }
    if mode == AttachedMode::Tc && !present(Hook::TcIngress) {
        tc::attach(paths, loaded.classifier(TC_INGRESS)?, interface, Hook::TcIngress)?;
    }
    if !present(Hook::TcEgress) {
        tc::attach(paths, loaded.classifier(TC_EGRESS)?, interface, Hook::TcEgress)?;
    }
    // What stood there in another mode goes last, so that packets are switched all the while.
    for link in ours.iter().filter(|link| link.is_on(interface)) {
        if link.hook.mode().is_some_and(|other| other != mode) {
            link.remove(paths)?;
        }
    }
    Ok(Attached { name: interface.name.clone(), mode, updated })
}

fn check_machine(pin_root: &Path) -> Result<(), Error> {
    const USUAL_PLACE: &str = "/sys/fs/bpf";
    preconditions::kernel()?;
    preconditions::capabilities()?;
    match preconditions::bpf_file_system(pin_root) {
        Err(error) if pin_root.starts_with(USUAL_PLACE) => {
            // As bpftool and iproute2 do. If it does not help, the first message says what would.
            rustix::mount::mount("bpf", USUAL_PLACE, "bpf", MountFlags::empty(), c"mode=0700").map_err(|_| error)?;
            preconditions::bpf_file_system(pin_root)?;
        }
        result => result?,
    }
    Ok(())
}

fn ethernet(name: &str) -> Result<Interface, Error> {
    let interface = net::interface(name)?;
    match interface.arphrd {
        ARPHRD_ETHER | ARPHRD_LOOPBACK => Ok(interface),
        arphrd => Err(Error::NotEthernet { interface: interface.name, arphrd }),
    }
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
