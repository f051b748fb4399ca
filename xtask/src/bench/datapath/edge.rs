//! The object under test, loaded on an edge that is in use, and the wrapper in front of it.

use super::{
    super::{
        stats::Summary,
        test_run::{Hook, Memory, Wrapper, most_left_to_tc, warm},
    },
    Setup,
    case::{BACKENDS, Case, Direction},
    frame::{Flows, Order, Segment, template},
    tables,
};
use anyhow::{Context, Result, ensure};
use aya::{
    maps::DevMap,
    programs::{Program, ProgramFd, SchedClassifier},
};
use bg_common::{Backend, Colour, Event, FrameTemplate, NextHop, Traffic};
use bg_tests::twin::{Kernel, Scenario};
use std::time::Instant;

pub(super) struct Edge<'a> {
    setup: &'a Setup<'a>,
    kernel: Kernel,
    wrapper: Wrapper,
}

/// Packets to send, and their expected verdict.
pub(super) struct Packets {
    pub(super) hook: Hook,
    pub(super) target: ProgramFd,
    /// The interface at which they arrive.
    pub(super) interface: u32,
    /// Frames that take turns.
    pub(super) templates: Vec<FrameTemplate>,
    /// The verdict for the last packet.
    pub(super) verdict: u32,
}

/// Nanoseconds per packet, for several programs, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) ours: f64,
    pub(super) empty: f64,
    /// The program that loads one cache line of the flow.
    pub(super) line: f64,
    /// Packets sent through ours.
    pub(super) packets: u64,
}

impl<'a> Edge<'a> {
    /// Loads the object under test, with flow tables that this many flows fill to half.
    pub(super) fn load(setup: &'a Setup<'a>, flows: u32, case: &Case) -> Result<Self> {
        Self::load_beside(setup, flows, 1, case)
    }

    /// The same, and also a hash map of the kernel for this many flows.
    pub(super) fn load_beside(setup: &'a Setup<'a>, flows: u32, lru: u32, case: &Case) -> Result<Self> {
        let mut kernel = tables::load(flows)?;
        let lines = u32::try_from(tables::bytes(&mut kernel, case.is_ipv4())? / 64)?;
        let wrapper = Wrapper::load(&setup.bench, Memory { lines, lru })?;
        let mut edge = Self { setup, kernel, wrapper };
        edge.fill(&case.scenario())?;
        Ok(edge)
    }

    fn fill(&mut self, scenario: &Scenario) -> Result<()> {
        self.kernel.fill(scenario)?;
        let sides = [self.setup.sides.client, self.setup.sides.backend];
        let mut egress: DevMap<_> = self.kernel.object().map_mut("egress").context("egress")?.try_into()?;
        for ifindex in sides {
            egress.set(ifindex, ifindex, None, 0)?;
        }
        // No next hop is known. The scenario says that there is none, which is believed for a second.
        let mut backends = self.kernel.array::<Backend>("backends")?;
        for slot in 0..BACKENDS {
            let backend = backends.get(&slot, 0)?;
            backends.set(slot, Backend { next_hop: NextHop::NONE, ..backend }, 0)?;
        }
        let tc_ingress: &SchedClassifier =
            self.kernel.object().program("tc_ingress").context("tc_ingress")?.try_into()?;
        sides.into_iter().try_for_each(|ifindex| warm(tc_ingress, ifindex))
    }

    pub(super) fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// A program of the object under test.
    pub(super) fn program(&mut self, name: &str) -> Result<ProgramFd> {
        let fd = match self.kernel.object().program(name).with_context(|| format!("no program {name}"))? {
            Program::Xdp(program) => program.fd()?,
            Program::SchedClassifier(program) => program.fd()?,
            _ => anyhow::bail!("{name} is neither of XDP nor of tc"),
        };
        Ok(fd.try_clone()?)
    }

    /// The packets of a case in one direction.
    pub(super) fn packets(
        &mut self,
        case: &Case,
        direction: Direction,
        segment: Segment,
        flows: Flows,
        order: Order,
    ) -> Result<Packets> {
        Ok(Packets {
            hook: case.hook(),
            target: self.program(case.program(direction))?,
            interface: case.interface(direction, self.setup.sides),
            templates: vec![template(case, direction, segment, flows, order)?],
            verdict: case.verdict(direction),
        })
    }

    /// Sends the first packet of flows. Returns ns per packet.
    pub(super) fn open(&mut self, case: &Case, flows: Flows) -> Result<f64> {
        self.pass(case, Direction::Forward, Segment::Opening, flows)
    }

    /// Opens flows and establishes them, so that both ends have sent packets.
    pub(super) fn establish(&mut self, case: &Case, flows: Flows) -> Result<()> {
        self.pass(case, Direction::Forward, Segment::Opening, flows)?;
        self.pass(case, Direction::Reply, Segment::Opening, flows)?;
        self.pass(case, Direction::Forward, Segment::Data, flows)?;
        self.pass(case, Direction::Reply, Segment::Data, flows)?;
        Ok(())
    }

    /// Ends flows at once.
    pub(super) fn reset(&mut self, case: &Case, flows: Flows) -> Result<()> {
        self.pass(case, Direction::Forward, Segment::Reset, flows).map(drop)
    }

    /// Sends one packet of each flow.
    fn pass(&mut self, case: &Case, direction: Direction, segment: Segment, flows: Flows) -> Result<f64> {
        let packets = self.packets(case, direction, segment, flows, Order::Linear)?;
        // One flow needs more than one packet to count as seen.
        let sent = self.send(&packets, flows.count.max(16));
        Ok(sent.with_context(|| format!("{segment:?} {direction:?} of {} {flows:?}", case.name()))?.0)
    }

    /// Sends this many packets. Returns ns per packet, and how many were sent.
    pub(super) fn send(&mut self, packets: &Packets, count: u32) -> Result<(f64, u64)> {
        self.wrapper.aim(packets.hook, &packets.target, &packets.templates)?;
        let sent = self.wrapper.run(packets.interface, count, packets.verdict);
        let sent = sent.with_context(|| format!("events {:?}", self.kernel.all_events()))?;
        Ok((sent.ns, sent.packets))
    }

    /// Sends this many packets through the empty program, the program that loads a line, and ours.
    pub(super) fn sample(&mut self, packets: &Packets, count: u32) -> Result<Sample> {
        let (empty, line) = self.baselines(packets, count)?;
        let (ours, packets) = self.send(packets, count)?;
        Ok(Sample { ours, empty, line, packets })
    }

    /// The same, but each flow first sends a packet that is not measured. Other flows were measured meanwhile, and the first packet
    /// after seconds of silence takes longer.
    pub(super) fn sample_anew(&mut self, packets: &Packets, flows: Flows, count: u32) -> Result<Sample> {
        let turns = u32::try_from(packets.templates.len())?;
        self.send(packets, turns * flows.count)?;
        self.sample(packets, count)
    }

    /// Sends this many packets through the empty program and the program that loads a line. Returns ns per packet.
    pub(super) fn baselines(&mut self, packets: &Packets, count: u32) -> Result<(f64, f64)> {
        let verdict = packets.hook.verdict_of_empty();
        let [empty, line] = [self.wrapper.empty(packets.hook)?, self.wrapper.line(packets.hook)?].map(|target| {
            self.wrapper.aim(packets.hook, &target, &packets.templates)?;
            Ok::<_, anyhow::Error>(self.wrapper.run(packets.interface, count, verdict)?.ns)
        });
        Ok((empty?, line?))
    }

    /// Looks up the flows of this many packets in the kernel's LRU hash, or inserts them. Returns ns per packet.
    pub(super) fn lru(&mut self, packets: &Packets, count: u32) -> Result<f64> {
        let target = self.wrapper.lru()?;
        self.wrapper.aim(Hook::Xdp, &target, &packets.templates)?;
        Ok(self.wrapper.run(packets.interface, count, Hook::Xdp.verdict_of_empty())?.ns)
    }

    /// The requested number of rounds.
    pub(super) fn rounds(&mut self, packets: &Packets) -> Result<Rounds> {
        let (rounds, count) = (self.setup.args.rounds(), self.setup.args.packets());
        Ok(Rounds((0..rounds).map(|_| self.sample(packets, count)).collect::<Result<_>>()?))
    }

    /// Establishes flows, then measures rounds of their packets.
    pub(super) fn open_flows(&mut self, case: &Case, direction: Direction, flows: Flows) -> Result<Rounds> {
        self.establish(case, flows)?;
        let packets = self.packets(case, direction, Segment::Data, flows, Order::Random)?;
        let account = self.account()?;
        let rounds = self.rounds(&packets)?;
        let counts = if direction == Direction::Forward { rounds.packets() } else { 0 };
        self.check(account, flows, counts).with_context(|| case.name())?;
        Ok(rounds)
    }

    /// The counts so far.
    pub(super) fn account(&mut self) -> Result<Account> {
        Ok(Account { traffic: self.traffic()?, since: Instant::now() })
    }

    /// Checks that the program has counted this many packets of clients since then, except those that XDP has left to tc, and has
    /// opened hardly any flow again, which it does if the table had no room.
    pub(super) fn check(&mut self, before: Account, flows: Flows, expected: u64) -> Result<()> {
        let now = self.traffic()?;
        let packets = now.packets - before.traffic.packets;
        let all = expected.saturating_sub(most_left_to_tc(before.since.elapsed()))..=expected;
        ensure!(all.contains(&packets), "expected {all:?} packets counted, got {packets}");
        let opened = now.flows_opened - before.traffic.flows_opened;
        ensure!(opened * 1000 <= u64::from(flows.count), "{opened} of {} flows were opened again", flows.count);
        Ok(())
    }

    /// The sum over both colours.
    pub(super) fn traffic(&mut self) -> Result<Traffic> {
        let [blue, green] = [self.traffic_of(Colour::Blue)?, self.traffic_of(Colour::Green)?];
        Ok(Traffic {
            packets: blue.packets + green.packets,
            bytes: blue.bytes + green.bytes,
            flows_opened: blue.flows_opened + green.flows_opened,
            mirrored: blue.mirrored + green.mirrored,
        })
    }

    pub(super) fn traffic_of(&mut self, colour: Colour) -> Result<Traffic> {
        self.kernel.traffic(0, colour as u8)
    }

    /// The count of an event.
    pub(super) fn events(&mut self, event: Event) -> Result<u64> {
        Ok(self.kernel.all_events()?[event as usize])
    }
}

/// See [`Edge::account`].
pub(super) struct Account {
    traffic: Traffic,
    since: Instant,
}

/// The times of rounds.
pub(super) struct Rounds(pub(super) Vec<Sample>);

impl Rounds {
    pub(super) const COLUMNS: [&'static str; 5] =
        ["ours, ns", "empty program, ns", "one cache line, ns", "ours less empty, ns", "ours less line, ns"];

    pub(super) fn of(&self, figure: impl Fn(&Sample) -> f64) -> Summary {
        Summary::of(self.0.iter().map(figure).collect())
    }

    /// Packets sent through ours.
    fn packets(&self) -> u64 {
        self.0.iter().map(|sample| sample.packets).sum()
    }

    pub(super) fn ours(&self) -> Summary {
        self.of(|sample| sample.ours)
    }

    /// See [`Self::COLUMNS`].
    pub(super) fn summaries(&self) -> [Summary; 5] {
        [
            self.ours(),
            self.of(|sample| sample.empty),
            self.of(|sample| sample.line),
            self.of(|sample| sample.ours - sample.empty),
            self.of(|sample| sample.ours - sample.line),
        ]
    }
}
