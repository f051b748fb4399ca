//! The errors of the library. Each says what was expected, what was found, and what to do about it.

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

/// The error of an operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks something that every instance needs.
    #[error(transparent)]
    Precondition(#[from] PreconditionError),
    /// An interface could not be found.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The state directory could not be read or written.
    #[error(transparent)]
    History(#[from] HistoryError),

    /// There is no pinned instance.
    #[error("no instance at {}: `bgctl attach IFACE` creates one, --pin-root names another place{hint}", pin_root.display())]
    NoInstance {
        /// Where it was expected.
        pin_root: PathBuf,
        /// Why it may be hidden from this process, or empty.
        hint: String,
    },
    /// A pin that every instance has is missing.
    #[error(
        "the instance is damaged: {} does not exist. Attached programs keep running, and nothing has been changed. Run \
         `bgctl detach --all`, which removes the instance with its open flows, then attach and apply again",
        pin.display()
    )]
    Damaged {
        /// The pin.
        pin: PathBuf,
    },
    /// The command runs in another network namespace than the instance's.
    #[error(
        "the instance at {} belongs to the network namespace {instance}, but this is the namespace {here}, \
         where its interface indexes mean other interfaces. Run {prefix}bgctl there, or create an instance for this namespace \
         with another --pin-root and --state-dir. `bgctl detach --all` removes the instance, even if its namespace is gone",
        pin_root.display()
    )]
    OtherNamespace {
        /// Where the instance is.
        pin_root: PathBuf,
        /// Its namespace, by name if it has one.
        instance: String,
        /// The caller's namespace.
        here: String,
        /// The command that runs another one in the instance's namespace, followed by a space; or empty.
        prefix: String,
    },
    /// The pins are of another ABI version.
    #[error(
        "the pins in {} are of ABI version {got}, but this bgctl uses version {expected}; nothing has been changed. Run \
         `bgctl detach --all` (with the bgctl that made the pins, if it still exists), then attach and apply again",
        pin_root.display()
    )]
    OtherAbi {
        /// Where the pins are.
        pin_root: PathBuf,
        /// [`bg_common::ABI_VERSION`].
        expected: u32,
        /// The version in the pinned map `meta`.
        got: u32,
    },
    /// A pinned map differs from the definition of this version.
    #[error("{} is not a map as this bgctl creates it: {detail}; run `bgctl detach --all`, then attach again", path.display())]
    ForeignMap {
        /// The pin.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// The instance has another size than asked for, and its maps cannot grow.
    #[error(
        "this instance has room for {got} {what}, but --{what} asks for {expected}, and a map cannot grow in place: \
         omit --{what}, or run `bgctl detach --all` first (open flows are lost)"
    )]
    OtherSize {
        /// The option: `flows`, `services` or `backends`.
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
        "no memory for the map \"{map}\". All maps take {sizes}. Free some memory (a limit of the cgroup counts too), or attach \
         with smaller --flows, --services or --backends"
    )]
    NoMemory {
        /// The map's name.
        map: String,
        /// The memory that the settings take.
        sizes: String,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The kernel rejected the object.
    #[error("the kernel rejected the BPF object")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel's verifier refused a program.
    #[error(
        "kernel {release} refuses program \"{program}\" ({reason}): boot another kernel; docs/verifier.md lists those that \
         were tested"
    )]
    Verifier {
        /// The kernel's release string.
        release: String,
        /// The program's name.
        program: String,
        /// What the verifier says.
        reason: String,
    },
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
    #[error("another bgctl works on this instance and holds {}: {holder}; wait for it, or end it", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How the other process describes itself.
        holder: String,
    },

    /// The interface does not carry Ethernet frames.
    #[error(
        "{interface} does not carry Ethernet frames (ARPHRD {arphrd}): attach to the Ethernet interface below it, or to a bridge or veth"
    )]
    NotEthernet {
        /// Its name.
        interface: String,
        /// Its `ARPHRD_*` type.
        arphrd: u16,
    },
    /// The interface carries another XDP program.
    #[error(
        "{interface} already carries the {program}: remove it ({removal}, or use the tool that owns it); or have its owner \
         detach it and name it in --next; or attach with --mode tc"
    )]
    OtherXdpProgram {
        /// The interface's name.
        interface: String,
        /// The program.
        program: OtherProgram,
        /// The command that removes it.
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
    /// One of several interfaces could not be attached, so none is.
    #[error("no interface was attached: {} had been attached, and was detached again", interfaces.join(", "))]
    Undone {
        /// The interfaces that were attached and detached again.
        interfaces: Vec<String>,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// The mode of an attached interface cannot be changed in place.
    #[error(
        "{interface} is attached in {got} mode, and the kernel does not allow {expected} mode beside it: run \
         `bgctl detach {interface}` first, then attach with --mode {expected}. Its packets are not switched in between"
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
        "this instance is attached to another interface that was called {interface}, and was renamed or moved \
         to another network namespace since. Its pins have the old name: `bgctl detach` it first, or rename this interface"
    )]
    NameTaken {
        /// The name.
        interface: String,
    },
    /// The program that `--next` names cannot be called.
    #[error("--next {}: {detail}", path.display())]
    Next {
        /// The pinned program.
        path: PathBuf,
        /// The reason.
        detail: String,
    },
    /// The interface carries no program of this instance.
    #[error("{interface} is not attached; attached: {}", if attached.is_empty() { "none".to_owned() } else { attached.join(", ") })]
    NotAttached {
        /// The interface.
        interface: String,
        /// The interfaces that are attached.
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
    /// Too many rows would share a list of an index.
    #[error(
        "{what} {address}/{protocol} cannot be indexed: {MAX_CHAIN} others have the same hash, or it is a backend of {MAX_CHAIN} \
         services that did not share it when they were added. Give it another address or port; or remove the \
         services, apply, and add them again; or run `bgctl detach --all`, then attach with larger --services or --backends"
    )]
    IndexFull {
        /// "VIP" or "backend".
        what: &'static str,
        /// Its address.
        address: SocketAddr,
        /// `tcp` or `udp`.
        protocol: &'static str,
    },
    /// The maps cannot represent the configuration.
    #[error("{what}")]
    Unrepresentable {
        /// What they cannot represent, and what to do.
        what: String,
    },

    /// There is no deployment of this name.
    #[error(
        "no deployment \"{name}\"; {}",
        instead(name, existing, "no deployment at all (`bgctl apply -c FILE` adds some)")
    )]
    UnknownDeployment {
        /// What was asked for.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// There is no service of this name.
    #[error("no service \"{name}\"; {}", instead(name, existing, "no service at all"))]
    UnknownService {
        /// What was asked for.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// A deployment has no backend of this address.
    #[error("deployment \"{deployment}\" has no backend {name}; {}", instead(name, existing, "it has none at all"))]
    UnknownBackend {
        /// Name of the deployment.
        deployment: String,
        /// What was asked for.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// The switch is done, but it is not recorded in the state directory.
    #[error(
        "the switch is done, {live} is live at generation {generation}, but it could not be recorded. After you have fixed \
         that, the next command that changes \"{deployment}\" records it"
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
    /// The word is changed, but the kernel has not said that no packet is decided by the one before any more.
    #[error(
        "the switch is done, {live} is live at generation {generation}, but for a moment packets may still go by the state before: the fence has failed"
    )]
    NotFenced {
        /// Name of the deployment.
        deployment: String,
        /// Its live colour now.
        live: &'static str,
        /// Its generation now.
        generation: u32,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A change is done, but it is not recorded in the state directory.
    #[error("{done}, but it could not be recorded")]
    DoneNotRecorded {
        /// The change, as a sentence: "the apply is done".
        done: String,
        /// Why it could not be recorded.
        #[source]
        source: Box<Error>,
    },
    /// The window of a switch with `--freeze` was over before the switch was complete.
    #[error("the freeze was over before the switch was complete: {what}. The old colour is live, and new flows go on")]
    WindowOver {
        /// What it waited for.
        what: String,
    },
    /// A switch with `--freeze` was not made, or was taken back, because the state directory cannot be written.
    #[error(
        "a switch with --freeze needs a state directory that can be written: {live} stays live, and new flows go on. Make room in it, or mend \
         what is wrong; or switch without --freeze, which is done also if it cannot be recorded"
    )]
    WindowNotRecorded {
        /// The live colour.
        live: &'static str,
        /// Why it could not be recorded.
        #[source]
        source: Box<Error>,
    },
    /// A command of a switch with `--freeze` could not be run.
    #[error("cannot run the command --{name} ({command}); the old colour is live, and new flows go on")]
    HookNotRun {
        /// `before` or `after`.
        name: &'static str,
        /// The command.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The deployments have gates, but which ones is not known.
    #[error(
        "nothing was done, because the gates of the last apply cannot be read: {why}. Apply the configuration again, or use --skip-gates"
    )]
    GatesUnknown {
        /// Why not.
        why: String,
    },
    /// The deployment has gates, and this program cannot ask them.
    #[error(
        "nothing was done, because the deployment has gates, and this bgctl was built without the feature `serve`, which asks them. --skip-gates goes without"
    )]
    GatesNotBuilt,
    /// The gates of a configuration could not be kept for later switches. Nothing was applied.
    #[error("nothing was applied, because the gates of the configuration cannot be kept for later switches")]
    GatesNotKept {
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// A precondition does not hold; nothing has been changed.
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
