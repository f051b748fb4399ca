//! What a pin root holds, and whether its maps are as this version creates them.

use std::path::Path;

use aya::maps::MapInfo;
use aya_obj::generated::BPF_F_MMAPABLE;
use bg_common::{ABI_VERSION, Meta};
use bytemuck::Zeroable as _;

use super::{
    files::{exists, has_entries, unopened},
    meta::read_meta,
};
use crate::{
    Error, Paths,
    attach::is_attached,
    map_specs::{MAPS, MapSpec},
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
