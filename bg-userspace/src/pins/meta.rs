//! The pinned map `meta`, which says of which version and network namespace an instance is.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use bg_common::{ABI_VERSION, Meta};

use super::files::unopened;
use crate::{
    Error, Paths,
    net::{self, Namespace},
};

/// Reads the `meta` of an instance.
pub(crate) fn read_meta(pin: &Path) -> Result<Meta, Error> {
    let foreign = |detail: String| Error::ForeignMap { path: pin.to_owned(), detail };
    let map = MapData::from_pin(pin).and_then(Map::from_map_data).map_err(|error| unopened(pin, error))?;
    let meta: Array<_, Meta> = map.try_into().map_err(|error: MapError| foreign(error.to_string()))?;
    meta.get(&0, 0).map_err(Error::map("read", "meta"))
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

#[cfg(test)]
mod tests {
    use bg_common::ABI_VERSION;

    #[test]
    fn the_document_names_the_present_version() {
        let document = include_str!("../../../docs/pinned-abi.md");
        for said in
            [format!("the ABI version, at present **{ABI_VERSION}**"), format!("\"abi_version\": {ABI_VERSION},")]
        {
            assert!(document.contains(&said), "docs/pinned-abi.md does not say {said}");
        }
    }
}
