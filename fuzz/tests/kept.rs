//! All inputs that are kept pass: real packets and files, and what was once found. And a few thousand chosen ones, which reach what they are to reach.

use bg_common::Event;
use bg_ebpf::Action;
use bg_fuzz::{
    TARGETS,
    chosen::Chosen,
    corpus,
    engine::{Played, played},
    target,
};

#[test]
fn every_input_that_is_kept_passes() {
    for target in &TARGETS {
        let inputs = corpus::inputs(target).expect("a directory of inputs");
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        for (path, input) in inputs {
            println!("{}", path.display());
            assert!(input.len() <= target.longest, "{} is too long", path.display());
            assert!((target.feed)(&input) > 0, "{} feeds nothing", path.display());
        }
    }
}

#[test]
fn scripts_reach_every_action_and_event() {
    let mut sum = Played::default();
    for (name, leaves) in [("forwards", false), ("replies", true)] {
        let target = target(name).expect("a target");
        let kept: Vec<_> = corpus::inputs(target).expect("inputs").into_iter().map(|(_, bytes)| bytes).collect();
        let mut chosen = Chosen::new(target, &kept, 1);
        for nth in 0..3000 {
            let script = kept.get(nth).map_or_else(|| chosen.choose().to_vec(), Clone::clone);
            let Played { fed, actions, encapsulated, events } = played(&script, leaves);
            sum.fed += fed;
            sum.encapsulated += encapsulated;
            sum.actions.iter_mut().zip(actions).for_each(|(sum, more)| *sum += more);
            sum.events.iter_mut().zip(events).for_each(|(sum, more)| *sum += more);
        }
    }
    println!("{sum:?}");
    // Neither of the two is a decision.
    let undecided = [Action::Icmp, Action::Direct].map(|action| action as usize);
    for (action, count) in sum.actions.into_iter().enumerate() {
        assert_eq!(count == 0, undecided.contains(&action), "action {action}: {count}");
    }
    assert!(sum.encapsulated > 0);
    // One is not counted any more, and two are the queue's, which a stage has not.
    let unreached = [Event::EgressGone, Event::HoldOverflow, Event::HeldTooLong];
    for event in Event::ALL.into_iter().filter(|event| !unreached.contains(event)) {
        assert!(sum.events[event as usize] > 0, "{event:?} was not reached");
    }
}
