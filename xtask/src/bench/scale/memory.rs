//! The memory of pinned maps, as the kernel accounts for it.

use anyhow::{Context, Result};
use aya::maps::MapData;
use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

/// The bytes of each map in a directory of pins, by name.
pub(super) fn of_maps(pins: &Path) -> Result<Vec<(String, u64)>> {
    let mut maps = Vec::new();
    for entry in fs::read_dir(pins).with_context(|| format!("cannot list {}", pins.display()))? {
        let entry = entry?;
        let map = MapData::from_pin(entry.path())?;
        let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let octets = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        maps.push((entry.file_name().to_string_lossy().into_owned(), octets.context("no memlock of a map")?));
    }
    Ok(maps)
}
