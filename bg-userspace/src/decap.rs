//! `bgctl decap`: on a backend, unpacking what the modes `ipip` and `gue` have encapsulated, in XDP.
//!
//! The program and its maps are an object of their own, and need no instance. Nothing has to keep running: the link is pinned beside the pin root, below a
//! directory with the suffix `-decap`. Its name has the cookie of the network namespace, because several may share the file system. The addresses of this
//! host are read when it is attached. Attaching it again reads them again, and replaces the program in place.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    programs::{
        Xdp,
        links::{FdLink, PinnedLink},
        xdp::{XdpLink, XdpMode},
    },
};
use bg_common::{Be16, TesterKey};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::{
    Error, Paths,
    config::Prefix,
    net::{self, Interface},
    pins,
    running::tester_key,
    sys::{detach_link, link_info},
};

/// The object that the build script has embedded; empty if there was none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap.bpf.o"));

/// The program.
pub(crate) const PROGRAM: &str = "decap";

/// Of which deployment the keys of the maps are: of none.
const NO_DEPLOYMENT: u16 = 0;

/// Where the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecapMode {
    /// In the driver, if it can, else in the network stack.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

/// The options of [`decap_attach`].
#[derive(Clone, Debug, Default)]
pub struct DecapRequest {
    /// Names of the interfaces.
    pub interfaces: Vec<String>,
    /// Who may send encapsulated packets. If it is empty: the networks that the interface is connected to.
    pub from: Vec<Prefix>,
    /// The UDP port of GUE; `None` is 6080.
    pub gue_port: Option<u16>,
    /// Where the program runs.
    pub mode: DecapMode,
}

/// An interface on which packets are unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decapsulating {
    /// Its name.
    pub interface: String,
    /// `native` or `generic`.
    pub mode: &'static str,
    /// Who may send encapsulated packets.
    pub from: Vec<String>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// The addresses to which packets are unpacked: all of this host, but those of the loopback and of a link.
    pub addresses: Vec<IpAddr>,
    /// What does not work well in this mode, or is slower than it could be.
    pub warning: Option<&'static str>,
}

/// Unpacks packets that arrive on these interfaces.
pub fn decap_attach(paths: &Paths, request: &DecapRequest) -> Result<Vec<Decapsulating>, Error> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    let directory = directory(paths);
    fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    remove_gone(paths)?;
    // Else another command might remove a pin that has just taken the place of one whose interface is gone.
    let lock = File::open(&directory).map_err(Error::io("open", &directory))?;
    let locked = rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive));
    locked.map_err(|error| Error::io("lock", &directory)(error.into()))?;
    let interfaces = request.interfaces.iter().map(|name| net::interface(name)).collect::<Result<Vec<_>, _>>()?;
    interfaces.iter().map(|interface| attach(&directory, interface, request)).collect()
}

/// No longer unpacks packets on these interfaces. Returns their names.
pub fn decap_detach(paths: &Paths, names: &[String]) -> Result<Vec<String>, Error> {
    remove_gone(paths)?;
    let pins = names.iter().map(|name| pin_of(paths, name)).collect::<Result<Vec<_>, _>>()?;
    for pin in pins {
        // Else the kernel would detach it some time later. A link whose interface is gone is detached already.
        let _ = detach_link(&pin);
        pins::remove(&pin)?;
    }
    // Others may be in it.
    let _ = fs::remove_dir(directory(paths));
    Ok(names.to_vec())
}

/// Removes the pins of other network namespaces whose interfaces are gone. Most often the namespace is gone with them: its number never comes
/// again, so nobody else would. Those of this namespace stay, to tell that nothing is unpacked any more.
pub(crate) fn remove_gone(paths: &Paths) -> Result<(), Error> {
    let (directory, ours) = (directory(paths), pin_name("")?);
    let Ok(lock) = File::open(&directory) else { return Ok(()) };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        // Another command is attaching. The next one is early enough.
        return Ok(());
    }
    let is_ours = |pin: &Path| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&ours));
    let others = pins::entries(&directory)?.into_iter().filter(|pin| !is_ours(pin));
    let is_gone = |pin: &PathBuf| link_info(pin).is_ok_and(|link| link.ifindex == 0);
    others.filter(is_gone).try_for_each(|pin| pins::remove(&pin))
}

/// The names of the interfaces of this network namespace on which packets are unpacked, or were.
pub(crate) fn pins_of(paths: &Paths) -> Result<Vec<String>, Error> {
    let pins = pins::entries(&directory(paths))?;
    let start = pin_name("")?;
    let ours = pins.iter().filter_map(|pin| pin.file_name()?.to_str()?.strip_prefix(&start));
    Ok(ours.map(|name| name.replace(':', ".")).collect())
}

/// The pin of the link on an interface.
pub(crate) fn pin_of(paths: &Paths, name: &str) -> Result<PathBuf, Error> {
    let pin = directory(paths).join(pin_name(name)?);
    if pin.exists() {
        return Ok(pin);
    }
    let what = format!("nothing is unpacked on {name}: there is no {}", pin.display());
    Err(Error::Unrepresentable { what })
}

/// The name of a pin: the namespace and the interface. Names in this file system have no dots, those of interfaces no colons.
fn pin_name(interface: &str) -> Result<String, Error> {
    Ok(format!("{:x}-{}", net::namespace_cookie()?, interface.replace('.', ":")))
}

/// The directory of the pins.
fn directory(paths: &Paths) -> PathBuf {
    let mut root = paths.pin_root.clone().into_os_string();
    root.push("-decap");
    root.into()
}

fn attach(directory: &Path, interface: &Interface, request: &DecapRequest) -> Result<Decapsulating, Error> {
    let all = net::addresses()?;
    let from = if request.from.is_empty() {
        let own = all.iter().filter(|address| address.ifindex == interface.index);
        own.map(net::Address::network).collect()
    } else {
        request.from.clone()
    };
    let gue_port = request.gue_port.unwrap_or(bg_common::GUE_PORT);
    let addresses = unpacked_for(all);
    let mut ebpf = Ebpf::load(OBJECT).map_err(|error| Error::Load(Box::new(error)))?;
    fill(&mut ebpf, &addresses, &from, gue_port)?;
    let program = ebpf.program_mut(PROGRAM).ok_or(Error::NoObject)?;
    let program: &mut Xdp = program.try_into().map_err(Error::program("open", PROGRAM))?;
    program.load().map_err(Error::program("load", PROGRAM))?;
    let mode = link(program, &directory.join(pin_name(&interface.name)?), interface, request.mode)?;
    let warning = match (mode, request.mode) {
        ("generic", _) if is_veth(interface) => Some(MISSES),
        ("generic", DecapMode::Auto) => {
            Some("the driver does not take the program, so the network stack unpacks, which costs more")
        }
        _ => None,
    };
    Ok(Decapsulating {
        interface: interface.name.clone(),
        mode,
        from: from.iter().map(Prefix::to_string).collect(),
        gue_port,
        addresses,
        warning,
    })
}

/// The addresses to which packets are unpacked: not those that no packet from outside may have.
pub(crate) fn unpacked_for(addresses: Vec<net::Address>) -> Vec<IpAddr> {
    let is_from_outside = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    addresses.into_iter().map(|address| address.ip).filter(is_from_outside).collect()
}

fn fill(ebpf: &mut Ebpf, addresses: &[IpAddr], from: &[Prefix], gue_port: u16) -> Result<(), Error> {
    // The programs need the maps until they are loaded.
    let ours = ebpf.map_mut("addresses").ok_or(Error::NoObject)?;
    let mut ours: HashMap<_, TesterKey, u32> = ours.try_into().map_err(Error::map("open", "addresses"))?;
    for address in addresses {
        let len = if address.is_ipv4() { 32 } else { 128 };
        let key = tester_key(NO_DEPLOYMENT, &Prefix { addr: *address, len }).data();
        ours.insert(key, 1, 0).map_err(Error::map("write", "addresses"))?;
    }
    let sources = ebpf.map_mut("sources").ok_or(Error::NoObject)?;
    let mut sources: LpmTrie<_, TesterKey, u32> = sources.try_into().map_err(Error::map("open", "sources"))?;
    for prefix in from {
        let key: Key<TesterKey> = tester_key(NO_DEPLOYMENT, prefix);
        sources.insert(&key, 1, 0).map_err(Error::map("write", "sources"))?;
    }
    let port = ebpf.map_mut("gue_port").ok_or(Error::NoObject)?;
    let mut port: Array<_, u64> = port.try_into().map_err(Error::map("open", "gue_port"))?;
    port.set(0, u64::from(Be16::new(gue_port).0), 0).map_err(Error::map("write", "gue_port"))
}

/// Why the stack's mode is no substitute on a veth.
const MISSES: &str = "on a veth, XDP in the network stack does not see most packets that an edge on this machine sends in mode tc, because the kernel skips packets that were \
     redirected";

fn is_veth(interface: &Interface) -> bool {
    interface.kind.as_deref() == Some("veth")
}

/// Attaches the program, or puts it in the place of the one that is attached already.
fn link(program: &mut Xdp, pin: &Path, interface: &Interface, wanted: DecapMode) -> Result<&'static str, Error> {
    let failed = |mode: &'static str, source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
        interface: interface.name.clone(),
        mode,
        hint: if mode == "native" && is_veth(interface) {
            "; another XDP program may be attached there, or the MTU of the veth is too large for XDP; --mode generic does not see most packets of an edge on this machine"
        } else {
            "; another XDP program may be attached there, and one at a time can be"
        },
        source,
    };
    // 0: its interface is gone. One of this name may have come since.
    let is_on = link_info(pin).map(|link| link.ifindex).unwrap_or(0);
    if is_on != 0 && is_on != interface.index {
        let name = &interface.name;
        let what = format!(
            "{} holds the program of another interface (index {is_on}), which was renamed; `bgctl decap detach {name}` first",
            pin.display()
        );
        return Err(Error::Unrepresentable { what });
    }
    if is_on != 0
        && let Ok(pinned) = PinnedLink::from_pin(pin)
        && let Ok(link) = XdpLink::try_from(FdLink::from(pinned))
        && let Some(attached) = net::interface(&interface.name)?.xdp.first()
        && program.attach_to_link(link).is_ok()
    {
        return Ok(attached.mode.name());
    }
    pins::remove(pin)?;
    let modes: &[(XdpMode, &'static str)] = match wanted {
        // Nobody would notice that packets are missed.
        DecapMode::Auto if is_veth(interface) => &[(XdpMode::Driver, "native")],
        DecapMode::Auto => &[(XdpMode::Driver, "native"), (XdpMode::Skb, "generic")],
        DecapMode::Native => &[(XdpMode::Driver, "native")],
        DecapMode::Generic => &[(XdpMode::Skb, "generic")],
    };
    let mut last = None;
    for (xdp_mode, name) in modes {
        match program.attach_to_if_index(interface.index, *xdp_mode) {
            Ok(id) => {
                let link = program.take_link(id).map_err(|error| failed(name, error.into()))?;
                let link: FdLink =
                    link.try_into().map_err(|_| failed(name, "the kernel refused a bpf_link for it".into()))?;
                link.pin(pin).map_err(|error| failed(name, error.into()))?;
                return Ok(name);
            }
            Err(error) => last = Some(failed(name, error.into())),
        }
    }
    Err(last.unwrap_or(Error::NoObject))
}
