//! Conditions that take a switch back.
//!
//! - `conditions`: when they hold.
//! - `counts`: which flows count for them.
//! - `moments`: ramps, schedules, deadlines and commands.
//! - `random`: counters under packets in any order.

mod conditions;
mod counts;
mod moments;
mod random;

use crate::*;
use bg_common::{Cause, Colour, Conditions, FULL_SHARE, Limit, Timing, Trips};

const SECOND: u64 = 1_000_000_000;
/// A moment of `CLOCK_BOOTTIME`.
const BOOT: u64 = 5_000 * SECOND;
/// Ticks in a second.
const TICKS: u32 = 16;

const WEB6: &str = "[2001:db8::10]:443";
const DNS6: &str = "[2001:db8::10]:53";
const OTHER: &str = "203.0.113.20:443";

/// The deployment under test.
const SHOP: u16 = 1;

/// Two deployments, of which the second is the one under test. It has services of both protocols and families.
fn scenario() -> Scenario {
    let mut scenario = Scenario::default();
    scenario.deployment();
    scenario.service(&service(OTHER, None, Protocol::Tcp, "10.0.3.11:8443", "10.0.4.11:8443"));
    assert_eq!(scenario.deployment(), SHOP);
    let mut of_shop = |service| scenario.service(&ServiceAt { deployment: SHOP, ..service });
    of_shop(service(WEB, Some(WEB_PREVIEW), Protocol::Tcp, BLUE, GREEN));
    of_shop(service(DNS, None, Protocol::Udp, BLUE_DNS, GREEN_DNS));
    for (vip, protocol, port) in [(WEB6, Protocol::Tcp, 8443), (DNS6, Protocol::Udp, 5353)] {
        let [blue, green] = ["1", "2"].map(|colour| format!("[2001:db8:{colour}::11]:{port}"));
        of_shop(service(vip, None, protocol, &blue, &green));
    }
    scenario
}

/// Green is live at generation 2 since now, on these conditions.
struct Watched {
    host: Host,
    word: LiveWord,
    /// The next client.
    client: u32,
}

fn limit(percent: u32, least: u32) -> Limit {
    Limit { share: 100 * percent, least }
}

fn watched(trips: Trips) -> Watched {
    watched_with(trips, Timing::default())
}

fn watched_with(trips: Trips, timing: Timing) -> Watched {
    let host = Host::load(scenario(), NOW);
    host.set_clocks([BOOT, BOOT]);
    let word = LiveWord::new(2, LiveFlags::TIMED.with(LiveFlags::DRAINING), 0, FULL_SHARE);
    let trips = Trips { second: TICKS as u16, colour: Colour::Green as u16, unjudged_tick: NOW.into(), ..trips };
    host.set_trips(SHOP, word, trips);
    host.set_timing(
        SHOP,
        word,
        Timing { conditions: trips.conditions().0, before: host.word(SHOP), generation: 2, ..timing },
    );
    host.set_live(SHOP, word, SwitchTerms::default());
    Watched { host, word, client: 0 }
}

/// What a backend does with a first packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Answer,
    Reset,
    Nothing,
}

/// A flow that was opened.
#[derive(Clone)]
struct Opened {
    first: PacketSpec,
    backend: SocketAddr,
    vip: SocketAddr,
    client: SocketAddr,
    is_tcp: bool,
}

impl Watched {
    fn client(&mut self, vip: &str) -> SocketAddr {
        self.client += 1;
        let (host, port) = (self.client / 50_000, (self.client % 50_000) as u16 + 1);
        let ip: std::net::IpAddr = match at(vip) {
            SocketAddr::V4(_) => std::net::Ipv4Addr::from(0xc000_0201 + host).into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::from(0x2001_0db8_0009 << 80 | u128::from(host + 1)).into(),
        };
        SocketAddr::new(ip, port)
    }

    /// Opens a flow. Its answer comes later.
    fn open(&mut self, vip: &str) -> Opened {
        let client = self.client(vip);
        let is_tcp = at(vip).port() == 443;
        let first = if is_tcp { PacketSpec::tcp(client, at(vip), SYN) } else { PacketSpec::udp(client, at(vip)) };
        let backend = sent_to(&self.host, &first);
        Opened { first, backend, vip: at(vip), client, is_tcp }
    }

    fn answer(&self, opened: &Opened, flags: u8) {
        let Opened { backend, client, is_tcp, .. } = *opened;
        let acknowledgment = opened.first.sequence.wrapping_add(1);
        let answer = match is_tcp {
            true => PacketSpec { acknowledgment, ..PacketSpec::tcp(backend, client, flags) },
            false => PacketSpec::udp(backend, client),
        };
        assert_eq!(answers_as(&self.host, &answer), opened.vip);
    }

    fn flow(&mut self, vip: &str, does: Does) {
        let opened = self.open(vip);
        match does {
            Does::Answer => self.answer(&opened, SYN | ACK),
            Does::Reset => self.answer(&opened, RST | ACK),
            Does::Nothing => {}
        }
    }

    fn flows(&mut self, vip: &str, count: u32, does: Does) {
        (0..count).for_each(|_| self.flow(vip, does));
    }

    /// Lets this many ticks pass, of a sixteenth of a second each.
    fn pass(&mut self, ticks: u32) {
        let tick = self.host.tick.get() + ticks;
        self.host.later(tick);
        let passed = u64::from(tick - NOW) * SECOND / u64::from(TICKS);
        self.host.set_clocks([BOOT + passed, BOOT + passed]);
    }

    /// The packet of a flow without an answer judges.
    fn judge(&mut self) {
        sent_to(&self.host, &tcp(CLIENT, WEB, ACK));
    }

    fn is_back(&self) -> bool {
        self.host.word(SHOP).live() == Colour::Blue
    }

    #[track_caller]
    fn assert_taken_back(&self, conditions: Conditions) {
        let word = self.host.word(SHOP);
        assert_eq!((word.generation(), word.live(), word.previous()), (3, Colour::Blue, Colour::Green));
        assert!(!word.flags().has(LiveFlags::TIMED), "once only");
        let timing = self.host.timings(SHOP)[word.terms_slot()];
        assert_eq!((timing.generation, timing.cause), (3, Cause::Tripped as u8));
        assert_eq!(timing.conditions, conditions.0);
        assert_eq!(timing.made_at, self.host.clocks()[0]);
    }

    #[track_caller]
    fn assert_stays(&mut self) {
        self.judge();
        assert_eq!(self.host.word(SHOP), self.word);
    }
}

const RESETS: Trips = Trips { resets: Limit { share: 500, least: 200 }, ..EMPTY };
const UNANSWERED: Trips = Trips { unanswered: Limit { share: 500, least: 200 }, ..EMPTY };
const SILENCE: Trips = Trips { silence: 2 * SECOND, ..EMPTY };
const EMPTY: Trips = Trips {
    generation: 0,
    second: 0,
    colour: 0,
    resets: Limit { share: 0, least: 0 },
    unanswered: Limit { share: 0, least: 0 },
    silence: 0,
    paused_until: 0,
    opened: 0,
    reset: 0,
    judged: 0,
    missing: 0,
    opened_since_heard: 0,
    heard_at: 0,
    unjudged_tick: 0,
    young: [0; Trips::RING as usize],
    began_at: 0,
};
