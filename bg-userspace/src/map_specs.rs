//! The maps of an instance: their names, types and sizes.

use bg_common::{
    Backend, BackendInfo, Clock, DeploymentRow, Event, HELD_LOG_BYTES, Hold, LiveWord, MAX_DEPLOYMENTS, MAX_INTERFACES,
    MAX_NEXT_HOPS, MAX_TESTERS, Meta, NumberedHop, REFUSAL_ROWS, ServiceInfo, ServiceKey, ServiceRow, SwitchTerms,
    SwitchTimes, TesterKey, Timing, Traffic, Trips, Tunnel, Vip,
};

use crate::{
    flow_table::{Bucket4, Bucket6},
    sizes::Sizes,
};

/// The specification of a pinned map.
pub(crate) struct MapSpec {
    pub(crate) name: &'static str,
    pub(crate) key_size: usize,
    pub(crate) value_size: usize,
    kind: Kind,
    entries: fn(&Sizes) -> u32,
}

/// The kinds of maps, as far as they differ in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An array that user space maps into its memory.
    Mappable,
    Array,
    PerCpuArray,
    Hash,
    /// It takes memory as entries are added.
    Trie,
}

/// All pinned maps of an instance. `meta` is last, see [`crate::pins`]. `scratch` and `route_call` are not pinned, because their content only concerns the
/// program that has written it, for one packet, and `error_rate` is not, because nobody misses it.
pub(crate) const MAPS: [MapSpec; 30] = [
    mappable::<LiveWord>("live", |_| MAX_DEPLOYMENTS),
    mappable::<[SwitchTerms; 2]>("terms", |_| MAX_DEPLOYMENTS),
    mappable::<[Timing; 2]>("timing", |_| MAX_DEPLOYMENTS),
    mappable::<Hold>("holds", |_| MAX_DEPLOYMENTS),
    mappable::<[u64; HELD_LOG_BYTES / 8]>("held", |_| 1),
    mappable::<[Trips; 2]>("trips", |_| MAX_DEPLOYMENTS),
    mappable::<u64>("refusals", |_| REFUSAL_ROWS),
    mappable::<DeploymentRow>("deployments", |_| MAX_DEPLOYMENTS),
    mappable::<[u32; 2]>("vip_index", |sizes| sizes.vip_index_rows),
    mappable::<Vip>("vips", |sizes| 2 * sizes.services),
    map::<ServiceKey, ServiceRow>(Kind::Hash, "services", |sizes| 2 * sizes.services),
    mappable::<ServiceInfo>("service_info", |sizes| sizes.services),
    mappable::<[u32; 2]>("backend_index", |sizes| sizes.backend_index_rows),
    mappable::<Backend>("backends", |sizes| sizes.backends),
    mappable::<BackendInfo>("backend_info", |sizes| sizes.backends),
    mappable::<Tunnel>("tunnels", |sizes| sizes.backends),
    mappable::<[u32; 2]>("maglev", |sizes| sizes.maglev_rows),
    map::<(u32, TesterKey), u32>(Kind::Trie, "testers", |_| MAX_TESTERS),
    mappable::<Bucket4>("flows4", |sizes| sizes.flow_buckets[0]),
    mappable::<Bucket6>("flows6", |sizes| sizes.flow_buckets[1]),
    map::<u32, NumberedHop>(Kind::Array, "next_hops", |_| MAX_NEXT_HOPS),
    map::<u32, Traffic>(Kind::PerCpuArray, "traffic", |sizes| 2 * sizes.services),
    map::<u32, SwitchTimes>(Kind::PerCpuArray, "receipts", |_| MAX_DEPLOYMENTS),
    map::<u32, u64>(Kind::PerCpuArray, "events", |_| Event::COUNT),
    map::<u32, Clock>(Kind::Array, "clock", |_| 1),
    map::<u32, [u32; 2]>(Kind::Array, "egress", |_| MAX_INTERFACES),
    map::<u32, u64>(Kind::Array, "interfaces", |_| MAX_INTERFACES),
    map::<u32, u32>(Kind::Array, "next", |_| 1),
    map::<u32, u32>(Kind::Array, "fence", |_| 1),
    map::<u32, Meta>(Kind::Array, "meta", |_| 1),
];

const fn map<K, V>(kind: Kind, name: &'static str, entries: fn(&Sizes) -> u32) -> MapSpec {
    MapSpec { name, key_size: size_of::<K>(), value_size: size_of::<V>(), kind, entries }
}

const fn mappable<V>(name: &'static str, entries: fn(&Sizes) -> u32) -> MapSpec {
    map::<u32, V>(Kind::Mappable, name, entries)
}

impl MapSpec {
    /// The number of entries of the map in an instance of these sizes.
    pub(crate) fn entries(&self, sizes: &Sizes) -> u32 {
        (self.entries)(sizes)
    }

    /// Whether user space maps it into its memory.
    pub(crate) const fn is_mappable(&self) -> bool {
        matches!(self.kind, Kind::Mappable)
    }

    /// The bytes of memory that the map takes in an instance of these sizes, as the kernel counts them, exact to a page or two.
    pub(crate) fn bytes(&self, sizes: &Sizes) -> u64 {
        let entries = u64::from(self.entries(sizes));
        let [key, value] = [self.key_size, self.value_size].map(|size| size.next_multiple_of(8) as u64);
        let cpus = aya::util::nr_cpus().map_or(1, |cpus| cpus as u64);
        match self.kind {
            Kind::Mappable => 4096 + (entries * value).next_multiple_of(4096),
            Kind::Array => entries * value,
            Kind::PerCpuArray => entries * (8 + value * cpus),
            // The list, hash and pointers of an element, and the head and lock of a bucket.
            Kind::Hash => (entries + cpus) * (48 + key + value) + entries.next_power_of_two() * 16,
            Kind::Trie => 0,
        }
    }
}
