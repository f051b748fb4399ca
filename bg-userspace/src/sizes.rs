//! The sizes of the maps of an instance.
//!
//! Three settings of `bgctl attach` determine them, and only this module computes the sizes from these settings. The sizes of an
//! existing instance are read from its maps.

use aya::maps::MapInfo;
use bg_common::{FLOW_WAYS, HEADS_PER_ROW, MAX_BACKENDS, MAX_SERVICES};

use crate::{Error, Paths, pins::unopened};

/// The default room for IPv4 flows, and for IPv6 flows.
pub const DEFAULT_FLOWS: u32 = 262_144;
/// The default room for services.
pub const DEFAULT_SERVICES: u32 = 1024;
/// The default room for backends.
pub const DEFAULT_BACKENDS: u32 = 16_384;

/// Rows of a flow table for each flow. Half of the rows should be free, because a fuller table sometimes evicts open flows.
const ROWS_PER_FLOW: u32 = 2;
/// Entries of the Maglev array for each service: one table for each colour, of up to eight backends of equal weight.
const ENTRIES_PER_SERVICE: u32 = 2 * 251;
/// Entries of the Maglev array for each backend: those of a larger table, if the weights are equal.
const ENTRIES_PER_BACKEND: u32 = 62;
/// Further entries: two tables of the greatest length, so that the tables of any service can be replaced.
const SPARE_ENTRIES: u32 = 2 * 65_537;

/// A setting of `bgctl attach` that determines sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    Flows,
    Services,
    Backends,
}

impl Setting {
    /// All settings.
    pub(crate) const ALL: [Self; 3] = [Self::Flows, Self::Services, Self::Backends];

    /// The most that there can be room for.
    pub(crate) const fn most(self) -> u32 {
        match self {
            Self::Flows => u32::MAX,
            Self::Services => MAX_SERVICES,
            Self::Backends => MAX_BACKENDS,
        }
    }

    /// The name of what is counted.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Services => "services",
            Self::Backends => "backends",
        }
    }
}

/// The sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Buckets of `flows4` and of `flows6`: powers of two, and at least two.
    pub(crate) flow_buckets: [u32; 2],
    /// Services.
    pub(crate) services: u32,
    /// Rows of `backends`.
    pub(crate) backends: u32,
    /// Rows of `maglev`, of two entries each.
    pub(crate) maglev_rows: u32,
    /// Rows of `vip_index`, of two heads each: a power of two.
    pub(crate) vip_index_rows: u32,
    /// Rows of `backend_index`, of two heads each: a power of two.
    pub(crate) backend_index_rows: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self::new(DEFAULT_FLOWS, DEFAULT_SERVICES, DEFAULT_BACKENDS)
    }
}

impl Sizes {
    /// The sizes for this many flows (IPv4 and IPv6 each), services and backends.
    pub(crate) fn new(flows: u32, services: u32, backends: u32) -> Self {
        let (services, backends) = (services.max(1), backends.max(2));
        let entries = ENTRIES_PER_SERVICE * services + ENTRIES_PER_BACKEND * backends + SPARE_ENTRIES;
        let index_rows = |rows: u32| (HEADS_PER_ROW * rows).next_power_of_two() / 2;
        Self {
            flow_buckets: [flow_buckets(flows); 2],
            services,
            backends,
            maglev_rows: entries.div_ceil(2),
            vip_index_rows: index_rows(2 * services),
            backend_index_rows: index_rows(backends),
        }
    }

    /// The sizes of the pinned maps.
    pub(crate) fn read(paths: &Paths) -> Result<Self, Error> {
        let entries = |name| {
            let pin = paths.map(name);
            MapInfo::from_pin(&pin).map(|info| info.max_entries()).map_err(|error| unopened(&pin, error))
        };
        Ok(Self {
            flow_buckets: [entries("flows4")?, entries("flows6")?],
            services: entries("service_info")?,
            backends: entries("backends")?,
            maglev_rows: entries("maglev")?,
            vip_index_rows: entries("vip_index")?,
            backend_index_rows: entries("backend_index")?,
        })
    }

    /// The sizes with one setting changed.
    pub(crate) fn with(self, setting: Setting, number: u32) -> Self {
        let [flows, services, backends] =
            Setting::ALL.map(|each| if each == setting { number } else { self.room(each) });
        Self::new(flows, services, backends)
    }

    /// The room for a setting.
    pub(crate) fn room(&self, setting: Setting) -> u32 {
        match setting {
            Setting::Flows => self.flow_buckets[0].saturating_mul(FLOW_WAYS) / ROWS_PER_FLOW,
            Setting::Services => self.services,
            Setting::Backends => self.backends,
        }
    }
}

/// The number of buckets of a table with room for this many flows.
fn flow_buckets(flows: u32) -> u32 {
    let rows = u64::from(flows) * u64::from(ROWS_PER_FLOW);
    // At most 2^30: more than any machine has memory for, so the kernel says so.
    (rows.div_ceil(FLOW_WAYS.into()) as u32).next_power_of_two().max(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maglev;

    #[test]
    fn a_table_of_flows_is_half_full_at_most() {
        for (flows, buckets) in [(1, 2), (8, 2), (9, 4), (1000, 256), (262_144, 65_536), (262_145, 131_072)] {
            assert_eq!(flow_buckets(flows), buckets, "{flows}");
            assert!(2 * flows <= buckets * FLOW_WAYS);
        }
        assert_eq!(flow_buckets(u32::MAX), 1 << 30);
    }

    #[test]
    fn what_is_asked_for_is_what_there_is_room_for() {
        let sizes = Sizes::new(1 << 20, 100, 3000);
        assert_eq!(Setting::ALL.map(|setting| sizes.room(setting)), [1 << 20, 100, 3000]);
        let heads = [2 * sizes.vip_index_rows, 2 * sizes.backend_index_rows];
        assert_eq!(heads, [HEADS_PER_ROW * 256, HEADS_PER_ROW * 4096]);
        let least = Sizes::new(0, 0, 0);
        assert_eq!(Setting::ALL.map(|setting| least.room(setting)), [8, 1, 2]);
        assert!(least.vip_index_rows.is_power_of_two() && least.backend_index_rows.is_power_of_two());
    }

    #[test]
    fn tables_of_equal_weights_always_fit() {
        for backends in 1..2000_u32 {
            let len = maglev::table_len(&vec![1; backends as usize]);
            // One colour has half of what a service has.
            assert!(len <= ENTRIES_PER_SERVICE / 2 + ENTRIES_PER_BACKEND * backends, "{backends}: {len}");
        }
    }
}
