//! Which commands end a drain, and which flows it waits for.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bg_common::{
    Backend, Be16, Clock, Colour, Flow, FlowBackend, FlowKey4, FlowState, LiveFlags, LiveWord, SwitchTerms, TICK_SHIFT,
};
use bg_ebpf::{flow::table::Stored, policy::lifetime::after_drain};
use bg_userspace::{
    AttachMode, FlowFilter, SwitchRequest,
    config::{Config, OnSwitch},
};

use crate::{
    flow_map::{FlowMap, array},
    lab::{Lab, config},
};

/// Tells another thread to end, also when this one panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn running(configuration: &Config) -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(configuration).unwrap();
    // Reads the clock.
    lab.instance().status(None).unwrap();
    lab
}

fn shop() -> Config {
    config("shop", &[(1, 1)], &[(1, 1)])
}

fn switch(lab: &Lab, deployment: &str) {
    let request = SwitchRequest { on_switch: Some(OnSwitch::Drain), ..SwitchRequest::default() };
    lab.instance().switch(deployment, &request).unwrap();
}

fn word(lab: &Lab, deployment: u32) -> (LiveWord, SwitchTerms) {
    let word: LiveWord = array(lab, "live").get(&deployment, 0).unwrap();
    (word, array::<[SwitchTerms; 2]>(lab, "terms").get(&deployment, 0).unwrap()[word.terms_slot()])
}

fn is_draining(lab: &Lab) -> bool {
    word(lab, 0).0.flags().has(LiveFlags::DRAINING)
}

/// Makes the drain of the first deployment two minutes older, so that it can end.
fn age(lab: &Lab) {
    let mut terms = array::<[SwitchTerms; 2]>(lab, "terms");
    let mut slots = terms.get(&0, 0).unwrap();
    // At the highest timer frequency; more at others.
    slots
        .iter_mut()
        .for_each(|slot| slot.drain_began = slot.drain_began.wrapping_sub((120 * 1000) >> TICK_SHIFT).max(1));
    terms.set(0, slots, 0).unwrap();
}

/// Opens a flow of the first service at a colour, by a client of this number; returns its key.
fn open(lab: &Lab, client: u32, colour: Colour, state: u32) -> FlowKey4 {
    let clock: Clock = array(lab, "clock").get(&0, 0).unwrap();
    let backends = array::<Backend>(lab, "backends");
    let mut slots = (0..8).map(|slot| (slot, backends.get(&slot, 0).unwrap()));
    let (slot, row) = slots.find(|(_, row)| row.identity.in_use == 1 && row.colour == colour as u8).unwrap();
    let flow = Flow {
        state: FlowState(FlowState::CONFIRMED | FlowState::ANSWERED | state),
        backend: FlowBackend::new(slot, row.identity.epoch),
        generation: word(lab, 0).0.generation(),
        last_seen: (clock.jiffies >> TICK_SHIFT) as u32,
        ..Flow::default()
    };
    let key = FlowKey4 { client, port: Be16::new(5000), vip: 0 };
    assert_eq!(FlowMap::open(lab).insert(&key, &flow, flow.last_seen), Stored::Yes);
    key
}

#[test]
fn a_drain_ends_when_a_command_sees_that_no_flow_is_left() {
    type Command = fn(&Lab);
    let commands: [Command; 4] = [
        |lab| _ = lab.instance().status(None).unwrap(),
        |lab| _ = lab.instance().flows(&FlowFilter::default()).unwrap(),
        |lab| _ = lab.instance().count_flows(&FlowFilter::default()).unwrap(),
        |lab| _ = lab.instance().apply(&shop()).unwrap(),
    ];
    for command in commands {
        let lab = running(&shop());
        let flow = open(&lab, 1, Colour::Blue, 0);
        switch(&lab, "shop");
        age(&lab);
        let before = word(&lab, 0);
        command(&lab);
        assert_eq!(word(&lab, 0), before, "one flow is left");
        FlowMap::open(&lab).find(&flow).unwrap().set(FlowState::CLIENT_RESET);
        lab.instance().plan(&Config::default()).unwrap();
        assert_eq!(word(&lab, 0), before, "a plan changes nothing");
        command(&lab);
        let (settled, ended_before) = after_drain(before.0, &before.1);
        assert_eq!(word(&lab, 0), (settled, SwitchTerms { ended_before, ..before.1 }));
        let status = lab.instance().status(None).unwrap();
        assert_eq!((status.deployments[0].phase, status.deployments[0].generation), ("steady", 2));
        assert_eq!(word(&lab, 0).0, settled);
    }
}

#[test]
fn flows_of_testers_and_of_the_live_colour_keep_no_drain_up() {
    let lab = running(&shop());
    open(&lab, 1, Colour::Green, FlowState::IDLE_ONLY);
    switch(&lab, "shop");
    open(&lab, 2, Colour::Green, 0);
    open(&lab, 3, Colour::Blue, FlowState::IDLE_ONLY);
    age(&lab);
    lab.instance().status(None).unwrap();
    assert!(!is_draining(&lab));
    // They are as open as before.
    let status = lab.instance().status(None).unwrap();
    assert_eq!((status.deployments[0].flows.blue, status.deployments[0].flows.green), (1, 1));
}

#[test]
fn a_switch_ends_drains_whose_deadline_has_passed() {
    let mut both = shop();
    // Longer than a busy machine needs to look once, and over after the pause below.
    both.deployments[0].drain_timeout = Some(Duration::from_millis(900));
    let mut mail = config("mail", &[(3, 1)], &[(3, 1)]).deployments.remove(0);
    mail.services[0].vip.set_port(25);
    both.deployments.push(mail);
    let lab = running(&both);
    open(&lab, 1, Colour::Blue, 0);
    switch(&lab, "shop");
    assert!(is_draining(&lab));
    // A tick is 64 jiffies.
    std::thread::sleep(Duration::from_millis(2000));
    switch(&lab, "mail");
    assert!(!is_draining(&lab));
    assert_eq!(word(&lab, 0).1.ended_before, [2, 0], "its flow stays ended");
    assert!(word(&lab, 1).0.flags().has(LiveFlags::DRAINING), "flows are not counted in an emergency");
}

#[test]
fn the_end_of_a_drain_leaves_the_terms_of_a_switch_meanwhile_as_they_are() {
    let lab = running(&shop());
    switch(&lab, "shop");
    age(&lab);
    let (mut live, mut terms) = (array::<LiveWord>(&lab, "live"), array::<[SwitchTerms; 2]>(&lab, "terms"));
    let (before, aged) = (live.get(&0, 0).unwrap(), terms.get(&0, 0).unwrap());
    // Two switches later, with its terms in the same slot.
    let after = LiveWord::new(before.generation() + 2, before.flags(), 0, 10_000);
    let slots = [SwitchTerms { ended_before: [7; 2], ..SwitchTerms::default() }; 2];
    let lock = std::fs::File::open(lab.paths.maps()).unwrap();
    let start = std::time::Instant::now();
    lab.instance().status(None).unwrap();
    assert!(!is_draining(&lab));
    let took = start.elapsed();
    // At all instants of the search.
    for round in 0..60 {
        terms.set(0, aged, 0).unwrap();
        live.set(0, before, 0).unwrap();
        let instance = lab.instance();
        std::thread::scope(|scope| {
            let status = scope.spawn(|| instance.status(None).unwrap());
            std::thread::sleep(took * round / 60);
            lock.lock().unwrap();
            terms.set(0, slots, 0).unwrap();
            live.set(0, after, 0).unwrap();
            lock.unlock().unwrap();
            status.join().unwrap();
        });
        assert_eq!(word(&lab, 0), (after, slots[0]), "{round}");
    }
}

/// A packet does not know the lock.
#[test]
fn a_word_of_which_only_a_flag_changes_is_exchanged_all_the_same() {
    let lab = running(&shop());
    let map = aya::maps::MapData::from_pin(lab.paths.map("live")).unwrap();
    let memory = {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        memmap2::MmapOptions::new().len(4096).map_raw(map.fd().as_fd().as_raw_fd()).unwrap()
    };
    // SAFETY: an aligned word of a mapping that outlives it, which all access as an atomic.
    let live = unsafe { std::sync::atomic::AtomicU64::from_ptr(memory.as_mut_ptr().cast()) };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let now = LiveWord(live.load(Ordering::SeqCst));
                let flags = LiveFlags(now.flags().0 ^ LiveFlags::CUT.0);
                let _ = live.compare_exchange(now.0, now.with_flags(flags).0, Ordering::SeqCst, Ordering::SeqCst);
                // Longer than a switch takes from its look at the word to the exchange.
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        for generation in 1..300 {
            let request = SwitchRequest { if_generation: Some(generation), ..SwitchRequest::default() };
            assert!(lab.instance().switch("shop", &request).unwrap().changed);
        }
    });
}
