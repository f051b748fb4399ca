//! All services of a deployment switch by one store (invariant 2), and when `bgctl switch` has returned, no
//! new flow is decided by the old word (invariant 3).
//!
//! Two probers, on as many CPUs as there are, ask both services in turn, each question a flow of its own; the
//! backends number and date what arrives. For each switch, with all times read from one clock:
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
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// Questions to each of the two services.
const PROBES: usize = 100_000;
const PROBERS: usize = 2;

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
fn probe(ready: &Ready, prober: usize) -> Result<Vec<Question>> {
    let live = ready.live()?;
    let ports = [1024..33_000, 33_000..65_000][prober].clone();
    // More questions than ports: a second address for each prober.
    let mut flows = [
        NewFlows::new(udp_vip(address::VIP_V4), &[address::CLIENT_V4, SECOND_V4.parse()?], ports.clone()),
        NewFlows::new(udp_vip(address::VIP_V6), &[address::CLIENT_V6, SECOND_V6.parse()?], ports),
    ];
    let mut questions = Vec::with_capacity(2 * PROBES / PROBERS);
    for _ in 0..PROBES / PROBERS {
        for (service, flows) in flows.iter_mut().enumerate() {
            let asked = flows.ask(&live)?;
            ensure!(asked.answer.is_some(), "no answer from service {service}: {asked:?}");
            questions.push(Question { service, asked });
        }
    }
    Ok(questions)
}

const SECOND_V4: &str = "192.0.2.3";
const SECOND_V6: &str = "2001:db8:c::3";

/// Switches to and fro until told to stop.
fn switch(ready: &Ready, stop: &AtomicBool) -> Result<Vec<Switch>> {
    let mut switches = Vec::new();
    for to in [Colour::Green, Colour::Blue].into_iter().cycle() {
        thread::sleep(Duration::from_millis(50));
        if stop.load(Ordering::Relaxed) {
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
    ready.lab.client.ip(&format!("address add {SECOND_V4}/24 dev eth0"))?;
    ready.lab.client.ip(&format!("address add {SECOND_V6}/64 dev eth0 nodad"))?;
    let stop = AtomicBool::new(false);
    let (questions, switches) = thread::scope(|scope| -> Result<_> {
        let probers = [0, 1].map(|prober| {
            let ready = &ready;
            scope.spawn(move || ready.lab.client.enter(|| probe(ready, prober))?)
        });
        let switcher = scope.spawn(|| switch(&ready, &stop));
        let questions = probers.map(|prober| prober.join().map_err(|_| anyhow!("a prober panicked"))?);
        stop.store(true, Ordering::Relaxed);
        let switches = switcher.join().map_err(|_| anyhow!("the switcher panicked"))??;
        Ok((questions.into_iter().collect::<Result<Vec<_>>>()?, switches))
    })?;
    let mut questions: Vec<_> = questions.into_iter().flatten().collect();
    questions.sort_by_key(|question| question.asked.sent_ns);
    assert_eq!(questions.len(), 2 * PROBES);
    assert!(switches.len() >= 50, "{} switches are too few", switches.len());

    assert_all_arrived_where_they_were_seen(&questions);
    let mut between = 0;
    for (index, switch) in switches.iter().enumerate() {
        // During the last ones there may have been no questions left.
        let Some(next) = switches.get(index + 1) else { break };
        let begin = questions.partition_point(|question| question.asked.sent_ns < switch.started_ns);
        let during = &questions[begin..questions.partition_point(|question| question.asked.sent_ns < next.started_ns)];
        between += assert_switched_at_once(switch, during);
    }
    println!("{} switches, {between} questions sent while one was under way", switches.len());
    assert!(between > switches.len(), "too few questions were sent while a switch was under way: {between}");
    ready.neighbour_is_undisturbed()
}

/// `during` are the questions sent from the start of the switch to that of the next one. Returns how many
/// were sent before the command had returned.
fn assert_switched_at_once(switch: &Switch, during: &[Question]) -> usize {
    let is_new = |question: &&Question| question.colour() == Some(switch.to);
    for service in [0, 1] {
        let after = during.iter().filter(|q| q.service == service && q.asked.sent_ns > switch.returned_ns);
        assert!(after.clone().count() > 10, "too few questions after a switch");
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
