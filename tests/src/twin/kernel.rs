//! The loaded programs. System calls fill the maps, and `BPF_PROG_TEST_RUN` runs frames.

use super::{Flows, Indexed, Outcome, Scenario, bytes::bytes_of, copies::Copies, flows_of};
use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _,
    maps::{Array, DevMap, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key as PrefixKey},
    programs::{SchedClassifier, TestRunOptions, Xdp},
};
use bg_common::{
    Backend, Clock, Colour, DeploymentRow, Event, FLOW_WAYS, FlowHash, FlowKey4, FlowKey6, Hold, LiveWord, Meta,
    NextHop, REFUSAL_ROWS, ServiceKey, ServiceRow, SwitchTerms, TICK_SHIFT, TableSizes, TesterKey, Timing, Traffic,
    Trips, Tunnel, Vip,
};
use bg_ebpf::{Action, flow::key::Key as _};
use memmap2::{MmapOptions, MmapRaw};
use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

/// A program that can be run on frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// XDP.
    Xdp,
    /// tc ingress.
    TcIngress,
    /// tc egress.
    TcEgress,
}

/// Rows of `maglev`, which the scenarios of tests do not fill.
const MAGLEV_ROWS: u32 = 1 << 16;

/// The sizes of a loaded object's tables, which are powers of two.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of each flow table.
    pub rows: u32,
    /// Heads of each index.
    pub heads: u32,
}

impl From<u32> for Sizes {
    /// This many rows, and indexes with short lists.
    fn from(rows: u32) -> Self {
        Self { rows, heads: 1024 }
    }
}

/// Ticks for which XDP uses a next hop that was made fresh. Later, it leaves a packet to tc, which asks for the neighbour.
pub const FRESH: u32 = 2;

/// A loaded object, which is not attached.
pub struct Kernel {
    object: Ebpf,
    copies: Option<Copies>,
    sizes: Sizes,
}

impl Kernel {
    /// Loads the object under test: the one that `BGCTL_BPF_OBJECT` names, else the committed object.
    pub fn load(sizes: impl Into<Sizes>) -> Result<Self> {
        let path = std::env::var_os("BGCTL_BPF_OBJECT").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bg-userspace/bpf/bg.bpf.o"),
            PathBuf::from,
        );
        Self::load_object(&path, sizes)
    }

    /// Loads an object.
    pub fn load_object(path: &Path, sizes: impl Into<Sizes>) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let sizes = sizes.into();
        let Sizes { rows, heads } = sizes;
        let buckets = rows / FLOW_WAYS;
        ensure!(buckets.is_power_of_two() && buckets > 1, "{rows} is no number of rows");
        ensure!(heads.is_power_of_two() && heads > 1, "{heads} is no number of heads");
        let tables = TableSizes {
            flow_hash: FlowHash::PUBLIC,
            flow_masks: [buckets - 1; 2],
            vip_mask: heads - 1,
            backend_mask: heads - 1,
            weakly_ordered: 0,
            has_tai: 1,
        };
        let mut object = EbpfLoader::new()
            .map_max_entries("flows4", buckets)
            .map_max_entries("flows6", buckets)
            .map_max_entries("vip_index", heads / 2)
            .map_max_entries("backend_index", heads / 2)
            .map_max_entries("maglev", MAGLEV_ROWS)
            .override_global("TABLE_SIZES", &tables, true)
            .load(&bytes)
            .with_context(|| format!("cannot load {}", path.display()))?;
        for name in ["ingress", "read_clock"] {
            let program: &mut Xdp = object.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        for name in ["tc_ingress", "tc_egress"] {
            let program: &mut SchedClassifier = object.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        Ok(Self { object, copies: None, sizes })
    }

    /// The object itself.
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    /// An array map.
    pub fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.object.map_mut(name).with_context(|| format!("no map {name}"))?.try_into()?)
    }

    /// A hash map.
    pub fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(self.object.map_mut(name).with_context(|| format!("no map {name}"))?.try_into()?)
    }

    /// Writes a scenario to the maps. Next hops are fresh for about a quarter of a second.
    pub fn fill(&mut self, scenario: &Scenario) -> Result<()> {
        let tick = self.tick()?;
        self.array("meta")?.set(
            0,
            Meta {
                abi_version: bg_common::ABI_VERSION,
                hz: 0,
                identity: [0; 2],
                netns_cookie: 0,
                flow_hash: FlowHash::PUBLIC,
            },
            0,
        )?;
        self.set_deployments(scenario)?;
        self.forget_refusals()?;
        for (key, row) in &scenario.services {
            self.hash::<ServiceKey, ServiceRow>("services")?.insert(key, row, 0)?;
        }
        let Indexed { vip_heads, vips, backend_heads, backends } = scenario.indexed(self.sizes.heads);
        self.set_halves("vip_index", &vip_heads)?;
        self.set_halves("backend_index", &backend_heads)?;
        self.set_maglev(scenario)?;
        for (row, vip) in vips.iter().enumerate() {
            self.array::<Vip>("vips")?.set(row as u32, vip, 0)?;
        }
        for (slot, backend) in backends.iter().enumerate() {
            // A backend without a next hop is one that the stack has to find the way to.
            let next_hop = NextHop { learned: tick, asked: tick.wrapping_sub(2), ..backend.next_hop };
            self.array::<Backend>("backends")?.set(slot as u32, Backend { next_hop, ..*backend }, 0)?;
            if next_hop.is_some() {
                let mut egress: DevMap<_> = self.object.map_mut("egress").context("egress")?.try_into()?;
                // Loopback stands for it: nothing is sent in a test run.
                egress.set(next_hop.ifindex(), 1, None, 0)?;
            }
        }
        for (slot, tunnel) in scenario.tunnels.iter().enumerate() {
            self.array::<Tunnel>("tunnels")?.set(slot as u32, tunnel, 0)?;
        }
        for (prefix, key) in &scenario.testers {
            let mut testers: LpmTrie<_, TesterKey, u32> =
                self.object.map_mut("testers").context("testers")?.try_into()?;
            testers.insert(&PrefixKey::new(TesterKey::PREFIX_BITS + prefix, *key), 1, 0)?;
        }
        Ok(())
    }

    /// Writes the Maglev tables of a scenario.
    pub fn set_maglev(&mut self, scenario: &Scenario) -> Result<()> {
        self.set_halves("maglev", &scenario.maglev)
    }

    /// Sets an array of words, with two words per row.
    fn set_halves(&mut self, name: &str, words: &[u32]) -> Result<()> {
        for (row, pair) in words.chunks(2).enumerate() {
            let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
            self.array::<[u32; 2]>(name)?.set(row as u32, pair, 0)?;
        }
        Ok(())
    }

    /// Makes the scenario's next hops fresh again. Returns the tick; XDP uses them until [`FRESH`] ticks later.
    pub fn refresh_next_hops(&mut self, scenario: &Scenario) -> Result<u32> {
        let tick = self.tick()?;
        let mut rows = self.array::<Backend>("backends")?;
        for (slot, backend) in scenario.backends.iter().enumerate() {
            let row = rows.get(&(slot as u32), 0)?;
            let next_hop = NextHop { learned: tick, asked: tick.wrapping_sub(2), ..backend.next_hop };
            rows.set(slot as u32, Backend { next_hop, ..row }, 0)?;
        }
        Ok(tick)
    }

    /// Writes settings, words and terms to the maps.
    pub fn set_deployments(&mut self, scenario: &Scenario) -> Result<()> {
        for (index, (row, word, terms)) in scenario.deployments.iter().enumerate() {
            let index = index as u32;
            self.array::<DeploymentRow>("deployments")?.set(index, row, 0)?;
            self.array::<[SwitchTerms; 2]>("terms")?.set(index, terms, 0)?;
            self.array::<[Timing; 2]>("timing")?.set(index, [Timing::default(); 2], 0)?;
            self.array::<[Trips; 2]>("trips")?.set(index, [Trips::default(); 2], 0)?;
            self.array::<LiveWord>("live")?.set(index, word, 0)?;
        }
        Ok(())
    }

    /// Switches: stores the terms of a word, then the word.
    pub fn set_live(&mut self, deployment: u16, word: LiveWord, terms: SwitchTerms) -> Result<()> {
        let mut both = self.terms(deployment)?;
        both[word.terms_slot()] = terms;
        self.array::<[SwitchTerms; 2]>("terms")?.set(deployment.into(), both, 0)?;
        self.array::<LiveWord>("live")?.set(deployment.into(), word, 0)?;
        Ok(())
    }

    /// Stores the timing of a word, before [`set_live`](Self::set_live).
    pub fn set_timing(&mut self, deployment: u16, word: LiveWord, timing: Timing) -> Result<()> {
        let mut both = self.timings(deployment)?;
        both[word.terms_slot()] = timing;
        Ok(self.array::<[Timing; 2]>("timing")?.set(deployment.into(), both, 0)?)
    }

    /// Sets the queue of a deployment.
    pub fn set_queue(&mut self, deployment: u32, queue: Hold) -> Result<()> {
        Ok(self.array("holds")?.set(deployment, queue, 0)?)
    }

    /// Empties the log of held packets.
    pub fn forget_held(&mut self) -> Result<()> {
        let Some(Map::Array(data)) = self.object.map("held") else { bail!("held is no array") };
        let log = MmapOptions::new().len(4096).map_raw(data.fd().as_fd().as_raw_fd())?;
        // SAFETY: the mapping is so long, and no program runs.
        unsafe { log.as_mut_ptr().cast::<u64>().write_volatile(0) };
        Ok(())
    }

    /// Both timings of a deployment.
    pub fn timings(&mut self, deployment: u16) -> Result<[Timing; 2]> {
        Ok(self.array("timing")?.get(&deployment.into(), 0)?)
    }

    /// Stores the conditions of a word.
    pub fn set_trips(&mut self, deployment: u16, word: LiveWord, trips: Trips) -> Result<()> {
        let mut both = self.trips(deployment)?;
        both[word.terms_slot()] = trips;
        Ok(self.array::<[Trips; 2]>("trips")?.set(deployment.into(), both, 0)?)
    }

    /// Both slots of conditions of a deployment.
    pub fn trips(&mut self, deployment: u16) -> Result<[Trips; 2]> {
        Ok(self.array("trips")?.get(&deployment.into(), 0)?)
    }

    /// The first page of the live words, mapped.
    pub fn live_page(&self) -> Result<MmapRaw> {
        let Some(Map::Array(data)) = self.object.map("live") else { bail!("live is no array") };
        Ok(MmapOptions::new().len(4096).map_raw(data.fd().as_fd().as_raw_fd())?)
    }

    /// The live word of a deployment.
    pub fn word(&mut self, deployment: u16) -> Result<LiveWord> {
        Ok(self.array("live")?.get(&deployment.into(), 0)?)
    }

    /// Both terms of a deployment.
    pub fn terms(&mut self, deployment: u16) -> Result<[SwitchTerms; 2]> {
        Ok(self.array("terms")?.get(&deployment.into(), 0)?)
    }

    /// The present tick of the data path.
    pub fn tick(&mut self) -> Result<u32> {
        let program: &mut Xdp = self.object.program_mut("read_clock").context("read_clock")?.try_into()?;
        program.test_run(TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() })?;
        let clock: Clock = self.array("clock")?.get(&0, 0)?;
        Ok((clock.jiffies >> TICK_SHIFT) as u32)
    }

    /// Runs a program on one frame.
    pub fn run(&mut self, program: Program, frame: &[u8]) -> Result<Outcome> {
        run(&mut self.object, program, frame)
    }

    /// Runs `tc_ingress` on the copy of a frame for a colour.
    pub fn run_copy(&mut self, frame: &[u8], colour: Colour) -> Result<Outcome> {
        let copies = match &mut self.copies {
            Some(copies) => copies,
            none => none.insert(Copies::new(tc(&mut self.object, "tc_ingress")?.fd()?.as_fd())?),
        };
        let mut out = vec![0; frame.len() + 256];
        let code = copies.run(colour, frame, &mut out)?;
        outcome(Program::TcIngress, code, out, frame)
    }

    /// The sizes of its tables.
    pub(super) const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// What the maps hold that programs can write to, by name: of `all` of them, or of those that are mapped into memory.
    pub fn bytes(&self, all: bool) -> Result<Vec<(String, Vec<u8>)>> {
        let mut held = Vec::new();
        for (name, map) in self.object.maps() {
            // These are of each load alone.
            if !["scratch", "route_call", "error_rate"].contains(&name)
                && let Some(bytes) = bytes_of(map, all)?
            {
                held.push((name.to_owned(), bytes));
            }
        }
        Ok(held)
    }

    /// All flows.
    pub fn flows(&self) -> Result<Flows> {
        Ok(flows_of(self.rows("flows4", FlowKey4::ROW)?, self.rows("flows6", FlowKey6::ROW)?))
    }

    /// Removes all flows.
    pub fn forget_flows(&mut self) -> Result<()> {
        for (name, words) in [("flows4", FlowKey4::ROW), ("flows6", FlowKey6::ROW)] {
            let memory = self.flow_memory(name, words)?;
            // SAFETY: the mapping is so long, and no program runs.
            unsafe { memory.as_mut_ptr().write_bytes(0, memory.len()) };
        }
        Ok(())
    }

    /// Forgets which connections have been refused.
    fn forget_refusals(&mut self) -> Result<()> {
        let Some(Map::Array(data)) = self.object.map("refusals") else { bail!("refusals is no array") };
        let rows = MmapOptions::new().len(8 * REFUSAL_ROWS as usize).map_raw(data.fd().as_fd().as_raw_fd())?;
        // SAFETY: the mapping is so long, and no program runs.
        unsafe { rows.as_mut_ptr().write_bytes(0, rows.len()) };
        Ok(())
    }

    fn flow_memory(&self, name: &str, words: usize) -> Result<MmapRaw> {
        let Some(Map::Array(data)) = self.object.map(name) else { bail!("{name} is no array") };
        let len = self.sizes.rows as usize * words * 8;
        Ok(MmapOptions::new().len(len).map_raw(data.fd().as_fd().as_raw_fd())?)
    }

    /// The rows of a flow table, with this many words each.
    fn rows(&self, name: &str, words: usize) -> Result<Vec<Vec<u64>>> {
        let memory = self.flow_memory(name, words)?;
        let mut all = vec![0_u64; memory.len() / 8];
        // SAFETY: the mapping is so long, and no program runs.
        unsafe { std::ptr::copy_nonoverlapping(memory.as_mut_ptr().cast(), all.as_mut_ptr(), all.len()) };
        Ok(all.chunks(words).map(<[u64]>::to_vec).collect())
    }

    /// All events with their counts, over all CPUs.
    pub fn all_events(&mut self) -> Result<[u64; Event::COUNT as usize]> {
        let events: PerCpuArray<_, u64> = self.object.map("events").context("events")?.try_into()?;
        let mut sums = [0; Event::COUNT as usize];
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = events.get(&(row as u32), 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// The traffic of a service and colour, over all CPUs.
    pub fn traffic(&mut self, service: u16, colour: u8) -> Result<Traffic> {
        let rows: PerCpuArray<_, Traffic> = self.object.map("traffic").context("traffic")?.try_into()?;
        let mut sum = Traffic::default();
        for row in rows.get(&(2 * u32::from(service) + u32::from(colour)), 0)?.iter() {
            sum.packets += row.packets;
            sum.bytes += row.bytes;
            sum.flows_opened += row.flows_opened;
            sum.mirrored += row.mirrored;
        }
        Ok(sum)
    }
}

/// Runs a program of an object on one frame.
pub(super) fn run(object: &mut Ebpf, program: Program, frame: &[u8]) -> Result<Outcome> {
    let mut out = vec![0; frame.len() + 256];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = match program {
        Program::Xdp => xdp(object, "ingress")?.test_run(options)?,
        Program::TcIngress => tc(object, "tc_ingress")?.test_run(options)?,
        Program::TcEgress => tc(object, "tc_egress")?.test_run(options)?,
    };
    out.truncate(result.data_size_out as usize);
    outcome(program, result.return_value, out, frame)
}

/// What a program's return value says of a frame, which is `out` now.
fn outcome(program: Program, code: u32, out: Vec<u8>, frame: &[u8]) -> Result<Outcome> {
    // enum xdp_action (linux/bpf.h), TC_ACT_* (linux/pkt_cls.h).
    let action = match (program, code as i32) {
        (Program::Xdp, 1) => Action::Drop,
        (Program::Xdp, 2) => {
            if out == frame {
                Action::Pass
            } else {
                Action::Deliver
            }
        }
        (Program::Xdp, 3 | 4) => Action::Redirect,
        (Program::TcIngress | Program::TcEgress, -1) => {
            if out == frame {
                Action::Pass
            } else {
                Action::Deliver
            }
        }
        (Program::TcIngress | Program::TcEgress, 2) => Action::Drop,
        (Program::TcIngress | Program::TcEgress, 7) => Action::Redirect,
        (_, code) => bail!("{program:?} returned {code}"),
    };
    Ok(Outcome { action, frame: out })
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn tc<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
