//! Testers and the preview address reach the idle colour and nothing else, users the live colour and nothing
//! else (invariant 6), while the colours change places.
//!
//! What is proven, and for which flows. Every flow is one UDP datagram from a port of its own, and the live
//! word is read, from the map itself, before it is sent and after its answer has come. Where both readings are the
//! same, the programs have met that very word, and the colour that answered is judged by it: no
//! tolerance, no grace after a switch. A flow that was in flight while the word changed may have met
//! either word, and is not judged. Only such a flow may be unanswered: a reply to a tester whose colour has become the
//! live one meanwhile is dropped.
//!
//! The flows set the pace of the switches: a generation lasts until enough of each class's flows have been judged in it.

use anyhow::{Result, anyhow, ensure};
use bg_common::{Colour, LiveWord};
use bg_tests::{
    Asked, Fabric, Lab, Live, NewFlows, Ready, address, ask_unless_switched,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    load::{Echo, Fresh, KeepAlive, Load},
};
use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const SWITCHES: usize = 100;
/// Judged flows of each class in each generation, at least: more than 100,000 in all.
const SHARE: usize = 250;
/// Answered requests of each load in each generation, at least, on average.
const REQUESTS: usize = 5;
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
#[derive(Debug)]
struct Account {
    /// By generation.
    judged: [AtomicUsize; SWITCHES + 2],
    in_flight: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Account {
    fn new() -> Self {
        let judged = std::array::from_fn(|_| AtomicUsize::new(0));
        Self { judged, in_flight: AtomicUsize::new(0), wrong: Mutex::default() }
    }

    fn judged_in(&self, generation: usize) -> usize {
        self.judged[generation].load(Ordering::Relaxed)
    }

    fn wrong(&self) -> String {
        self.wrong.lock().expect("a prober panicked").join("\n")
    }

    fn enter(&self, class: &Class, asked: &Asked) {
        if asked.before != asked.after {
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let expected = (class.reaches)(asked.before);
        if asked.answer.as_ref().map(|answer| answer.colour) != Some(expected) {
            let mut wrong = self.wrong.lock().expect("a prober panicked");
            wrong.push(format!("{}: expected {expected:?}, got {asked:?}", class.name));
        }
        self.judged[asked.before.generation() as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// New flows of the class, over both families in turn, and one flow of each family that stays, until told to stop.
fn probe(class: &Class, live: &Live, account: &Account, stop: &AtomicBool) -> Result<()> {
    let mut new = class.to.map(|to| {
        let ports = class.ports.start + 1..class.ports.end;
        NewFlows::new(to, &class.from[usize::from(to.is_ipv6())..][..1], ports)
    });
    let first_port = class.ports.start;
    let stays = |family: usize| Echo::open_from(SocketAddr::new(class.from[family], first_port), class.to[family]);
    let stays = [stays(0)?, stays(1)?];
    let is_user = class.name == "users";
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if account.judged_in(live.word().generation() as usize) > 2 * SHARE {
            // Ports are finite, and the others are slower.
            thread::sleep(Duration::from_millis(2));
        }
        let (flow, payload) = new[round % 2].open()?;
        account.enter(class, &ask_unless_switched(&flow, &payload, live)?);
        // A user's flow that is open stays where it began, as it should in a drain.
        if !is_user && round % 8 < 2 {
            account.enter(class, &ask_unless_switched(&stays[round % 8], &format!("stays {round}"), live)?);
        }
    }
    Ok(())
}

/// Waits until this generation has seen enough of every class and load.
fn wait_for_share(generation: usize, accounts: &[Account], loads: &[Load]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let judged: Vec<_> = accounts.iter().map(|account| account.judged_in(generation)).collect();
        let requests: Vec<_> = loads.iter().map(|load| load.tally().counts().total() as usize).collect();
        for account in accounts {
            ensure!(account.wrong().is_empty(), "{}", account.wrong());
        }
        if judged.iter().all(|judged| *judged >= SHARE) && requests.iter().all(|all| *all >= REQUESTS * generation) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "generation {generation} has judged {judged:?} flows of the classes, and the loads have had {requests:?} answers"
        );
        thread::sleep(Duration::from_millis(1));
    }
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

    let classes = classes();
    let accounts = classes.each_ref().map(|_| Account::new());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let (live, stop) = (&live, &stop);
        let probers: Vec<_> = classes
            .iter()
            .zip(&accounts)
            .map(|(class, account)| scope.spawn(move || lab.client.enter(|| probe(class, live, account, stop))?))
            .collect();
        let switched = wait_for_share(1, &accounts, &loads).and_then(|()| {
            (2..SWITCHES + 2).try_for_each(|generation| {
                ready.bgctl.run(&["switch", DEPLOYMENT])?;
                wait_for_share(generation, &accounts, &loads)
            })
        });
        stop.store(true, Ordering::Relaxed);
        probers.into_iter().try_for_each(|prober| prober.join().map_err(|_| anyhow!("a prober panicked"))?)?;
        switched
    })?;

    for (class, account) in classes.iter().zip(&accounts) {
        let flows = account.judged.iter().map(|judged| judged.load(Ordering::Relaxed)).sum::<usize>();
        let in_flight = account.in_flight.load(Ordering::Relaxed);
        println!("{}: {flows} judged, {in_flight} in flight", class.name);
        assert!(account.wrong().is_empty(), "{}", account.wrong());
        assert!((1..SWITCHES + 2).all(|generation| account.judged_in(generation) >= SHARE), "{account:?}");
        assert!(in_flight <= SWITCHES, "{in_flight}: a class has one flow in flight at a time");
    }
    assert_eq!(live.word().generation() as usize, 1 + SWITCHES);
    for load in loads {
        let counts = load.finish()?;
        assert_eq!((counts.failures, counts.strayed), (0, 0), "{:?}", counts.first_failures);
        assert!(counts.total() as usize > REQUESTS * SWITCHES, "{counts:?}");
    }
    ready.neighbour_is_undisturbed()
}
