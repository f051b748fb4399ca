//! All maps of the object, BTF-defined, so that bpftool and libbpf load it as well as aya does.
//!
//! | map | key → value | who writes | what for |
//! | --- | --- | --- | --- |
//! | `live` | deployment → [`LiveWord`] | user space, by compare-exchange in mapped memory | the switch itself |
//! | `terms` | deployment → two [`SwitchTerms`] | user space, before the word of their parity | cuts and drain deadlines |
//! | `timing` | deployment → two [`Timing`] | the same; programs, when an instant has passed | schedules, ramps, confirmations |
//! | `holds` | deployment → [`Hold`] | programs and user space | queues of frozen deployments |
//! | `held` | 0 → records, see [`HeldHeader`] | programs; user space marks what it has played back | packets in these queues |
//! | `trips` | deployment → two [`Trips`] | user space, before the word of their parity; programs count in it | conditions that take a switch back |
//! | `refusals` | hash → two names of refused connections | programs, while a drain or a share lasts | second chance; see [`bg_ebpf::policy::refusals`] |
//! | `deployments` | deployment → [`DeploymentRow`] | user space | time-outs, name |
//! | `vip_index` | hash / 2 → two heads of lists of `vips` | user space | is a packet's destination a virtual address? |
//! | `vips` | 2 × service + role → [`Vip`] | user space | that, and the source that a reply gets back |
//! | `services` | [`ServiceKey`] → [`ServiceRow`] | user space, whole rows | where the flows of a virtual address go |
//! | `service_info` | service → [`ServiceInfo`] | user space | names; the programs do not read it |
//! | `backend_index` | hash / 2 → two heads of lists of `backends` | user space | is a packet's source a backend? |
//! | `backends` | slot → [`Backend`] | user space; programs cache the next hop in it | where a flow goes |
//! | `backend_info` | slot → [`BackendInfo`] | user space | weights; the programs do not read it |
//! | `tunnels` | slot → [`Tunnel`] | user space | outer headers of packets to a backend |
//! | `maglev` | entry / 2 → two slots of `backends` | user space | backend choice of new flows |
//! | `testers` | [`TesterKey`] prefix → deployment | user space | sources that reach the idle colour |
//! | `flows4`, `flows6` | bucket → rows | programs | open flows; see [`bg_ebpf::flow::table`] |
//! | `next_hops` | number → [`NumberedHop`] | programs | where clients' packets go |
//! | `traffic` | 2 × service + colour → [`Traffic`] | programs, per CPU | counters |
//! | `receipts` | deployment → [`SwitchTimes`] | programs, per CPU, while a switch is made | when new flows were decided |
//! | `events` | [`Event`] → count | programs, per CPU | drops by reason, and what came close |
//! | `scratch`, `route_call` | 0 → words | programs, per CPU | memory for one packet; see [`bg_ebpf::path::slow`] |
//! | `error_rate` | kind of error → an instant | programs | how many ICMP errors may be sent; see [`bg_ebpf::policy::error_rate`] |
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
    Backend, BackendInfo, Clock, DeploymentRow, Event, FLOW_WAYS, FlowHash, FlowKey4, FlowKey6, HEADS_PER_ROW,
    HELD_LOG_BYTES, Hold, LiveWord, MAX_DEPLOYMENTS, MAX_INTERFACES, MAX_NEXT_HOPS, MAX_TESTERS, Meta, NumberedHop,
    REFUSAL_ROWS, ServiceInfo, ServiceKey, ServiceRow, SwitchTerms, SwitchTimes, TableSizes, TesterKey, Timing,
    Traffic, Trips, Tunnel, Vip,
};
use bg_ebpf::{
    flow::key::Key as _,
    world::{RouteCall, SCRATCH_WORDS},
};

/// `BPF_F_MMAPABLE` of linux/bpf.h.
const MMAPABLE: usize = 1024;

// Sizes when nobody says otherwise; the loader sets them anew (`bgctl attach --flows`, `--services`, `--backends`), together with
// [`TABLE_SIZES`].

/// Rows of a flow table: of two rows one is to be free.
const FLOW_ROWS: usize = 2 * 262_144;
const FLOW_BUCKETS: usize = FLOW_ROWS / FLOW_WAYS as usize;
const SERVICES: usize = 1024;
const BACKENDS: usize = 16_384;
const VIP_HEADS: usize = 2 * SERVICES * HEADS_PER_ROW as usize;
const BACKEND_HEADS: usize = BACKENDS * HEADS_PER_ROW as usize;
const TABLE_ENTRIES: usize = 4 * 1024 * 1024;

/// What the tables are made of. Read-only, so that the verifier knows it, and leaves out what it rules out.
#[unsafe(no_mangle)]
pub(super) static TABLE_SIZES: TableSizes = TableSizes {
    flow_hash: FlowHash::PUBLIC,
    flow_masks: [FLOW_BUCKETS as u32 - 1; 2],
    vip_mask: VIP_HEADS as u32 - 1,
    backend_mask: BACKEND_HEADS as u32 - 1,
    weakly_ordered: 0,
    has_tai: 0,
};

/// The live word of each deployment.
#[btf_map(name = "live")]
pub(super) static LIVE: Array<LiveWord, { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// What a generation asks of open flows: two slots a deployment, chosen by the generation's parity.
#[btf_map(name = "terms")]
pub(super) static TERMS: Array<[SwitchTerms; 2], { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// When generations take effect and are taken back: slots as in `terms`.
#[btf_map(name = "timing")]
pub(super) static TIMING: Array<[Timing; 2], { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// The queue of each deployment for packets that are held.
#[btf_map(name = "holds")]
pub(super) static HOLDS: Array<Hold, { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// Packets in these queues.
#[btf_map(name = "held")]
pub(super) static HELD: Array<[u64; HELD_LOG_BYTES / 8], 1, MMAPABLE> = Array::new();

/// Conditions that take generations back: slots as in `terms`.
#[btf_map(name = "trips")]
pub(super) static TRIPS: Array<[Trips; 2], { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// Connections without a row that a colour has refused.
#[btf_map(name = "refusals")]
pub(super) static REFUSALS: Array<u64, { REFUSAL_ROWS as usize }, MMAPABLE> = Array::new();

/// Settings of each deployment.
#[btf_map(name = "deployments")]
pub(super) static DEPLOYMENTS: Array<DeploymentRow, { MAX_DEPLOYMENTS as usize }, MMAPABLE> = Array::new();

/// Heads of the lists of `vips`.
#[btf_map(name = "vip_index")]
pub(super) static VIP_INDEX: Array<[u32; 2], { VIP_HEADS / 2 }, MMAPABLE> = Array::new();

/// VIPs and preview addresses, by `2 * service + role`.
#[btf_map(name = "vips")]
pub(super) static VIPS: Array<Vip, { 2 * SERVICES }, MMAPABLE> = Array::new();

/// What stands behind a VIP or a preview address.
#[btf_map(name = "services")]
pub(super) static SERVICE_ROWS: HashMap<ServiceKey, ServiceRow, { 2 * SERVICES }> = HashMap::new();

/// Names and modes of services.
#[btf_map(name = "service_info")]
pub(super) static SERVICE_INFO: Array<ServiceInfo, SERVICES, MMAPABLE> = Array::new();

/// Heads of the lists of `backends`.
#[btf_map(name = "backend_index")]
pub(super) static BACKEND_INDEX: Array<[u32; 2], { BACKEND_HEADS / 2 }, MMAPABLE> = Array::new();

/// Backends of all services and colours.
#[btf_map(name = "backends")]
pub(super) static BACKEND_ROWS: Array<Backend, BACKENDS, MMAPABLE> = Array::new();

/// Weights of backends.
#[btf_map(name = "backend_info")]
pub(super) static BACKEND_INFO: Array<BackendInfo, BACKENDS, MMAPABLE> = Array::new();

/// Outer headers of packets to backends.
#[btf_map(name = "tunnels")]
pub(super) static TUNNELS: Array<Tunnel, BACKENDS, MMAPABLE> = Array::new();

/// The flat Maglev array; service rows hold spans of it.
/// Two entries a row, since the kernel pads a row to eight bytes.
#[btf_map(name = "maglev")]
pub(super) static MAGLEV: Array<[u32; 2], { TABLE_ENTRIES / 2 }, MMAPABLE> = Array::new();

/// Tester prefixes of all deployments.
#[btf_map(name = "testers")]
pub(super) static TESTERS: LpmTrie<TesterKey, u32, { MAX_TESTERS as usize }> = LpmTrie::new();

/// IPv4 flows.
#[btf_map(name = "flows4")]
pub(super) static FLOWS4: Array<[u64; FLOW_WAYS as usize * FlowKey4::ROW], FLOW_BUCKETS, MMAPABLE> = Array::new();

/// IPv6 flows.
#[btf_map(name = "flows6")]
pub(super) static FLOWS6: Array<[u64; FLOW_WAYS as usize * FlowKey6::ROW], FLOW_BUCKETS, MMAPABLE> = Array::new();

/// Next hops towards clients, by number.
#[btf_map(name = "next_hops")]
pub(super) static NEXT_HOPS: Array<NumberedHop, { MAX_NEXT_HOPS as usize }> = Array::new();

/// Traffic counters, by `2 * service + colour`.
#[btf_map(name = "traffic")]
pub(super) static TRAFFIC: PerCpuArray<Traffic, { 2 * SERVICES }> = PerCpuArray::new();

/// When new flows were decided around the last switch of each deployment.
#[btf_map(name = "receipts")]
pub(super) static RECEIPTS: PerCpuArray<SwitchTimes, { MAX_DEPLOYMENTS as usize }> = PerCpuArray::new();

/// Event counters, by [`Event`].
#[btf_map(name = "events")]
pub(super) static EVENTS: PerCpuArray<u64, { Event::COUNT as usize }> = PerCpuArray::new();

/// Memory for the slow path of the packet that a CPU processes.
#[btf_map(name = "scratch")]
pub(super) static SCRATCH: PerCpuArray<[u64; SCRATCH_WORDS], 1> = PerCpuArray::new();

/// Memory for a route look-up of that packet.
#[btf_map(name = "route_call")]
pub(super) static ROUTE_CALL: PerCpuArray<[u64; size_of::<RouteCall>() / 8], 1> = PerCpuArray::new();

/// The limits of ICMP errors: of those that tell what fits, in the second row, and of all others.
#[btf_map(name = "error_rate")]
pub(super) static ERROR_RATE: Array<u64, 2> = Array::new();

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

/// The MAC address (48 bits, first byte lowest) that an interface takes frames for, as tc has learned it from the kernel,
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
