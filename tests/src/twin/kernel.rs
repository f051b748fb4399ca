//! The loaded program: maps filled by system calls, frames run by `BPF_PROG_TEST_RUN`.

use super::{Flows, Outcome, Scenario, comparable, key4, key6};
use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _,
    maps::{Array, DevMap, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key as PrefixKey},
    programs::{SchedClassifier, TestRunOptions, Xdp},
};
use bg_common::{
    Addr, Backend, Clock, DeploymentRow, Event, FILTER_BITS, FLOW_WAYS, Flow, FlowHash, FlowKey4, FlowKey6, FlowState,
    FlowTables, LiveWord, Meta, NextHop, ServiceKey, ServiceRow, SwitchTerms, TICK_SHIFT, TesterKey, Traffic,
};
use bg_ebpf::{Action, choice::filter_hash};
use memmap2::{MmapOptions, MmapRaw};
use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

/// A program that frames can be run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// XDP.
    Xdp,
    /// tc, into the host.
    TcIngress,
    /// tc, out of the host.
    TcEgress,
}

/// A loaded object, attached to nothing.
pub struct Kernel {
    object: Ebpf,
    /// Rows of each flow table.
    rows: u32,
}

impl Kernel {
    /// Flows that the tables are made for.
    pub const FLOWS: u32 = 65_536;

    /// Loads the object under test: the one that `BGCTL_BPF_OBJECT` names, else the committed one. Each flow table gets
    /// `flow_entries` entries, a power of two, of which a flow takes two.
    pub fn load(flow_entries: u32) -> Result<Self> {
        let path = std::env::var_os("BGCTL_BPF_OBJECT").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bg-userspace/bpf/bg.bpf.o"),
            PathBuf::from,
        );
        Self::load_object(&path, flow_entries)
    }

    /// Loads an object, whether its flow tables are this project's own or the kernel's.
    pub fn load_object(path: &Path, flow_entries: u32) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parsed = aya_obj::Object::parse(&bytes).with_context(|| format!("cannot parse {}", path.display()))?;
        let is_array = parsed.maps.get("flows4").context("no map flows4")?.map_type()
            == aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        let rows = if is_array { flow_entries / FLOW_WAYS } else { flow_entries };
        ensure!(rows.is_power_of_two() && rows > 1, "{flow_entries} is no number of entries");
        let tables = FlowTables { hash: FlowHash::PUBLIC, masks: [rows - 1; 2], weakly_ordered: 0 };
        let mut object = EbpfLoader::new()
            .map_max_entries("flows4", rows)
            .map_max_entries("flows6", rows)
            .override_global("FLOW_TABLES", &tables, is_array)
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
        Ok(Self { object, rows })
    }

    /// The object itself, for what is not offered here.
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

    /// Puts a scenario into the maps. Next hops are fresh for about a quarter of a second.
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
        for (key, row) in &scenario.services {
            self.hash::<ServiceKey, ServiceRow>("services")?.insert(key, row, 0)?;
        }
        let mut filter = vec![u64::MAX; FILTER_BITS as usize / 64];
        for (key, _) in &scenario.services {
            let hash = filter_hash(key);
            filter[hash as usize / 64] &= !(1 << (hash % 64));
        }
        for (row, word) in filter.into_iter().enumerate() {
            self.array::<u64>("vip_filter")?.set(row as u32, word, 0)?;
        }
        for (row, key) in &scenario.vips {
            self.array::<ServiceKey>("vips")?.set(*row, key, 0)?;
        }
        for (slot, backend) in scenario.backends.iter().enumerate() {
            // A backend without a next hop is one that the stack has to find the way to.
            let next_hop = NextHop { learned: tick, asked: tick.wrapping_sub(2), ..backend.next_hop };
            self.array::<Backend>("backends")?.set(slot as u32, Backend { next_hop, ..*backend }, 0)?;
            if next_hop.is_some() {
                let mut egress: DevMap<_> = self.object.map_mut("egress").context("egress")?.try_into()?;
                // Loopback stands for it: nothing is sent in a test run.
                egress.set(next_hop.ifindex(), 1, None, 0)?;
            }
        }
        for (row, pair) in scenario.maglev.chunks(2).enumerate() {
            let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
            self.array::<[u32; 2]>("maglev")?.set(row as u32, pair, 0)?;
        }
        for (prefix, key) in &scenario.testers {
            let mut testers: LpmTrie<_, TesterKey, u32> =
                self.object.map_mut("testers").context("testers")?.try_into()?;
            testers.insert(&PrefixKey::new(TesterKey::PREFIX_BITS + prefix, *key), 1, 0)?;
        }
        Ok(())
    }

    /// Makes the scenario's next hops fresh again.
    pub fn refresh_next_hops(&mut self, scenario: &Scenario) -> Result<()> {
        let tick = self.tick()?;
        let mut backends = self.array::<Backend>("backends")?;
        for (slot, backend) in scenario.backends.iter().enumerate() {
            let next_hop = NextHop { learned: tick, asked: tick.wrapping_sub(2), ..backend.next_hop };
            backends.set(slot as u32, Backend { next_hop, ..*backend }, 0)?;
        }
        Ok(())
    }

    /// Puts words and terms into the maps.
    pub fn set_deployments(&mut self, scenario: &Scenario) -> Result<()> {
        for (index, (row, word, terms)) in scenario.deployments.iter().enumerate() {
            let index = index as u32;
            self.array::<DeploymentRow>("deployments")?.set(index, row, 0)?;
            self.array::<[SwitchTerms; 2]>("terms")?.set(index, terms, 0)?;
            self.array::<LiveWord>("live")?.set(index, word, 0)?;
        }
        Ok(())
    }

    /// What the data path's coarse clock says.
    pub fn tick(&mut self) -> Result<u32> {
        let program: &mut Xdp = self.object.program_mut("read_clock").context("read_clock")?.try_into()?;
        program.test_run(TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() })?;
        let clock: Clock = self.array("clock")?.get(&0, 0)?;
        Ok((clock.jiffies >> TICK_SHIFT) as u32)
    }

    /// Runs one frame through a program.
    pub fn run(&mut self, program: Program, frame: &[u8]) -> Result<Outcome> {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = match program {
            Program::Xdp => self.xdp("ingress")?.test_run(options)?,
            Program::TcIngress => self.tc("tc_ingress")?.test_run(options)?,
            Program::TcEgress => self.tc("tc_egress")?.test_run(options)?,
        };
        out.truncate(result.data_size_out as usize);
        // enum xdp_action (linux/bpf.h), TC_ACT_* (linux/pkt_cls.h).
        let action = match (program, result.return_value as i32) {
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

    fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        Ok(self.object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }

    fn tc(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        Ok(self.object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
    }

    /// All flow entries.
    pub fn flows(&mut self) -> Result<Flows> {
        let mut flows = Flows::new();
        if self.has_buckets() {
            for (key, flow) in self.entries("flows4", 4)?.iter().filter_map(|words| entry4(words)) {
                flows.extend([comparable(key4(&key), flow)]);
            }
            for (key, flow) in self.entries("flows6", 8)?.iter().filter_map(|words| entry6(words)) {
                flows.extend([comparable(key6(&key), flow)]);
            }
            return Ok(flows);
        }
        for entry in self.hash::<FlowKey4, Flow>("flows4")?.iter() {
            let (key, flow) = entry?;
            flows.extend([comparable(key4(&key), flow)]);
        }
        for entry in self.hash::<FlowKey6, Flow>("flows6")?.iter() {
            let (key, flow) = entry?;
            flows.extend([comparable(key6(&key), flow)]);
        }
        Ok(flows)
    }

    /// Forgets all flows.
    pub fn forget_flows(&mut self) -> Result<()> {
        if self.has_buckets() {
            for (name, words) in [("flows4", 4), ("flows6", 8)] {
                let memory = self.flow_memory(name, words)?;
                // SAFETY: the mapping is so long, and no program runs.
                unsafe { memory.as_mut_ptr().write_bytes(0, memory.len()) };
            }
            return Ok(());
        }
        let mut flows4 = self.hash::<FlowKey4, Flow>("flows4")?;
        for key in flows4.keys().collect::<Result<Vec<_>, _>>()? {
            flows4.remove(&key)?;
        }
        let mut flows6 = self.hash::<FlowKey6, Flow>("flows6")?;
        for key in flows6.keys().collect::<Result<Vec<_>, _>>()? {
            flows6.remove(&key)?;
        }
        Ok(())
    }

    /// Whether the flow tables are this project's own.
    pub fn has_buckets(&self) -> bool {
        matches!(self.object.map("flows4"), Some(Map::Array(_)))
    }

    fn flow_memory(&self, name: &str, words: usize) -> Result<MmapRaw> {
        let Some(Map::Array(data)) = self.object.map(name) else { bail!("{name} is no array") };
        let len = self.rows as usize * FLOW_WAYS as usize * words * 8;
        Ok(MmapOptions::new().len(len).map_raw(data.fd().as_fd().as_raw_fd())?)
    }

    /// Entries of a flow table, as so many words each.
    fn entries(&self, name: &str, words: usize) -> Result<Vec<Vec<u64>>> {
        let memory = self.flow_memory(name, words)?;
        let mut all = vec![0_u64; memory.len() / 8];
        // SAFETY: the mapping is so long, and no program runs.
        unsafe { std::ptr::copy_nonoverlapping(memory.as_mut_ptr().cast(), all.as_mut_ptr(), all.len()) };
        Ok(all.chunks(words).map(<[u64]>::to_vec).collect())
    }

    /// All events that were counted, over all CPUs.
    pub fn all_events(&mut self) -> Result<[u64; Event::COUNT as usize]> {
        let events: PerCpuArray<_, u64> = self.object.map("events").context("events")?.try_into()?;
        let mut sums = [0; Event::COUNT as usize];
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = events.get(&(row as u32), 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Traffic of a service and colour, over all CPUs.
    pub fn traffic(&mut self, service: u16, colour: u8) -> Result<Traffic> {
        let rows: PerCpuArray<_, Traffic> = self.object.map("traffic").context("traffic")?.try_into()?;
        let mut sum = Traffic::default();
        for row in rows.get(&(2 * u32::from(service) + u32::from(colour)), 0)?.iter() {
            sum.packets += row.packets;
            sum.bytes += row.bytes;
            sum.flows_opened += row.flows_opened;
        }
        Ok(sum)
    }
}

/// A live entry of `flows4`: addresses, head, origin, times; see the documentation of the pinned ABI.
fn entry4(words: &[u64]) -> Option<(FlowKey4, Flow)> {
    let flow = live(&words[1..4])?;
    let (src, dst) = (words[0] as u32, (words[0] >> 32) as u32);
    Some((FlowKey4 { src, dst, ports: flow.ports, protocol: flow.state.protocol() as u32 }, flow))
}

/// A live entry of `flows6`: four words of addresses, and the same.
fn entry6(words: &[u64]) -> Option<(FlowKey6, Flow)> {
    let flow = live(&words[4..7])?;
    let address =
        |words: &[u64]| Addr([words[0] as u32, (words[0] >> 32) as u32, words[1] as u32, (words[1] >> 32) as u32]);
    let (src, dst) = (address(&words[..2]), address(&words[2..4]));
    Some((FlowKey6 { src, dst, ports: flow.ports, protocol: flow.state.protocol() as u32 }, flow))
}

fn live(words: &[u64]) -> Option<Flow> {
    let flow = Flow::from_words([words[0], words[1], words[2]]);
    (flow.state.0 & FlowState::STATUS == FlowState::LIVE).then_some(flow)
}
