//! What the pinned maps say of the health of backends, as any program can read it.

use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use bg_common::{Backend, BackendInfo, Family};
use std::{
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// The first rows of `backends` and `backend_info`.
pub struct BackendHealth {
    backends: Array<MapData, Backend>,
    info: Array<MapData, BackendInfo>,
}

impl BackendHealth {
    /// Labs have no more backends.
    const SLOTS: u32 = 64;
    const NAMES: [&'static str; 4] = ["unknown", "up", "down", "?"];

    /// Opens the maps below this pin root.
    pub fn open(pin_root: &Path) -> Result<Self> {
        let map = |name| MapData::from_pin(pin_root.join("maps").join(name)).and_then(Map::from_map_data);
        Ok(Self { backends: map("backends")?.try_into()?, info: map("backend_info")?.try_into()? })
    }

    /// The health of the backends with this address, of all services and colours, in the order of their slots.
    pub fn of(&self, address: SocketAddr) -> Result<Vec<&'static str>> {
        let mut found = Vec::new();
        for slot in 0..Self::SLOTS {
            let row = self.backends.get(&slot, 0)?;
            let family = Family::from_u8(row.family).unwrap_or(Family::V4);
            if row.identity.in_use != 0 && SocketAddr::new(row.addr.to_ip(family), row.port.host()) == address {
                found.push(Self::NAMES[(self.info.get(&slot, 0)?.health & 3) as usize]);
            }
        }
        Ok(found)
    }

    /// Waits until all backends with this address have this health. Returns how long that took.
    pub fn wait(&self, address: SocketAddr, health: &str, patience: Duration) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let found = self.of(address)?;
            if !found.is_empty() && found.iter().all(|found| *found == health) {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < patience, "{address} is {found:?} and not {health} after {patience:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
