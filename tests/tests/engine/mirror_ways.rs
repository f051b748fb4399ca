//! Services with a mirror, in any order of events: clients use one port for several services that share backends, and for their preview
//! addresses; switches cut and drain; copies come late. What each client may hear is told by a model that knows nothing of the engine but
//! where it has sent the datagrams: the answer to a datagram reaches its client as one of the address that it asked, and the answer to a
//! copy reaches nobody.

use crate::*;
use bg_common::Colour;
use proptest::{collection::vec, sample::select, test_runner::TestCaseResult};
use std::collections::{HashMap, VecDeque};

/// Ticks that a UDP flow may be silent.
const IDLE: u32 = 10;

/// Addresses of one family: of a service with a mirror and a preview address, of another with both that shares its backends, of one
/// without a mirror that has them the other way round, and of a service of one more deployment that has them so too, with a mirror.
const VIPS: [[&str; 6]; 2] = [
    [
        "203.0.113.20:53",
        "203.0.113.20:9053",
        "203.0.113.21:53",
        "203.0.113.21:9053",
        "203.0.113.22:53",
        "203.0.113.23:53",
    ],
    [
        "[2001:db8::10]:53",
        "[2001:db8::10]:9053",
        "[2001:db8::11]:53",
        "[2001:db8::11]:9053",
        "[2001:db8::12]:53",
        "[2001:db8::13]:53",
    ],
];
/// Backends of the first colour, then of the second one.
const BACKENDS: [[[&str; 2]; 2]; 2] = [
    [["10.0.1.11:53", "10.0.1.12:53"], ["10.0.2.11:53", "10.0.2.12:53"]],
    [["[fd00:1::11]:53", "[fd00:1::12]:53"], ["[fd00:2::11]:53", "[fd00:2::12]:53"]],
];
/// The last one is a tester of one deployment.
const CLIENTS: [[&str; 3]; 2] = [
    ["192.0.2.1:40000", "192.0.2.1:40001", "198.51.100.5:40000"],
    ["[2001:db8:1::1]:40000", "[2001:db8:1::1]:40001", "[2001:db8:7::5]:40000"],
];
/// Deployments under test, which are not the first one.
const DEPLOYMENTS: [u16; 2] = [1, 2];

/// `salts`: of the four services of each family. `count`: backends of a colour.
fn scenario(mode: Mode, salts: [u16; 4], count: usize) -> Scenario {
    let mut scenario = mirror::mirrored();
    for deployment in DEPLOYMENTS {
        assert_eq!(scenario.deployment(), deployment);
        scenario.deployments[usize::from(deployment)].0.udp_idle = IDLE;
    }
    for (vips, [blue, green]) in VIPS.into_iter().zip(BACKENDS) {
        let ends = |addresses: [&str; 2]| {
            addresses[..count].iter().map(|it| BackendAt { address: at(it), out_of: Some(OUT) }).collect::<Vec<_>>()
        };
        let [first, second] = DEPLOYMENTS;
        let services = [
            (first, vips[0], Some(vips[1]), [blue, green], true),
            (first, vips[2], Some(vips[3]), [blue, green], true),
            (first, vips[4], None, [green, blue], false),
            (second, vips[5], None, [green, blue], true),
        ];
        for ((deployment, vip, preview, colours, is_mirrored), salt) in services.into_iter().zip(salts) {
            let index = scenario.service(&ServiceAt {
                deployment,
                vip: at(vip),
                preview: preview.map(at),
                protocol: Protocol::Udp,
                mode,
                backends: colours.map(ends),
            });
            scenario.salt(index, salt);
            if is_mirrored {
                scenario.mirror(index);
            }
        }
    }
    scenario.tester(DEPLOYMENTS[0], "198.51.100.0".parse().unwrap(), 24);
    scenario.tester(DEPLOYMENTS[0], "2001:db8:7::".parse().unwrap(), 48);
    scenario
}

#[derive(Clone, Debug)]
enum Step {
    /// A client asks an address, and its backend answers.
    Ask { family: usize, client: usize, vip: usize },
    /// The oldest copy that is on its way comes, and its backend answers.
    Copy,
    /// The other colour of a deployment becomes the live one.
    Switch { deployment: u16, cuts: bool },
    /// So many ticks pass. Copies take less.
    Later(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..2_usize, 0..3_usize, 0..6_usize).prop_map(|(family, client, vip)| Step::Ask { family, client, vip }),
        5 => Just(Step::Copy),
        1 => (select(DEPLOYMENTS.to_vec()), any::<bool>())
            .prop_map(|(deployment, cuts)| Step::Switch { deployment, cuts }),
        1 => (1..IDLE + 4).prop_map(Step::Later),
    ];
    vec(step, 1..80)
}

/// Where a client's datagrams to an address go, and when one was seen, of either end.
type Talks = HashMap<(SocketAddr, SocketAddr), (SocketAddr, u32)>;

#[derive(Default)]
struct Counts {
    sent: u32,
    withheld: u32,
}

struct World {
    host: Host,
    now: u32,
    talks: Talks,
    on_the_way: VecDeque<(PacketSpec, Colour)>,
    counts: Counts,
}

impl World {
    fn run(&mut self, step: &Step) -> TestCaseResult {
        match *step {
            Step::Ask { family, client, vip } => self.ask(CLIENTS[family][client], VIPS[family][vip]),
            Step::Copy => self.copy(),
            Step::Switch { deployment, cuts } => {
                let word = self.host.word(deployment);
                let (generation, share) = (word.generation() + 1, word.live().other().full_share());
                let mut terms = SwitchTerms::default();
                let flags = if cuts { LiveFlags::CUT } else { LiveFlags::DRAINING };
                if cuts {
                    terms.ended_before[word.live() as usize] = generation;
                }
                self.host.set_live(deployment, LiveWord::new(generation, flags, word.target_share(), share), terms);
                Ok(())
            }
            Step::Later(ticks) => {
                while !self.on_the_way.is_empty() {
                    self.copy()?;
                }
                self.now += ticks;
                self.host.later(self.now);
                Ok(())
            }
        }
    }

    fn ask(&mut self, client: &str, vip: &str) -> TestCaseResult {
        let datagram = udp(client, vip);
        let Outcome { action, frame } = self.host.ingress(&datagram.frame());
        if action == Action::Drop {
            return Ok(());
        }
        let backend = ends(&frame).1;
        for colour in mirror::copies(&self.host) {
            self.on_the_way.push_back((datagram.clone(), colour));
        }
        self.talks.insert((at(client), at(vip)), (backend, self.now));
        let Outcome { action, frame } = self.host.egress(&PacketSpec::udp(backend, at(client)).frame());
        prop_assert_eq!((action, ends(&frame).0), (Action::Deliver, at(vip)), "{} asks {} at {}", client, vip, backend);
        Ok(())
    }

    fn copy(&mut self) -> TestCaseResult {
        let Some((datagram, colour)) = self.on_the_way.pop_front() else { return Ok(()) };
        let client = datagram.from;
        let talks_to: Vec<SocketAddr> = self
            .talks
            .iter()
            .filter(|((from, _), (_, seen))| *from == client && self.now - seen <= IDLE)
            .map(|(_, (backend, _))| *backend)
            .collect();
        let Outcome { action, frame } = self.host.copied(&datagram.frame(), colour);
        if action == Action::Drop {
            self.counts.withheld += 1;
            let is_of_colour = |it: &&SocketAddr| {
                let colours = &BACKENDS[usize::from(client.is_ipv6())];
                let is_reversed = !VIPS[usize::from(client.is_ipv6())][..4].iter().any(|vip| at(vip) == datagram.to);
                let of_colour = colours[colour as usize ^ usize::from(is_reversed)];
                of_colour.iter().any(|backend| at(backend) == **it)
            };
            prop_assert!(talks_to.iter().any(|it| is_of_colour(&it)), "lost without a reason: {:?}", datagram);
            return Ok(());
        }
        self.counts.sent += 1;
        let backend = ends(&frame).1;
        prop_assert!(!talks_to.contains(&backend), "{} talks to {} itself", client, backend);
        // Whatever comes back by any hook stays here.
        let answer = PacketSpec::udp(backend, client).frame();
        for outcome in [self.host.early(&answer), self.host.ingress(&answer), self.host.egress(&answer)] {
            prop_assert_eq!(outcome.action, Action::Drop, "{} hears {}", client, backend);
        }
        Ok(())
    }
}

#[test]
fn no_client_hears_an_answer_to_a_copy_whatever_else_it_sends() {
    let mut all = Counts::default();
    for mode in [Mode::Nat, Mode::Local] {
        for salts in [[0; 4], [1, 1, 2, 3], [1, 2, 2, 1]] {
            for count in [1, 2] {
                let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
                let counts = std::cell::RefCell::new(Counts::default());
                proptest::test_runner::TestRunner::new(config)
                    .run(&steps(), |steps| {
                        let host = Host::load(scenario(mode, salts, count), NOW);
                        let mut world = World {
                            host,
                            now: NOW,
                            talks: Talks::new(),
                            on_the_way: VecDeque::new(),
                            counts: Counts::default(),
                        };
                        for step in &steps {
                            world.run(step)?;
                        }
                        let mut sum = counts.borrow_mut();
                        sum.sent += world.counts.sent;
                        sum.withheld += world.counts.withheld;
                        Ok(())
                    })
                    .unwrap_or_else(|failure| panic!("{mode:?}, {salts:?}, {count}: {failure}"));
                let counts = counts.into_inner();
                all.sent += counts.sent;
                all.withheld += counts.withheld;
            }
        }
    }
    assert!(all.sent > 1000 && all.withheld > 1000, "{} copies were sent, {} withheld", all.sent, all.withheld);
}
