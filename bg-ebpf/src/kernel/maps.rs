//! All maps of the object, BTF-defined, so that bpftool and libbpf load it as well as aya does.
//!
//! | map | key → value | who writes | what for |
//! | --- | --- | --- | --- |
//! | `live` | deployment → [`LiveWord`] | user space, by compare-exchange in mapped memory | the switch itself |
//! | `terms` | deployment → two [`SwitchTerms`] | user space, before the word of their parity | cuts and drain deadlines |
//! | `deployments` | deployment → [`DeploymentRow`] | user space | time-outs, name |
//! | `vip_filter` | hash → 64 bits | user space | spares most other packets the look-up in `services` |
//! | `services` | [`ServiceKey`] → [`ServiceRow`] | user space, whole rows | what a packet's destination is matched against |
//! | `vips` | 2 × service + role → [`ServiceKey`] | user space | the source that a reply gets back |
//! | `service_info` | service → [`ServiceInfo`] | user space | names; the programs do not read it |
//! | `backends` | slot → [`Backend`] | user space; programs cache the next hop in it | where a flow goes |
//! | `maglev` | entry / 2 → two slots of `backends` | user space | backend choice of new flows |
//! | `testers` | [`TesterKey`] prefix → deployment | user space | sources that reach the idle colour |
//! | `flows4`, `flows6` | bucket → entries | programs | open flows, an entry for each direction; see [`bg_ebpf::flow_table`] |
//! | `next_hops` | number → [`NumberedHop`] | programs | where clients' packets go |
//! | `traffic` | 2 × service + colour → [`Traffic`] | programs, per CPU | counters |
//! | `events` | [`Event`] → count | programs, per CPU | drops by reason, and what came close |
//! | `desk` | 0 → words | programs, per CPU | memory for one packet; see [`bg_ebpf::desk`] |
//! | `meta` | 0 → [`Meta`] | user space, once | ABI version of the instance |
//! | `clock` | 0 → [`Clock`] | the program `read_clock` | turns ticks into time |
//! | `egress` | ifindex → interface | user space | interfaces that XDP may redirect frames to |
//! | `interfaces` | ifindex → MAC address, or [`TAKES_ALL`] | tc; user space for ports of a bridge | which frames are this host's |
//! | `next` | 0 → XDP program | user space | who gets what is not ours |
//! | `fence` | 0 → an inner map | user space | an update waits until no program holds an old word |
//!
//! Arrays that user space maps into its memory carry [`MMAPABLE`]: the switch is a compare-exchange there, and
//! reading back the running state costs no system call a row.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, DevMap, HashMap, LpmTrie, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use bg_common::{
    Backend, Clock, DeploymentRow, Event, FILTER_BITS, FlowHash, FlowTables, LiveWord, MAX_BACKENDS, MAX_DEPLOYMENTS,
    MAX_INTERFACES, MAX_NEXT_HOPS, MAX_SERVICES, MAX_TABLE_ENTRIES, MAX_TESTERS, Meta, NumberedHop, ServiceInfo,
    ServiceKey, ServiceRow, SwitchTerms, TesterKey, Traffic,
};
#[cfg(feature = "lru")]
use {
    aya_ebpf::btf_maps::LruHashMap,
    bg_common::{Flow, FlowKey4, FlowKey6},
};
#[cfg(not(feature = "lru"))]
use {
    bg_common::{FLOW_WAYS, FlowKey4, FlowKey6},
    bg_ebpf::flow_table::Tuple,
};

/// `BPF_F_MMAPABLE` of linux/bpf.h.
const MMAPABLE: usize = 1024;

/// Entries of a flow table when nobody says otherwise: twice as many as 262,144 flows have, for each has one a
/// direction. The loader sets it anew (`bgctl attach --flows`), together with [`FLOW_TABLES`].
const FLOW_ENTRIES: usize = 2 * 2 * 262_144;

#[cfg(not(feature = "lru"))]
const FLOW_BUCKETS: usize = FLOW_ENTRIES / FLOW_WAYS as usize;

/// What the flow tables are made of. Read-only, so that the verifier knows it, and leaves out what it rules out.
#[unsafe(no_mangle)]
pub(super) static FLOW_TABLES: FlowTables = FlowTables {
    hash: FlowHash::PUBLIC,
    masks: [(FLOW_ENTRIES / bg_common::FLOW_WAYS as usize) as u32 - 1; 2],
    weakly_ordered: 0,
};

/// The live word of each deployment.
#[btf_map(name = "live")]
pub(super) static LIVE: Array<LiveWord, { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// What a generation asks of open flows: two slots a deployment, chosen by the generation's parity.
#[btf_map(name = "terms")]
pub(super) static TERMS: Array<[SwitchTerms; 2], { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// Settings of each deployment.
#[btf_map(name = "deployments")]
pub(super) static DEPLOYMENTS: Array<DeploymentRow, { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// Hashes of VIPs and preview addresses: a bit that is set says that none has it. All zeros is always right.
#[btf_map(name = "vip_filter")]
pub(super) static VIP_FILTER: Array<u64, { FILTER_BITS as usize / 64 }, MMAPABLE> = Array::new();

/// VIPs and preview addresses.
#[btf_map(name = "services")]
pub(super) static SERVICES: HashMap<ServiceKey, ServiceRow, { 2 * MAX_SERVICES as usize }> = HashMap::new();

/// Both addresses of each service, by `2 * service + role`.
#[btf_map(name = "vips")]
pub(super) static VIPS: Array<ServiceKey, { 2 * MAX_SERVICES as usize }, MMAPABLE> = Array::new();

/// Names and modes of services.
#[btf_map(name = "service_info")]
pub(super) static SERVICE_INFO: Array<ServiceInfo, { MAX_SERVICES as usize }, MMAPABLE> = Array::new();

/// Backends of all services and colours.
#[btf_map(name = "backends")]
pub(super) static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();

/// The flat Maglev array; service rows hold spans of it.
/// Two entries a row, since the kernel pads a row to eight octets.
#[btf_map(name = "maglev")]
pub(super) static MAGLEV: Array<[u32; 2], { MAX_TABLE_ENTRIES as usize / 2 }, MMAPABLE> = Array::new();

/// Tester prefixes of all deployments.
#[btf_map(name = "testers")]
pub(super) static TESTERS: LpmTrie<TesterKey, u32, { MAX_TESTERS as usize }> = LpmTrie::new();

/// IPv4 flows, both directions.
#[cfg(not(feature = "lru"))]
#[btf_map(name = "flows4")]
pub(super) static FLOWS4: Array<[u64; FLOW_WAYS as usize * FlowKey4::ENTRY], FLOW_BUCKETS, MMAPABLE> = Array::new();

/// IPv6 flows, both directions.
#[cfg(not(feature = "lru"))]
#[btf_map(name = "flows6")]
pub(super) static FLOWS6: Array<[u64; FLOW_WAYS as usize * FlowKey6::ENTRY], FLOW_BUCKETS, MMAPABLE> = Array::new();

/// The kernel's own table in their place, to compare with.
#[cfg(feature = "lru")]
#[btf_map(name = "flows4")]
pub(super) static FLOWS4: LruHashMap<FlowKey4, Flow, FLOW_ENTRIES> = LruHashMap::new();

/// As above.
#[cfg(feature = "lru")]
#[btf_map(name = "flows6")]
pub(super) static FLOWS6: LruHashMap<FlowKey6, Flow, FLOW_ENTRIES> = LruHashMap::new();

/// Next hops towards clients, by number.
#[btf_map(name = "next_hops")]
pub(super) static NEXT_HOPS: Array<NumberedHop, { MAX_NEXT_HOPS as usize }> = Array::new();

/// Traffic counters, by `2 * service + colour`.
#[btf_map(name = "traffic")]
pub(super) static TRAFFIC: PerCpuArray<Traffic, { 2 * MAX_SERVICES as usize }> = PerCpuArray::new();

/// Event counters, by [`Event`].
#[btf_map(name = "events")]
pub(super) static EVENTS: PerCpuArray<u64, { Event::COUNT as usize }> = PerCpuArray::new();

/// Memory for the packet that a CPU is at.
#[btf_map(name = "desk")]
pub(super) static DESK: PerCpuArray<[u64; bg_ebpf::desk::WORDS], 1> = PerCpuArray::new();

/// The instance's description of itself.
#[btf_map(name = "meta")]
pub(super) static META: Array<Meta, 1> = Array::new();

/// Both clocks at one moment.
#[btf_map(name = "clock")]
pub(super) static CLOCK: Array<Clock, 1> = Array::new();

/// Interfaces that XDP may redirect frames to, keyed by ifindex. The kernel lets programs of one type use such a
/// map; those of tc need none.
#[btf_map(name = "egress")]
pub(super) static EGRESS: DevMap<{ MAX_INTERFACES as usize }> = DevMap::new();

/// The MAC address (48 bits, first octet lowest) that an interface takes frames for, as tc has learned it from the kernel,
/// keyed by ifindex.
#[btf_map(name = "interfaces")]
pub(super) static INTERFACES: Array<u64, { MAX_INTERFACES as usize }> = Array::new();

/// The program behind this one in the interface's chain.
#[btf_map(name = "next")]
pub(super) static NEXT: ProgramArray<1> = ProgramArray::new();

/// Never read by a program: user space updates its slot, and the kernel returns from that system call
/// only after every program that ran at the time has ended.
#[btf_map(name = "fence")]
pub(super) static FENCE: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();
