//! The whole engine: an input is a script of frames and of what changes around them.

use crate::{
    input::Input,
    judge::Case,
    look::Look,
    stage::{DEPLOYMENTS, NOW, Stage},
};
use bg_common::{
    Colour, Conditions, Event, FULL_SHARE, Limit, LiveFlags, LiveWord, NO_BACKEND, SwitchTerms, Timing, Trips,
};
use bg_ebpf::Action;
use bg_tests::{
    frames::{ErrorSpec, PacketSpec, packet_in},
    twin::Outcome,
};
use std::net::SocketAddr;

/// Frames of a script, at most.
const LONGEST: u64 = 256;

/// Lengths of payloads: around the least packets, and around an MTU of 1500 with all headers that may be put in front.
const LENGTHS: [usize; 16] = [0, 0, 1, 4, 5, 7, 32, 200, 536, 1180, 1395, 1408, 1428, 1440, 1460, 1472];

/// Flags of TCP: of openings, answers, data, ends, and nonsense.
const FLAGS: [u8; 12] = [0x02, 0x02, 0x12, 0x10, 0x10, 0x18, 0x11, 0x04, 0x14, 0x03, 0x00, 0xff];

/// How frames come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Early,
    Ingress,
    Egress,
    Copy(Colour),
}

/// Packets of clients come in, and answers and errors of all kinds.
pub fn forwards(bytes: &[u8]) -> u64 {
    played(bytes, false).fed
}

/// The same, and what backends answer leaves this host.
pub fn replies(bytes: &[u8]) -> u64 {
    played(bytes, true).fed
}

/// What has come of the frames of a script.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// How many there were.
    pub fed: u64,
    /// How many of them had each action.
    pub actions: [u64; 14],
    /// How many became longer.
    pub encapsulated: u64,
    /// What the engine has counted.
    pub events: [u64; Event::COUNT as usize],
}

/// Plays a script. `leaves`: what backends answer leaves this host.
pub fn played(bytes: &[u8], leaves: bool) -> Played {
    Script::new(bytes, leaves).play()
}

/// A script that is being played.
struct Script<'a> {
    input: Input<'a>,
    stage: Stage,
    /// Whether answers leave this host.
    leaves: bool,
    played: Played,
    /// The last frame that was sent on, and the packet that it was.
    sent: Option<(Vec<u8>, PacketSpec)>,
    last: Vec<u8>,
}

impl<'a> Script<'a> {
    fn new(bytes: &'a [u8], leaves: bool) -> Self {
        let mut input = Input::new(bytes);
        let rows = input.of(&[16, 64]);
        Self { input, stage: Stage::new(rows), leaves, played: Played::default(), sent: None, last: Vec::new() }
    }

    fn play(mut self) -> Played {
        while !self.input.is_empty() && self.played.fed < LONGEST {
            match self.input.byte() % 24 {
                0..=9 => self.packet(),
                10 => self.raw(),
                11..=13 => self.answer(),
                14 | 15 => self.error(),
                16 => self.again(),
                17 => self.copy(),
                18 | 19 => self.switch(),
                20 => self.freeze(),
                21 => self.health(),
                22 => self.time(),
                _ => self.settings(),
            }
        }
        // Panics if a key has two rows.
        self.stage.host.flows();
        self.played.events = self.stage.host.all_events();
        self.played
    }

    /// Feeds a frame to the engine, and judges what comes of it.
    fn feed(&mut self, way: Way, frame: &[u8]) -> Outcome {
        let host = &self.stage.host;
        let after = match way {
            Way::Early => host.early(frame),
            Way::Ingress => host.ingress(frame),
            Way::Egress => host.egress(frame),
            Way::Copy(colour) => host.copied(frame, colour),
        };
        Case { stage: &self.stage, leaves: way == Way::Egress, frame }.judge(&after);
        self.played.fed += 1;
        self.played.actions[after.action as usize] += 1;
        self.played.encapsulated += u64::from(after.action != Action::Unreachable && after.frame.len() > frame.len());
        self.last.clear();
        self.last.extend_from_slice(frame);
        after
    }

    /// A way in; for what leaves this host, one out.
    fn way(&mut self, is_answer: bool) -> Way {
        let is_early = self.input.byte().is_multiple_of(3);
        match (self.leaves && is_answer, is_early) {
            (true, false) => Way::Egress,
            (_, true) => Way::Early,
            (false, false) => Way::Ingress,
        }
    }

    fn ends(&mut self) -> (SocketAddr, SocketAddr, bool) {
        let stage = &self.stage;
        let is_tcp = self.input.flag();
        let (mut from, to) = match self.input.byte() % 8 {
            0..=5 => {
                let (vip, protocol) = self.input.of(&stage.vips);
                let is_tcp = if self.input.byte().is_multiple_of(16) { is_tcp } else { protocol as u8 == 6 };
                let client = self.input.of(&stage.clients);
                return (of_family(client, vip, &stage.clients), vip, is_tcp);
            }
            6 => {
                let (backend, protocol) = self.input.of(&stage.backends);
                let client = of_family(self.input.of(&stage.clients), backend, &stage.clients);
                return (backend, client, protocol as u8 == 6);
            }
            _ => (self.input.of(&stage.clients), self.input.of(&stage.nobody)),
        };
        from = of_family(from, to, &stage.clients);
        (from, to, is_tcp)
    }

    fn spec(&mut self) -> PacketSpec {
        let (mut from, to, is_tcp) = self.ends();
        let shape = self.input.byte();
        // Some clients more, so that tables become full.
        from.set_port(from.port().wrapping_add(u16::from(shape >> 4)));
        let flags = self.input.of(&FLAGS);
        let spec = if is_tcp { PacketSpec::tcp(from, to, flags) } else { PacketSpec::udp(from, to) };
        let (len, fill) = (self.input.of(&LENGTHS), self.input.byte());
        PacketSpec {
            payload: (0..len).map(|at| fill.wrapping_mul(at as u8 | 1)).collect(),
            sequence: u32::from(fill) << 24 | 1,
            ttl: if shape & 1 == 0 { 64 } else { self.input.of(&[0, 1, 2, 255]) },
            tags: if shape & 6 == 6 { self.input.byte() % 4 } else { 0 },
            options: if shape & 9 == 9 { self.input.byte() % 11 } else { 0 },
            without_udp_checksum: fill & 1 != 0,
            ..spec
        }
    }

    /// Damages a frame, or not.
    fn damage(&mut self, frame: &mut Vec<u8>) {
        let kind = self.input.byte() % 16;
        let at = if kind < 8 { return } else { usize::from(self.input.byte()) };
        match kind {
            8 | 9 => frame.truncate(14.max(at)),
            10 => frame.extend_from_slice(self.input.take(at)),
            11 => {
                let piece = self.input.take(4);
                frame.splice(at.min(frame.len())..at.min(frame.len()), piece.iter().copied());
            }
            12 => frame.truncate(14.max(frame.len().saturating_sub(at % 24))),
            _ => {
                let bits = self.input.byte();
                frame.get_mut(at).into_iter().for_each(|byte| *byte ^= bits);
            }
        }
    }

    fn packet(&mut self) {
        let spec = self.spec();
        let mut frame = spec.frame();
        self.damage(&mut frame);
        let way = self.way(self.stage.backends.iter().any(|(backend, _)| *backend == spec.from));
        let after = self.feed(way, &frame);
        let is_sent = matches!(after.action, Action::Redirect | Action::Resolve | Action::Deliver);
        if is_sent && after.frame.len() == frame.len() {
            self.sent = Some((after.frame, spec));
        }
    }

    /// A frame as it stands in the input.
    fn raw(&mut self) {
        let len = usize::from(self.input.u16() % 2048);
        let way = self.way(true);
        let frame = self.input.take(len);
        if frame.len() >= 14 {
            self.feed(way, frame);
        }
    }

    /// What the receiver of the last packet answers.
    fn answer(&mut self) {
        let flags = self.input.byte();
        // Mostly one that acknowledges the packet: others are of another connection.
        let is_foreign = flags > 0xf0;
        let flags = FLAGS[usize::from(flags) % FLAGS.len()];
        let Some((frame, spec)) = &self.sent else { return };
        let Some([from, to]) = Look::of(frame).and_then(|look| look.ends()) else { return };
        let is_udp = spec.protocol as u8 == 17;
        let answer = if is_udp { PacketSpec::udp(to, from) } else { PacketSpec::tcp(to, from, flags) };
        let acknowledgment = if is_foreign { 7 } else { spec.sequence.wrapping_add(1) };
        let mut frame = PacketSpec { acknowledgment, ..answer }.frame();
        self.damage(&mut frame);
        let way = self.way(true);
        self.feed(way, &frame);
    }

    /// A router, or the receiver, complains of the last packet or of a reply to it.
    fn error(&mut self) {
        let (shape, kind, quoted) = (self.input.byte(), self.input.byte(), self.input.byte());
        let Some((frame, spec)) = &self.sent else { return };
        let reply = PacketSpec { from: spec.to, to: spec.from, tags: 0, ..spec.clone() };
        let frame = if shape & 1 == 0 { frame.clone() } else { reply.frame() };
        let Some([from, to]) = Look::of(&frame).and_then(|look| look.ends()) else { return };
        let is_v4 = from.is_ipv4();
        let router: SocketAddr = if is_v4 { "198.18.0.1:0" } else { "[2001:db8:18::1]:0" }.parse().expect("an address");
        let sender = if shape & 2 == 0 { router } else { to };
        let mut error = ErrorSpec::too_big(sender.ip(), from.ip(), &frame);
        if shape & 4 != 0 {
            error.kind = [kind % 16, 0];
        }
        if shape & 8 != 0 {
            error.quoted = packet_in(&frame).to_vec();
            error.quoted.truncate(20 + usize::from(quoted % 64));
        }
        error.quoted.truncate(1200);
        error.ttl = if shape & 16 == 0 { 64 } else { kind % 3 };
        error.tags = if shape & 96 == 96 { quoted % 3 } else { 0 };
        error.options = if shape & 160 == 160 { quoted % 11 } else { 0 };
        let mut frame = error.frame();
        self.damage(&mut frame);
        let way = self.way(true);
        self.feed(way, &frame);
    }

    /// The last frame once more, damaged.
    fn again(&mut self) {
        let mut frame = std::mem::take(&mut self.last);
        if frame.len() >= 14 {
            self.damage(&mut frame);
            let way = self.way(true);
            self.feed(way, &frame);
        }
    }

    fn copy(&mut self) {
        let colour = self.input.of(&Colour::ALL);
        let Some((_, spec)) = &self.sent else { return };
        let mut frame = spec.frame();
        self.damage(&mut frame);
        self.feed(Way::Copy(colour), &frame);
    }

    /// Any live word of the next generation, with any terms.
    fn switch(&mut self) {
        let input = &mut self.input;
        let host = &self.stage.host;
        let deployment = u16::from(input.byte()) % DEPLOYMENTS;
        let before = host.word(deployment);
        let generation = before.generation().wrapping_add(1).max(1);
        let shares = [0, FULL_SHARE, FULL_SHARE / 2, input.u16() % (FULL_SHARE + 1)];
        let word = LiveWord::new(generation, LiveFlags(input.byte() & 0xf), before.target_share(), input.of(&shares));
        let tick = host.tick.get();
        let mut ended_before = [0; 2];
        if input.flag() {
            ended_before[word.live().other() as usize] = generation;
        }
        let drain_deadline = input.of(&[0, tick.wrapping_sub(1), tick.wrapping_add(100)]);
        let terms = SwitchTerms { ended_before, drain_deadline, drain_began: input.of(&[0, tick]) };
        let now = 1_u64 << 50;
        let instants = [0, 1, now - 1, now, now + 1_000_000_000, u64::MAX, input.u64()];
        // As long as user space allows.
        let spans = [0, 1, 1_000_000, 1 << 40, 1 << 58];
        let timing = Timing {
            activate_at: input.of(&instants),
            before,
            ramp: input.of(&spans),
            window: input.of(&spans),
            revert_at: input.of(&instants),
            hold_until: input.of(&instants),
            made_at: now,
            generation: if input.byte().is_multiple_of(8) { generation ^ 2 } else { generation },
            drain_timeout: input.of(&[0, 1, 1000, u32::MAX]),
            on_switch: input.byte() % 3,
            clock: input.byte() % 3,
            cause: 0,
            conditions: (input.byte() & Conditions::RESETS.with(Conditions::UNANSWERED).with(Conditions::SILENCE).0),
            ..Timing::default()
        };
        let limit = |input: &mut Input<'_>| Limit { share: u32::from(input.u16()), least: u32::from(input.byte()) };
        let trips = Trips {
            generation,
            second: input.of(&[0, 1, 16, u16::MAX]),
            colour: word.live() as u16,
            resets: limit(input),
            unanswered: limit(input),
            silence: input.of(&instants),
            unjudged_tick: u64::from(input.of(&[0, tick, u32::MAX / 2])),
            ..Trips::default()
        };
        host.set_timing(deployment, word, timing);
        host.set_trips(deployment, word, trips);
        host.set_live(deployment, word, terms);
    }

    fn freeze(&mut self) {
        let host = &self.stage.host;
        let deployment = u16::from(self.input.byte()) % DEPLOYMENTS;
        let word = host.word(deployment);
        let flags =
            if self.input.flag() { word.flags().with(LiveFlags::HOLD) } else { word.flags().without(LiveFlags::HOLD) };
        let timing =
            Timing { hold_until: self.input.of(&[1, u64::MAX]), ..host.timings(deployment)[word.terms_slot()] };
        host.holds.set(self.input.of(&[Some(Event::Held), Some(Event::Frozen), None]));
        host.set_timing(deployment, word, timing);
        host.set_live(deployment, word.with_flags(flags), host.terms(deployment)[word.terms_slot()]);
    }

    /// Backends of a colour go down, or come back.
    fn health(&mut self) {
        let service = usize::from(self.input.byte()) % Stage::services();
        let table = self.stage.host.scenario.tables(service)[self.input.of(&Colour::ALL) as usize];
        let entries = table.base as usize..(table.base + table.len) as usize;
        let maglev = &mut self.stage.host.scenario.maglev;
        if self.input.flag() {
            maglev[entries].fill(NO_BACKEND);
        } else {
            maglev[entries.clone()].copy_from_slice(&self.stage.maglev[entries]);
        }
    }

    fn time(&mut self) {
        let by = self.input.of(&[1, 10, 1000, 1 << 21, u32::MAX / 2, NOW]);
        let tick = self.stage.host.tick.get().wrapping_add(by);
        // Next hops age, unless they are learned anew.
        if self.input.flag() {
            self.stage.host.later(tick);
        } else {
            self.stage.host.tick.set(tick);
        }
        let clocks = self.stage.host.clocks();
        let by = u64::from(self.input.u32()) << 4;
        self.stage.host.set_clocks(clocks.map(|clock| clock.saturating_add(by)));
    }

    fn settings(&mut self) {
        let host = &self.stage.host;
        match self.input.byte() % 8 {
            0 => host.is_own.set(self.input.flag()),
            1 => host.can_copy.set(self.input.flag()),
            2 => host.may_send_errors.set([self.input.flag(); 2]),
            3 => host.is_played_back.set(self.input.flag()),
            4 => host.gso_size.set(self.input.of(&[0, 0, 1, 536, 1400])),
            5 => _ = host.egress.replace(if self.input.flag() { Some(Vec::new()) } else { None }),
            6 => host.forget_flows(),
            _ => host.refuse_flows(),
        }
    }
}

/// This client, or another one of the same family as `other`.
fn of_family(client: SocketAddr, other: SocketAddr, clients: &[SocketAddr]) -> SocketAddr {
    let is_same = |client: &SocketAddr| client.is_ipv4() == other.is_ipv4();
    if is_same(&client) { client } else { clients.iter().copied().find(is_same).expect("clients of both families") }
}
