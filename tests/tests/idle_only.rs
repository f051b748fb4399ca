//! Testers and the preview address reach the idle colour and nothing else, users the live colour and nothing
//! else (invariant 6), while the colours change places.
//!
//! What is proven, and for which flows. Every flow is one UDP datagram from a port of its own, and the live
//! word is read, from the map itself, before it is sent and after its answer has come. Where both readings are the
//! same, the programs have met that very word, and the colour that answered is judged by it: no
//! tolerance, no grace after a switch. A flow that was in flight while the word changed may have met
//! either word; such a flow is not judged, and there must be few of them. Unanswered may be those only:
//! a reply to a tester whose colour has become the live one meanwhile is dropped.

use anyhow::{Result, anyhow};
use bg_common::{Colour, LiveWord};
use bg_tests::{
    Asked, Fabric, Lab, Live, NewFlows, Ready, address, ask,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    load::{Echo, Fresh, KeepAlive},
};
use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const SWITCHES: usize = 100;
const FLOWS: usize = 100_000;
/// Preview port of the UDP services.
const UDP_PREVIEW_PORT: u16 = 9053;
/// Ports of flows to the VIPs, and of flows to the preview addresses. The first one is that of the flow that stays.
const LOW: Range<u16> = 1024..33_000;
const HIGH: Range<u16> = 33_000..65_000;

/// Who asks, where, and which colour that must reach.
#[derive(Clone, Debug)]
struct Class {
    name: &'static str,
    from: [IpAddr; 2],
    to: [SocketAddr; 2],
    ports: Range<u16>,
    reaches: fn(LiveWord) -> Colour,
}

const fn live(word: LiveWord) -> Colour {
    word.live()
}

const fn idle(word: LiveWord) -> Colour {
    word.live().other()
}

fn classes() -> [Class; 4] {
    use address::{CLIENT_V4, CLIENT_V6, TESTER_V4, TESTER_V6, VIP_V4, VIP_V6};
    let (users, testers) = ([CLIENT_V4, CLIENT_V6], [TESTER_V4, TESTER_V6]);
    let vips = [udp_vip(VIP_V4), udp_vip(VIP_V6)];
    let previews = [VIP_V4, VIP_V6].map(|vip| SocketAddr::new(vip, UDP_PREVIEW_PORT));
    [
        Class { name: "users", from: users, to: vips, ports: LOW, reaches: live },
        Class { name: "testers", from: testers, to: vips, ports: LOW, reaches: idle },
        Class { name: "users by the preview address", from: users, to: previews, ports: HIGH, reaches: idle },
        Class { name: "testers by the preview address", from: testers, to: previews, ports: HIGH, reaches: idle },
    ]
}

/// The account of a class.
#[derive(Debug, Default)]
struct Account {
    judged: [usize; 2],
    in_flight: usize,
    wrong: Vec<String>,
}

impl Account {
    fn flows(&self) -> usize {
        self.judged[0] + self.judged[1] + self.in_flight
    }

    fn enter(&mut self, class: &Class, asked: &Asked) {
        if asked.before != asked.after {
            self.in_flight += 1;
            return;
        }
        let expected = (class.reaches)(asked.before);
        self.judged[expected as usize] += 1;
        if asked.answer.as_ref().map(|answer| answer.colour) != Some(expected) && self.wrong.len() < 5 {
            self.wrong.push(format!("{}: expected {expected:?}, got {asked:?}", class.name));
        }
    }
}

/// New flows of the class, over both families in turn, and one flow of each family that stays, until told
/// to stop and there are enough.
fn probe(class: &Class, live: &Live, switched: &AtomicBool, enough: usize) -> Result<Account> {
    let mut account = Account::default();
    let mut new = class.to.map(|to| {
        let ports = class.ports.start + 1..class.ports.end;
        NewFlows::new(to, &class.from[usize::from(to.is_ipv6())..][..1], ports)
    });
    let first_port = class.ports.start;
    let stays = |family: usize| Echo::open_from(SocketAddr::new(class.from[family], first_port), class.to[family]);
    let stays = [stays(0)?, stays(1)?];
    stays.iter().try_for_each(|flow| flow.set_patience(Duration::from_millis(300)))?;
    let is_user = class.name == "users";
    for round in 0.. {
        if account.flows() >= enough {
            if switched.load(Ordering::Relaxed) {
                break;
            }
            // Ports are finite, and the switches are not over.
            thread::sleep(Duration::from_millis(1));
        }
        account.enter(class, &new[round % 2].ask(live)?);
        // A user's flow that is open stays where it began, as it should in a drain.
        if !is_user && round % 8 < 2 {
            account.enter(class, &ask(&stays[round % 8], &format!("stays {round}"), live)?);
        }
    }
    Ok(account)
}

#[test]
fn testers_meet_the_idle_colour_and_users_the_live_one_through_a_hundred_switches() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let mut config = shop(&lab, "nat", "");
    for vip in [address::VIP_V4, address::VIP_V6] {
        let service = format!("name = \"echo{}\"\n", if vip.is_ipv4() { 4 } else { 6 });
        let preview = format!("preview = \"{}\"\n", SocketAddr::new(vip, UDP_PREVIEW_PORT));
        config = config.replace(&service, &format!("{service}{preview}"));
    }
    let ready = Ready::with(lab, "native", &config)?;
    let (lab, live) = (&ready.lab, ready.live()?);
    let loads = [
        KeepAlive { clients: 4, pause: Duration::from_millis(2) }.start(&lab.client, http_vip(address::VIP_V4))?,
        Fresh { clients: 2, pause: Duration::from_millis(5) }.start(&lab.client, http_vip(address::VIP_V6))?,
    ];

    let switched = AtomicBool::new(false);
    let accounts = thread::scope(|scope| -> Result<_> {
        let probers = classes().map(|class| {
            let (live, switched) = (&live, &switched);
            scope.spawn(move || lab.client.enter(|| probe(&class, live, switched, FLOWS.div_ceil(classes().len())))?)
        });
        let result = (0..SWITCHES).try_for_each(|_| {
            thread::sleep(Duration::from_millis(50));
            ready.bgctl.run(&["switch", DEPLOYMENT]).map(drop)
        });
        switched.store(true, Ordering::Relaxed);
        let accounts = probers.map(|prober| prober.join().map_err(|_| anyhow!("a prober panicked"))?);
        result.and_then(|()| accounts.into_iter().collect::<Result<Vec<_>>>())
    })?;

    for (class, account) in classes().iter().zip(&accounts) {
        println!("{}: on blue, on green: {:?}, in flight {}", class.name, account.judged, account.in_flight);
        assert!(account.wrong.is_empty(), "{}", account.wrong.join("\n"));
        // Both colours had their turns. How many flows fall into each depends on how fast the machine switches.
        assert!(account.judged.iter().all(|judged| *judged > FLOWS / 200), "{account:?}");
        assert!(account.in_flight < account.flows() / 20, "{account:?}");
    }
    assert!(accounts.iter().map(Account::flows).sum::<usize>() >= FLOWS);
    assert_eq!(live.word().generation() as usize, 1 + SWITCHES);
    for load in loads {
        let counts = load.finish()?;
        assert_eq!((counts.failures, counts.strayed), (0, 0), "{:?}", counts.first_failures);
        assert!(counts.total() > 500, "{counts:?}");
    }
    ready.neighbour_is_undisturbed()
}
