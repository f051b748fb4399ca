//! The pinned `live` map as any program can use it: mapped memory with one word per deployment.

use crate::config::DEPLOYMENT;
use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData};
use bg_common::{DeploymentRow, LiveWord};
use memmap2::{MmapOptions, MmapRaw};
use std::{
    os::fd::AsFd,
    os::fd::AsRawFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// A mapping of the first page of the `live` map, and the position of the word of [`DEPLOYMENT`] in it.
#[derive(Debug)]
pub struct Live {
    map: MmapRaw,
    index: usize,
}

impl Live {
    const LEN: usize = 4096;

    /// Maps `<pin-root>/maps/live`, and looks up the deployment's row in `<pin-root>/maps/deployments`.
    pub fn open(pin_root: &Path) -> Result<Self> {
        Ok(Self { index: index(pin_root, DEPLOYMENT)?, ..Self::first(pin_root)? })
    }

    /// The same, for a test that has written the first row itself.
    pub fn first(pin_root: &Path) -> Result<Self> {
        let path = pin_root.join("maps/live");
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let map =
            MmapOptions::new().len(Self::LEN).map_raw(map.fd().as_fd().as_raw_fd()).context("cannot map `live`")?;
        Ok(Self { map, index: 0 })
    }

    /// The word of the deployment.
    pub fn word(&self) -> LiveWord {
        // SAFETY: the mapping is a page of aligned 64-bit words that the kernel and other processes change
        // by atomic operations only, the index lies in it, and it lives as long as `self`.
        let word = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(self.index)) };
        LiveWord(word.load(Ordering::SeqCst))
    }
}

/// The index of the deployment with this name.
fn index(pin_root: &Path, name: &str) -> Result<usize> {
    let map = MapData::from_pin(pin_root.join("maps/deployments")).and_then(Map::from_map_data)?;
    let rows: Array<_, DeploymentRow> = map.try_into()?;
    for index in 0..(Live::LEN / size_of::<u64>()) as u32 {
        let row = rows.get(&index, 0)?;
        if row.in_use != 0 && row.name.starts_with(name.as_bytes()) && row.name[name.len()] == 0 {
            return Ok(index as usize);
        }
    }
    bail!("no deployment {name} in {}", pin_root.display())
}
