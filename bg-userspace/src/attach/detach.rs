//! Detaching an instance's programs from interfaces, and removing an instance.

use std::{path::PathBuf, time::Duration};

use super::{Hook, PATIENCE, PinnedLink, attached_interfaces, egress, pinned_links};
use crate::{
    Error, Paths,
    history::Action,
    lock::Lock,
    net, pins,
    state::{Change, Pending, Witness},
};

/// The interfaces that [`detach`] detaches from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These interfaces. The instance remains.
    Interfaces(Vec<String>),
    /// All interfaces. Every pin is removed, and with the pins the instance.
    All,
}

/// The result of [`detach`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Names of the interfaces.
    pub interfaces: Vec<String>,
    /// What is left in the pin root after [`Target::All`], because bgctl has not created it.
    pub left: Vec<PathBuf>,
}

/// Detaches the programs from interfaces. [`Target::All`] also removes every pin, even those of an instance of
/// another ABI version or of a damaged instance.
pub fn detach(paths: &Paths, target: &Target) -> Result<Detached, Error> {
    detach_within(paths, target, PATIENCE)
}

/// Like [`detach`], with the time to wait for another bgctl that works on the instance.
pub fn detach_within(paths: &Paths, target: &Target, patience: Duration) -> Result<Detached, Error> {
    let lock = Lock::detach(paths, patience)?;
    let witness = Witness::of(paths);
    let ((detached, pending), done) = match target {
        Target::All => (detach_all(paths, &lock)?, "the detach is done, and all pins are removed"),
        Target::Interfaces(names) => (detach_some(paths, names, &lock)?, "the detach is done"),
    };
    drop(lock);
    let recorded = witness.record(Action::Detach, detached.interfaces.clone(), done, &pending);
    if *target == Target::All {
        pending.remove_all();
        // Unless another attach has used it meanwhile.
        let _ = std::fs::remove_dir(&paths.pin_root);
    }
    recorded.map(|()| detached)
}

/// Writes down that links are about to be removed.
fn begin<'a>(paths: &Paths, lock: &Lock, links: impl Iterator<Item = &'a PinnedLink>) -> Pending {
    let change = Change { action: Action::Detach, interfaces: names_of(links), ..Change::default() };
    Pending::begin(paths, lock, &[change])
}

fn detach_all(paths: &Paths, lock: &Lock) -> Result<(Detached, Pending), Error> {
    // Links end with their pins. Only filters of clsact have to be looked up, in their own namespace.
    let has_filters = pins::entries(&paths.links())?.iter().any(|pin| {
        let name = pin.file_name().and_then(|name| name.to_str());
        name.and_then(Hook::parse).is_some_and(|(_, hook)| hook.is_clsact())
    });
    let links = match pinned_links(paths) {
        Err(error) if has_filters => return Err(error),
        links => links.unwrap_or_default(),
    };
    if has_filters && links.iter().any(|link| !link.is_in_this_namespace) {
        pins::check_own_namespace(paths)?;
    }
    let pending = begin(paths, lock, links.iter());
    // If one link cannot be detached, the others still are.
    links.iter().map(PinnedLink::remove).fold(Ok(()), Result::and)?;
    net::keep_neighbours(paths, []);
    let left = pins::remove_all(paths)?;
    Ok((Detached { interfaces: names_of(links.iter()), left }, pending))
}

fn detach_some(paths: &Paths, names: &[String], lock: &Lock) -> Result<(Detached, Pending), Error> {
    pins::check_own_namespace(paths)?;
    let links = pinned_links(paths)?;
    // All names are checked before anything is done.
    let names: Vec<String> = names.iter().map(|name| name_of(name, &links)).collect();
    if let Some(name) = names.iter().find(|name| !links.iter().any(|link| link.is_of(name))) {
        let attached = attached_interfaces(paths)?.into_iter().map(|interface| interface.name).collect();
        return Err(Error::NotAttached { interface: name.clone(), attached });
    }
    let meant = || links.iter().filter(|link| names.iter().any(|name| link.is_of(name)));
    let pending = begin(paths, lock, meant());
    for ifindex in meant().filter_map(PinnedLink::ifindex) {
        egress::forget(paths, ifindex)?;
    }
    // XDP is detached before tc ingress, which handles the packets that XDP leaves to it.
    let is_xdp = |link: &&PinnedLink| matches!(link.hook, Hook::Xdp(_));
    for link in meant().filter(is_xdp).chain(meant().filter(|link| !is_xdp(link))) {
        link.remove()?;
    }
    Ok((Detached { interfaces: names_of(meant()), left: Vec::new() }, pending))
}

/// The name under which an interface is attached, if `name` is an alternative name.
fn name_of(name: &str, links: &[PinnedLink]) -> String {
    if links.iter().any(|link| link.is_of(name)) {
        return name.to_owned();
    }
    net::interface(name).map_or_else(|_| name.to_owned(), |interface| interface.name)
}

fn names_of<'a>(links: impl Iterator<Item = &'a PinnedLink>) -> Vec<String> {
    let mut names: Vec<_> = links.map(PinnedLink::name).collect();
    names.sort();
    names.dedup();
    names
}
