//! The pinned `live` map as any program sees it: mapped memory, one word a deployment.

use anyhow::{Context, Result};
use aya::maps::MapData;
use bg_common::LiveWord;
use memmap2::{MmapOptions, MmapRaw};
use std::{
    os::fd::AsFd,
    os::fd::AsRawFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// A mapping of the first page of the `live` map.
#[derive(Debug)]
pub struct Live {
    map: MmapRaw,
}

impl Live {
    const LEN: usize = 4096;

    /// Maps `<pin-root>/maps/live`.
    pub fn open(pin_root: &Path) -> Result<Self> {
        let path = pin_root.join("maps/live");
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let map =
            MmapOptions::new().len(Self::LEN).map_raw(map.fd().as_fd().as_raw_fd()).context("cannot map `live`")?;
        Ok(Self { map })
    }

    /// The word of the deployment at this index of the map; the first to be applied has index 0.
    pub fn word(&self, deployment: usize) -> LiveWord {
        assert!(deployment < Self::LEN / size_of::<u64>());
        // SAFETY: the mapping is a page of aligned 64-bit words that the kernel and other processes change
        // by atomic operations only, and it lives as long as `self`.
        let word = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(deployment)) };
        LiveWord(word.load(Ordering::SeqCst))
    }
}
