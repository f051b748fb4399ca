//! All services of a deployment switch by one store (invariant 2), and when `bgctl switch` has returned, no
//! new flow is decided by the old word (invariant 3).
//!
//! Two probers, on as many CPUs as there are, ask both services in turn, each question a flow of its own; the
//! backends number and date what arrives. Questions and switches go on until there are enough of both, and each switch
//! waits until enough has been asked since the last one, however busy the machine is. For each switch, with all times
//! read from one clock:
//!
//! - as soon as one flow of either service has been answered by the new colour, no flow of either that is sent
//!   later reaches the old one;
//! - no flow that is sent after `bgctl switch` has returned reaches the old colour;
//! - no question stays unanswered, and the numbers of each backend are complete, so that nothing has
//!   arrived anywhere without being seen here.

use anyhow::{Result, anyhow, ensure};
use bg_common::Colour;
use bg_tests::{
    Asked, NewFlows, Ready, address,
    config::{DEPLOYMENT, udp_vip},
    monotonic_ns,
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Questions to each of the two services, at least.
const PROBES: usize = 100_000;
/// Switches, at least.
const SWITCHES: usize = 60;
/// Questions to each service between the end of a switch and the start of the next one, at least.
const BETWEEN: usize = 11;
const PROBERS: usize = 2;

/// What probers and switcher tell each other.
#[derive(Default)]
struct Progress {
    /// How often both services have been asked, by all probers.
    rounds: AtomicUsize,
    /// Whether there have been enough switches, or no more will come.
    is_switched: AtomicBool,
}

impl Progress {
    /// Waits until so many rounds are over; fails if probers have ended.
    fn wait_for(&self, rounds: usize) -> Result<()> {
        let start = Instant::now();
        while self.rounds.load(Ordering::SeqCst) < rounds {
            ensure!(start.elapsed() < Duration::from_secs(30), "nobody asks any more");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// One switch, between the start of its process and its end.
struct Switch {
    to: Colour,
    started_ns: u64,
    returned_ns: u64,
}

/// One question.
#[derive(Debug)]
struct Question {
    service: usize,
    asked: Asked,
}

impl Question {
    fn colour(&self) -> Option<Colour> {
        self.asked.answer.as_ref().map(|answer| answer.colour)
    }
}

/// Asks both services in turn.
fn probe(ready: &Ready, prober: usize, progress: &Progress) -> Result<Vec<Question>> {
    let live = ready.live()?;
    let ports = [1024..33_000, 33_000..65_000][prober].clone();
    let [v4, v6] = addresses();
    let mut flows = [
        NewFlows::new(udp_vip(address::VIP_V4), &v4, ports.clone()),
        NewFlows::new(udp_vip(address::VIP_V6), &v6, ports),
    ];
    let mut questions = Vec::with_capacity(4 * PROBES / PROBERS);
    for round in 0.. {
        let is_enough = round >= PROBES / PROBERS;
        if is_enough && progress.is_switched.load(Ordering::SeqCst) {
            break;
        }
        for (service, flows) in flows.iter_mut().enumerate() {
            let asked = flows.ask(&live)?;
            ensure!(asked.answer.is_some(), "no answer from service {service}: {asked:?}");
            questions.push(Question { service, asked });
        }
        progress.rounds.fetch_add(1, Ordering::SeqCst);
        if is_enough {
            // There are only so many five-tuples.
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(questions)
}

/// The client's addresses of both families: with the ports, more five-tuples than there are questions.
fn addresses() -> [Vec<IpAddr>; 2] {
    let more = |first: IpAddr, prefix: &str| {
        let others = (3..=9).map(|host| format!("{prefix}{host}").parse().expect("an address"));
        std::iter::once(first).chain(others).collect()
    };
    [more(address::CLIENT_V4, "192.0.2."), more(address::CLIENT_V6, "2001:db8:c::")]
}

/// Switches to and fro until enough has been asked and switched.
fn switch(ready: &Ready, progress: &Progress) -> Result<Vec<Switch>> {
    let mut switches = Vec::new();
    for to in [Colour::Green, Colour::Blue].into_iter().cycle() {
        thread::sleep(Duration::from_millis(50));
        let rounds = progress.rounds.load(Ordering::SeqCst);
        // Each prober may be in the middle of a round that began before.
        progress.wait_for(rounds + PROBERS + BETWEEN)?;
        if rounds >= PROBES && switches.len() >= SWITCHES {
            break;
        }
        let started_ns = monotonic_ns();
        ready.bgctl.run(&["switch", DEPLOYMENT, to.name()])?;
        switches.push(Switch { to, started_ns, returned_ns: monotonic_ns() });
    }
    Ok(switches)
}

#[test]
fn two_services_never_disagree_and_no_flow_is_decided_by_the_old_word_after_the_fence() -> Result<()> {
    let ready = Ready::native("")?;
    for (addresses, rest) in addresses().iter().zip(["/24 dev eth0", "/64 dev eth0 nodad"]) {
        for address in &addresses[1..] {
            ready.lab.client.ip(&format!("address add {address}{rest}"))?;
        }
    }
    let progress = Progress::default();
    let (questions, switches) = thread::scope(|scope| -> Result<_> {
        let probers = [0, 1].map(|prober| {
            let (ready, progress) = (&ready, &progress);
            scope.spawn(move || ready.lab.client.enter(|| probe(ready, prober, progress))?)
        });
        let switches = switch(&ready, &progress);
        progress.is_switched.store(true, Ordering::SeqCst);
        let questions = probers.map(|prober| prober.join().map_err(|_| anyhow!("a prober panicked"))?);
        Ok((questions.into_iter().collect::<Result<Vec<_>>>()?, switches?))
    })?;
    let mut questions: Vec<_> = questions.into_iter().flatten().collect();
    questions.sort_by_key(|question| question.asked.sent_ns);
    assert!(questions.len() >= 2 * PROBES && switches.len() >= SWITCHES);

    assert_all_arrived_where_they_were_seen(&questions);
    let mut between = 0;
    for (index, switch) in switches.iter().enumerate() {
        let end = switches.get(index + 1).map_or(u64::MAX, |next| next.started_ns);
        let begin = questions.partition_point(|question| question.asked.sent_ns < switch.started_ns);
        let during = &questions[begin..questions.partition_point(|question| question.asked.sent_ns < end)];
        between += assert_switched_at_once(switch, during, end);
    }
    println!("{} questions, {} switches, {between} sent while one was under way", questions.len(), switches.len());
    assert!(between > switches.len(), "too few questions were sent while a switch was under way: {between}");
    ready.neighbour_is_undisturbed()
}

/// `during` are the questions sent from the start of the switch to that of the next one, at `end`. Returns how many
/// were sent before the command had returned.
fn assert_switched_at_once(switch: &Switch, during: &[Question], end: u64) -> usize {
    // A prober that had to wait for a CPU between looking at the clock and sending may have been decided by the next one.
    let (during, straddling): (Vec<_>, Vec<_>) = during.iter().partition(|question| question.asked.answered_ns < end);
    assert!(straddling.len() <= PROBERS, "{straddling:?}");
    let is_new = |question: &&&Question| question.colour() == Some(switch.to);
    for service in [0, 1] {
        let after = during.iter().filter(|q| q.service == service && q.asked.sent_ns > switch.returned_ns);
        assert!(after.clone().count() >= BETWEEN, "too few questions after a switch");
        for question in after {
            assert_eq!(question.colour(), Some(switch.to), "decided by the old word after the fence: {question:?}");
        }
    }
    let first_new = during.iter().filter(is_new).map(|question| question.asked.answered_ns).min();
    let first_new = first_new.unwrap_or(u64::MAX);
    for question in during.iter().filter(|question| question.asked.sent_ns > first_new) {
        assert_eq!(
            question.colour(),
            Some(switch.to),
            "sent after the new colour had answered at {first_new}: {question:?}"
        );
    }
    during.iter().filter(|question| question.asked.sent_ns < switch.returned_ns).count()
}

/// Each backend counts from zero, for each family on its own.
fn assert_all_arrived_where_they_were_seen(questions: &[Question]) {
    let mut numbers = BTreeMap::<_, Vec<u64>>::new();
    for question in questions {
        let answer = question.asked.answer.as_ref();
        let answer = answer.unwrap_or_else(|| panic!("no answer: {question:?}"));
        numbers.entry((&answer.backend, question.service)).or_default().push(answer.number);
    }
    assert_eq!(numbers.len(), 8, "both services of all four backends: {:?}", numbers.keys());
    for (backend, mut seen) in numbers {
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..seen.len() as u64), "a datagram that arrived at {backend:?} was not seen");
    }
}
