//! What can go wrong: what was expected, what was met, and what to do about it.

mod class;
mod names;
mod refusal;
mod room;

use std::{io, net::SocketAddr, path::PathBuf};

use bg_common::MAX_CHAIN;

pub use class::ErrorClass;
use names::instead;
pub use refusal::Refusal;
pub use room::Room;

use crate::{attach::OtherProgram, doctor::preconditions::PreconditionError, history::HistoryError, net::NetError};

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something that every instance needs.
    #[error(transparent)]
    Precondition(#[from] PreconditionError),
    /// An interface could not be found.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The state directory could not be read or written.
    #[error(transparent)]
    History(#[from] HistoryError),

    /// Expected a pinned instance.
    #[error("no instance at {}: `bgctl attach IFACE` makes one, --pin-root names another place{hint}", pin_root.display())]
    NoInstance {
        /// Where it should be.
        pin_root: PathBuf,
        /// Why it may be hidden from this process, or empty.
        hint: String,
    },
    /// Expected a pin that every instance has.
    #[error(
        "the instance is damaged: there is no such file or directory as {}. What is attached goes on as it was, and \
         nothing has been changed; `bgctl detach --all` takes the instance away with its open flows, then attach and apply again",
        pin.display()
    )]
    Damaged {
        /// The pin.
        pin: PathBuf,
    },
    /// Expected to run in the instance's network namespace.
    #[error(
        "the instance at {} belongs to the network namespace {instance}, and this is the one {here}, \
         where its interface indexes mean others: run {prefix}bgctl there, or make an instance for this namespace by \
         another --pin-root and --state-dir. `bgctl detach --all` removes the instance, also when its namespace is gone",
        pin_root.display()
    )]
    OtherNamespace {
        /// Where the instance is.
        pin_root: PathBuf,
        /// Its namespace, by name if it has one.
        instance: String,
        /// The caller's namespace.
        here: String,
        /// What runs a command in the instance's namespace, with a space behind it, or empty.
        prefix: String,
    },
    /// Expected maps of this ABI version.
    #[error(
        "the pins in {} are of ABI version {got}, this bgctl speaks version {expected}: run `bgctl detach --all` \
         (with the bgctl that made them, if it is still here), then attach and apply again; nothing has been changed",
        pin_root.display()
    )]
    OtherAbi {
        /// Where the pins are.
        pin_root: PathBuf,
        /// [`bg_common::ABI_VERSION`].
        expected: u32,
        /// What the pinned `meta` map says.
        got: u32,
    },
    /// Expected a map as this version defines it.
    #[error("{} is not the map that this bgctl makes: {detail}; run `bgctl detach --all`, then attach again", path.display())]
    ForeignMap {
        /// The pin.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// Expected an instance of this size; its maps cannot grow.
    #[error(
        "this instance has room for {got} {what}, --{what} asks for {expected}: a map cannot grow in place; \
         leave --{what} away, or run `bgctl detach --all` first (open flows are then forgotten)"
    )]
    OtherSize {
        /// `flows`, `services` or `backends`: the option.
        what: &'static str,
        /// What was asked for.
        expected: u32,
        /// What there is.
        got: u32,
    },
    /// This build embeds no BPF object.
    #[error("this bgctl was built without its BPF object: run `cargo xtask build-ebpf`, then build again")]
    NoObject,
    /// The kernel has no memory for a map.
    #[error(
        "no memory for map \"{map}\". All maps take {sizes}; free some memory (a limit of the cgroup counts too), or attach \
         with a smaller --flows, --services or --backends"
    )]
    NoMemory {
        /// The map's name.
        map: String,
        /// What the settings take.
        sizes: String,
        /// What the kernel has said.
        #[source]
        source: io::Error,
    },
    /// The kernel would not take the object.
    #[error("the kernel does not take the BPF object")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program could not be loaded, pinned or run.
    #[error("cannot {doing} program \"{program}\"")]
    Program {
        /// "load", "pin", ...
        doing: &'static str,
        /// Its name.
        program: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be read or written.
    #[error("cannot {doing} map \"{map}\"")]
    Map {
        /// "open", "read", "write", ...
        doing: &'static str,
        /// Its name.
        map: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or directory could not be handled.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// "make", "remove", "lock", ...
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process changes this instance.
    #[error("another bgctl works on this instance (it holds {}): {holder}; wait for it, or end it", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// What the other one wrote of itself.
        holder: String,
    },

    /// The interface is none that carries Ethernet frames.
    #[error(
        "{interface} carries no Ethernet frames (ARPHRD {arphrd}): attach to the Ethernet interface below it, or to a bridge or veth"
    )]
    NotEthernet {
        /// Its name.
        interface: String,
        /// Its `ARPHRD_*` type.
        arphrd: u16,
    },
    /// Another XDP program is there.
    #[error(
        "{interface} already carries the {program}: take it off ({removal}, or the tool that owns it), or give it as --next \
         and let the owner release the interface, or attach with --mode tc"
    )]
    OtherXdpProgram {
        /// The interface's name.
        interface: String,
        /// The program.
        program: OtherProgram,
        /// The command that takes it off.
        removal: String,
    },
    /// A program could not be attached.
    #[error("cannot attach to {interface} in {mode} mode{hint}")]
    Attach {
        /// The interface's name.
        interface: String,
        /// The mode that was tried.
        mode: &'static str,
        /// What to try instead.
        hint: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// One of several interfaces could not be attached to, so none is.
    #[error("nothing is attached now that was not before: {} had been, and was taken off again", interfaces.join(", "))]
    Undone {
        /// Those that were attached to, and are not any more.
        interfaces: Vec<String>,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// The mode of an attached interface cannot be changed in place.
    #[error(
        "{interface} is attached in {got} mode, and the kernel does not let {expected} stand beside it: run \
         `bgctl detach {interface}` first, then attach with --mode {expected}; in between, its packets pass unswitched"
    )]
    ModeChange {
        /// The interface's name.
        interface: String,
        /// The mode asked for.
        expected: &'static str,
        /// The mode that it is attached in.
        got: &'static str,
    },
    /// The pins of this name belong to another interface.
    #[error(
        "this instance is attached to another interface that was called {interface}, and has another name now or was moved \
         to another network namespace; its pins bear the old name: `bgctl detach` it first, or give this one another name"
    )]
    NameTaken {
        /// The name.
        interface: String,
    },
    /// `--next` names something that cannot be called.
    #[error("--next {}: {detail}", path.display())]
    Next {
        /// The pinned program.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The interface has nothing of this instance to detach.
    #[error("{interface} is not attached; attached: {}", if attached.is_empty() { "none".to_owned() } else { attached.join(", ") })]
    NotAttached {
        /// What was asked for.
        interface: String,
        /// What there is.
        attached: Vec<String>,
    },

    /// The maps are too small for the configuration.
    #[error("no room for {needed} more {what}: {free} of {capacity} are free; {}", what.remedy())]
    NoRoom {
        /// Of what.
        what: Room,
        /// How many are needed.
        needed: usize,
        /// How many there are.
        free: usize,
        /// How many an instance has.
        capacity: usize,
    },
    /// Too many rows would share a place in an index.
    #[error(
        "{what} {address}/{protocol} cannot be indexed: {MAX_CHAIN} others share its place, or it is a backend of {MAX_CHAIN} \
         services that did not have it in common when they were added. Give it another address or port; or remove the \
         services, apply, and add them again; or `bgctl detach --all`, then attach with a larger --services or --backends"
    )]
    IndexFull {
        /// "VIP" or "backend".
        what: &'static str,
        /// Its address.
        address: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
    },
    /// The configuration holds what the maps cannot.
    #[error("{what}")]
    Unrepresentable {
        /// What, and what to do.
        what: String,
    },

    /// Expected one of the deployments that have been applied.
    #[error(
        "no deployment \"{name}\"; {}",
        instead(name, existing, "no deployment at all (`bgctl apply -c FILE` makes some)")
    )]
    UnknownDeployment {
        /// What was asked for.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// Expected the name of a service that runs.
    #[error("no service \"{name}\"; {}", instead(name, existing, "no service at all"))]
    UnknownService {
        /// What was asked for.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// The switch is done, and the state directory does not know of it.
    #[error(
        "the switch is done, {live} is live at generation {generation}, but it could not be recorded; when that is \
         mended, the next command that changes \"{deployment}\" records it"
    )]
    NotRecorded {
        /// Name of the deployment.
        deployment: String,
        /// Its live colour now.
        live: &'static str,
        /// Its generation now.
        generation: u32,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// A change is done, and the state directory does not know of it.
    #[error("{done}, but it could not be recorded")]
    DoneNotRecorded {
        /// What is done, as a sentence: "the apply is done".
        done: String,
        /// Why it could not be recorded.
        #[source]
        source: Box<Error>,
    },
    /// A switch was refused by a precondition; nothing has been changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Error {
    pub(crate) fn map<E>(doing: &'static str, map: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Map { doing, map, source: source.into() }
    }

    pub(crate) fn program<E>(doing: &'static str, program: &str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let program = program.to_owned();
        move |source| Self::Program { doing, program, source: source.into() }
    }

    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
