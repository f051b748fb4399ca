//! The pins of an instance: checking, creating and removing them.
//!
//! The order in which pins are created and removed shows what a killed command has left. `attach`
//! pins the maps, then writes `meta`, then pins programs, then links. `detach --all` removes links and
//! programs, then `meta`, then the other maps. So a valid `meta` means that all maps exist. Without a valid `meta`, working links
//! mean that somebody has damaged the instance. Without working links, nothing in the pin root is in use, and all of it can
//! be created anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapError, MapInfo},
    sys::SyscallError,
};
use aya_obj::generated::BPF_F_MMAPABLE;
use bg_common::{ABI_VERSION, Meta};
use bytemuck::Zeroable as _;

use crate::{
    Error, Paths,
    attach::is_attached,
    fence,
    history::make_private,
    map_specs::{MAPS, MapSpec},
    net::{self, Namespace},
    sizes::Sizes,
};

/// The content of a pin root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PinRoot {
    /// Nothing.
    Empty,
    /// Pins that a killed attach or detach has left. They are not in use.
    Unfinished,
    /// An instance of this ABI version.
    Instance { meta: Meta, sizes: Sizes },
}

impl PinRoot {
    /// Reads a pin root. Refuses pins of another version.
    pub(crate) fn inspect(paths: &Paths) -> Result<Self, Error> {
        let meta_pin = paths.map("meta");
        let meta = if exists(&meta_pin)? { read_meta(&meta_pin)? } else { Meta::zeroed() };
        if meta.abi_version == 0 {
            if is_attached(paths)? {
                return Err(Error::Damaged { pin: meta_pin });
            }
            return Ok(if has_entries(&paths.maps())? { Self::Unfinished } else { Self::Empty });
        }
        if meta.abi_version != ABI_VERSION {
            return Err(Error::OtherAbi {
                pin_root: paths.pin_root.clone(),
                expected: ABI_VERSION,
                got: meta.abi_version,
            });
        }
        let sizes = Sizes::read(paths)?;
        MAPS.iter().try_for_each(|map| check(map, &sizes, &paths.map(map.name)))?;
        Ok(Self::Instance { meta, sizes })
    }
}

/// Compares a pinned map with its specification in an instance of these sizes.
fn check(map: &MapSpec, sizes: &Sizes, pin: &Path) -> Result<(), Error> {
    let foreign = |detail: String| Error::ForeignMap { path: pin.to_owned(), detail };
    let info = MapInfo::from_pin(pin).map_err(|error| unopened(pin, error))?;
    let (expected, got) = ((map.key_size, map.value_size), (info.key_size() as usize, info.value_size() as usize));
    if expected != got {
        return Err(foreign(format!("expected keys and values of {expected:?} bytes, got {got:?}")));
    }
    if map.is_mappable() && info.map_flags() & BPF_F_MMAPABLE == 0 {
        return Err(foreign("expected the flag BPF_F_MMAPABLE".to_owned()));
    }
    let (expected, got) = (map.entries(sizes), info.max_entries());
    if expected != got {
        return Err(foreign(format!("expected {expected} entries, got {got}")));
    }
    // The programs compute an index into it by a mask.
    let is_masked = ["flows4", "flows6", "vip_index", "backend_index"].contains(&map.name);
    let least = if map.name.starts_with("flows") { 2 } else { 1 };
    if is_masked && (!got.is_power_of_two() || got < least) {
        return Err(foreign(format!("expected a power of two of at least {least} entries, got {got}")));
    }
    Ok(())
}

/// Reads the `meta` of an instance.
pub(crate) fn read_meta(pin: &Path) -> Result<Meta, Error> {
    let foreign = |detail: String| Error::ForeignMap { path: pin.to_owned(), detail };
    let map = MapData::from_pin(pin).and_then(Map::from_map_data).map_err(|error| unopened(pin, error))?;
    let meta: Array<_, Meta> = map.try_into().map_err(|error: aya::maps::MapError| foreign(error.to_string()))?;
    meta.get(&0, 0).map_err(Error::map("read", "meta"))
}

/// The error for a pin that could not be opened. It is the kernel's, unless the pinned object is not a map.
pub(crate) fn unopened(pin: &Path, error: MapError) -> Error {
    let error = match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error,
        other => return Error::ForeignMap { path: pin.to_owned(), detail: other.to_string() },
    };
    match error.kind() {
        io::ErrorKind::NotFound => Error::Damaged { pin: pin.to_owned() },
        // The pinned object is not a map.
        io::ErrorKind::InvalidInput => Error::ForeignMap { path: pin.to_owned(), detail: error.to_string() },
        _ => Error::io("open the pin", pin)(error),
    }
}

/// Refuses an instance of another network namespace, because interface indexes have another meaning there.
pub(crate) fn check_namespace(paths: &Paths, meta: &Meta) -> Result<(), Error> {
    let here = net::namespace_cookie()?;
    if meta.netns_cookie == here {
        return Ok(());
    }
    let (instance, here) = (Namespace::of(meta.netns_cookie), Namespace::of(here));
    Err(Error::OtherNamespace {
        pin_root: paths.pin_root.clone(),
        prefix: instance.prefix(),
        instance: instance.to_string(),
        here: here.to_string(),
    })
}

/// The same for the pinned instance, if there is one that can be read.
pub(crate) fn check_own_namespace(paths: &Paths) -> Result<(), Error> {
    readable_meta(paths).map_or(Ok(()), |meta| check_namespace(paths, &meta))
}

/// Whether the caller is in the instance's network namespace. If `meta` cannot be read, this is assumed.
pub(crate) fn is_in_this_namespace(paths: &Paths) -> Result<bool, Error> {
    let here = net::namespace_cookie()?;
    Ok(readable_meta(paths).is_none_or(|meta| meta.netns_cookie == here))
}

fn readable_meta(paths: &Paths) -> Option<Meta> {
    read_meta(&paths.map("meta")).ok().filter(|meta| meta.abi_version == ABI_VERSION)
}

/// Creates the directories of a pin root. Only their owner can open them.
pub(crate) fn make_directories(paths: &Paths) -> Result<(), Error> {
    for directory in [paths.maps(), paths.programs(), paths.links()] {
        make_private(&directory).map_err(Error::io("make", &directory))?;
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::chmod(&directory, mode).map_err(|errno| Error::io("close to others", directory)(errno.into()))?;
    }
    Ok(())
}

/// Removes all pins and the directories. Returns the names of what is left, because bgctl has not created it.
pub(crate) fn remove_all(paths: &Paths) -> Result<Vec<PathBuf>, Error> {
    clear(paths)?;
    remove_directory(&paths.pin_root)?;
    let directories = [paths.maps(), paths.programs(), paths.links(), paths.pin_root.clone()];
    let left = directories.iter().map(|directory| entries(directory)).collect::<Result<Vec<_>, _>>()?;
    // Names with a dot are the kernel's own, because it accepts none from others.
    let is_foreign = |path: &PathBuf| !directories.contains(path) && path.extension().is_none();
    Ok(left.concat().into_iter().filter(is_foreign).collect())
}

/// Removes all pins, but not the pin root, which the caller has locked.
pub(crate) fn clear(paths: &Paths) -> Result<(), Error> {
    let of = |directory| entries(directory);
    fence::repair(paths);
    let first = vec![paths.map("meta"), paths.state_link(), paths.expedited()];
    let ordered = [of(&paths.links())?, of(&paths.programs())?, first, of(&paths.maps())?];
    for entry in ordered.concat() {
        // bgctl creates no directories there.
        if !fs::symlink_metadata(&entry).is_ok_and(|metadata| metadata.is_dir()) {
            remove(&entry)?;
        }
    }
    [paths.maps(), paths.programs(), paths.links()].iter().try_for_each(|directory| remove_directory(directory))
}

/// Removes a directory, unless it is not empty or is a mount point.
fn remove_directory(directory: &Path) -> Result<(), Error> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty | ResourceBusy) => {
            Err(Error::io("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a pin, if it exists.
pub(crate) fn remove(pin: &Path) -> Result<(), Error> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", pin)(error)),
        _ => Ok(()),
    }
}

/// The files of a directory; none if it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(Error::io("list", directory))?,
    };
    let mut paths: Vec<_> = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::io("list", directory))?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look at", path))
}

fn has_entries(directory: &Path) -> Result<bool, Error> {
    Ok(!entries(directory)?.is_empty())
}
