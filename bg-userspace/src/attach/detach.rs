//! Taking an instance's programs off interfaces, or an instance away.

use std::{path::PathBuf, time::Duration};

use super::{Hook, PATIENCE, PinnedLink, attached_interfaces, egress, pinned_links};
use crate::{Error, Paths, history::Action, lock::Lock, net, pins, state::Witness};

/// What [`detach`] takes the programs off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These interfaces; the instance stays.
    Interfaces(Vec<String>),
    /// All interfaces; every pin is removed, and with the pins the instance.
    All,
}

/// What a [`detach`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Names of the interfaces.
    pub interfaces: Vec<String>,
    /// What is left in the pin root after [`Target::All`]: bgctl has not made it.
    pub left: Vec<PathBuf>,
}

/// Takes the programs off interfaces. With [`Target::All`] every pin is removed as well; an instance of
/// another ABI version, or a damaged one, can be removed so.
pub fn detach(paths: &Paths, target: &Target) -> Result<Detached, Error> {
    detach_within(paths, target, PATIENCE)
}

/// The same, with another patience for another bgctl that works on the instance.
pub fn detach_within(paths: &Paths, target: &Target, patience: Duration) -> Result<Detached, Error> {
    let lock = Lock::detach(paths, patience)?;
    let witness = Witness::of(paths);
    let (detached, done) = match target {
        Target::All => (detach_all(paths)?, "the detach is done, and all pins are removed"),
        Target::Interfaces(names) => (detach_some(paths, names)?, "the detach is done"),
    };
    drop(lock);
    witness.record(Action::Detach, detached.interfaces.clone(), done)?;
    Ok(detached)
}

fn detach_all(paths: &Paths) -> Result<Detached, Error> {
    // Links end with their pins. Only the filters of clsact have to be found, and that in their own namespace.
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
    // All that can be taken off is, also if one cannot.
    links.iter().map(PinnedLink::remove).fold(Ok(()), Result::and)?;
    net::keep_neighbours(paths, []);
    let left = pins::remove_all(paths)?;
    Ok(Detached { interfaces: names_of(links.iter()), left })
}

fn detach_some(paths: &Paths, names: &[String]) -> Result<Detached, Error> {
    pins::check_own_namespace(paths)?;
    let links = pinned_links(paths)?;
    // All names are looked at before anything is done.
    let names: Vec<String> = names.iter().map(|name| name_of(name, &links)).collect();
    if let Some(name) = names.iter().find(|name| !links.iter().any(|link| link.is_of(name))) {
        let attached = attached_interfaces(paths)?.into_iter().map(|interface| interface.name).collect();
        return Err(Error::NotAttached { interface: name.clone(), attached });
    }
    let meant = || links.iter().filter(|link| names.iter().any(|name| link.is_of(name)));
    for ifindex in meant().filter_map(PinnedLink::ifindex) {
        egress::forget(paths, ifindex)?;
    }
    // XDP goes before tc ingress, which does what XDP leaves to it.
    let is_xdp = |link: &&PinnedLink| matches!(link.hook, Hook::Xdp(_));
    for link in meant().filter(is_xdp).chain(meant().filter(|link| !is_xdp(link))) {
        link.remove()?;
    }
    Ok(Detached { interfaces: names_of(meant()), left: Vec::new() })
}

/// The name that an interface is attached by, if `name` is an alternative one.
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
