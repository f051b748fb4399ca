//! Counters of a switch under packets in any order, beside a plain account of the same packets.

use super::*;
use proptest::collection::vec;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Opens(usize),
    /// The flow of this number is answered, by a reset or not, and perhaps again.
    Answers(usize, bool),
    /// Its first packet comes again.
    SendsAgain(usize),
    /// The client ends it, and opens another from the same port.
    Reopens(usize),
    Passes(u32),
    /// A switch back, and one to green with fresh counters.
    Switches,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..4_usize).prop_map(Event::Opens),
        6 => (any::<usize>(), prop::bool::weighted(0.3)).prop_map(|(flow, is_reset)| Event::Answers(flow, is_reset)),
        2 => any::<usize>().prop_map(Event::SendsAgain),
        1 => any::<usize>().prop_map(Event::Reopens),
        3 => (0..12_u32).prop_map(Event::Passes),
        1 => Just(Event::Passes(100)),
        1 => Just(Event::Switches),
    ]
}

/// A flow of the present generation, or of an earlier one.
#[derive(Clone)]
struct Known {
    opened: Opened,
    generation: u32,
    at: u32,
    last_sent: u32,
    is_answered: bool,
    is_judged: bool,
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    opened: u64,
    reset: u64,
    judged: u64,
    missing: u64,
}

struct Account {
    watched: Watched,
    flows: Vec<Known>,
    expected: Counts,
}

impl Account {
    fn new() -> Self {
        // It never holds.
        let watched = watched(Trips { resets: limit(99, u32::MAX), ..EMPTY });
        Self { watched, flows: Vec::new(), expected: Counts::default() }
    }

    fn now(&self) -> u32 {
        self.watched.host.tick.get()
    }

    fn generation(&self) -> u32 {
        self.watched.word.generation()
    }

    /// A packet that judges has come.
    fn judge(&mut self) {
        let (now, generation) = (self.now(), self.generation());
        for flow in self.flows.iter_mut().filter(|flow| flow.generation == generation && !flow.is_judged) {
            if flow.at + TICKS < now {
                flow.is_judged = true;
                self.expected.judged += 1;
                self.expected.missing += u64::from(!flow.is_answered);
            }
        }
    }

    fn is_opened(&mut self, opened: Opened) {
        let (generation, at) = (self.generation(), self.now());
        self.expected.opened += 1;
        self.flows.push(Known {
            opened,
            generation,
            at,
            last_sent: at,
            is_answered: false,
            is_judged: false,
            has_ended: false,
        });
    }

    fn happens(&mut self, event: Event) {
        let of = |number: usize, flows: &[Known]| (!flows.is_empty()).then(|| number % flows.len());
        match event {
            Event::Opens(vip) => {
                self.judge();
                let opened = self.watched.open([WEB, DNS, WEB6, DNS6][vip]);
                self.is_opened(opened);
            }
            Event::Answers(number, is_reset) => {
                let Some(number) = of(number, &self.flows) else { return };
                let now = self.now();
                let flow = &mut self.flows[number];
                let is_reset = is_reset && flow.opened.is_tcp;
                // No answer to this flow.
                if flow.has_ended || now - flow.at >= 2 * TICKS {
                    return;
                }
                flow.has_ended = is_reset;
                self.watched.answer(&flow.opened, if is_reset { RST | ACK } else { SYN | ACK });
                let is_first = !std::mem::replace(&mut flow.is_answered, true);
                let is_of_now = flow.generation == self.watched.word.generation();
                self.expected.reset += u64::from(is_first && is_of_now && is_reset);
            }
            Event::SendsAgain(number) => {
                let Some(number) = of(number, &self.flows) else { return };
                let (now, generation) = (self.now(), self.generation());
                let Known { opened, is_answered, last_sent, .. } = self.flows[number].clone();
                // A row that does not live that long, or a connection that has ended, is opened anew. Of datagrams only the last ticks are known.
                if is_answered
                    || now - last_sent >= 2 * TICKS
                    || (!opened.is_tcp && now - self.flows[number].at >= 2 * TICKS - 1)
                {
                    return;
                }
                self.judge();
                assert_eq!(sent_to(&self.watched.host, &opened.first), opened.backend);
                let flow = &mut self.flows[number];
                flow.last_sent = now;
                if opened.is_tcp && flow.generation == generation && !flow.is_judged && now - flow.at + 1 >= TICKS {
                    flow.is_judged = true;
                    self.expected.judged += 1;
                    self.expected.missing += 1;
                }
            }
            Event::Reopens(number) => {
                let Some(number) = of(number, &self.flows) else { return };
                if !self.flows[number].opened.is_tcp || self.flows[number].last_sent == 0 {
                    return;
                }
                self.judge();
                // That had no answer, or it has ended.
                let old = &mut self.flows[number];
                let Known { opened, .. } = old.clone();
                (old.has_ended, old.last_sent) = (true, 0);
                let client_ends = PacketSpec { flags: RST | ACK, ..opened.first.clone() };
                sent_to(&self.watched.host, &client_ends);
                let first = PacketSpec { sequence: opened.first.sequence.wrapping_add(7), ..opened.first };
                let backend = sent_to(&self.watched.host, &first);
                self.is_opened(Opened { first, backend, ..opened });
            }
            Event::Passes(ticks) => self.watched.pass(ticks),
            Event::Switches => {
                let Watched { host, word, .. } = &mut self.watched;
                let [back, there] = [1, 2].map(|more| word.generation() + more);
                host.set_live(SHOP, LiveWord::new(back, LiveFlags::NONE, FULL_SHARE, 0), SwitchTerms::default());
                *word = LiveWord::new(there, LiveFlags::TIMED, 0, FULL_SHARE);
                let trips = Trips {
                    second: TICKS as u16,
                    colour: Colour::Green as u16,
                    resets: limit(99, u32::MAX),
                    unjudged_tick: host.tick.get().into(),
                    ..EMPTY
                };
                host.set_trips(SHOP, *word, trips);
                host.set_timing(
                    SHOP,
                    *word,
                    Timing { conditions: trips.conditions().0, generation: there, ..Timing::default() },
                );
                host.set_live(SHOP, *word, SwitchTerms::default());
                self.expected = Counts::default();
            }
        }
    }

    fn counted(&self) -> Counts {
        let trips = self.watched.host.trips(SHOP)[self.watched.word.terms_slot()];
        assert_eq!(trips.generation, self.generation());
        let Trips { opened, reset, judged, missing, .. } = trips;
        Counts { opened, reset, judged, missing }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_flow_counts_once_and_for_its_own_generation(events in vec(event(), 1..150)) {
        let mut account = Account::new();
        for event in events {
            account.happens(event);
            prop_assert_eq!(account.counted(), account.expected, "after {:?}", event);
        }
    }
}
