//! All orders of all steps of packets on two CPUs, commands that may be killed, and time.
//!
//! `BG_TEST_FULL=1` lets more CPUs take part, and more time pass.

use Command::{Confirm, Freeze, Rollback};
use bg_common::FULL_SHARE;
use bg_model::{Command, Fault, Mutation, Protocol, Switch};

const GREEN: Switch = Switch::to(FULL_SHARE).cut();
const PARTLY_GREEN: Switch = Switch::to(3000);
const BLUE: Switch = Switch::to(0);

const fn switch(switch: Switch) -> Command {
    Command::Switch(switch)
}

fn protocol(commands: &[Command], cpus: usize, horizon: u64) -> Protocol {
    Protocol { commands: commands.to_vec(), cpus, horizon, kills: 1, mutation: None }
}

/// Visits all states.
fn check(commands: &[Command], cpus: usize, horizon: u64, must_be_possible: &[&'static str]) {
    let more = u64::from(std::env::var_os("BG_TEST_FULL").is_some());
    protocol(commands, cpus, horizon + more).assert_holds(must_be_possible);
    if more != 0 {
        protocol(commands, cpus + 1, horizon).assert_holds(must_be_possible);
    }
}

#[test]
fn switches_that_are_killed_are_repeated() {
    check(&[switch(GREEN), switch(BLUE), switch(PARTLY_GREEN)], 2, 1, &["all returned"]);
}

#[test]
fn a_guarded_switch_is_kept_or_taken_back() {
    check(&[switch(GREEN.guarded()), Confirm], 2, 4, &["kept", "taken back", "too late", "all returned"]);
}

#[test]
fn a_guarded_switch_is_replaced_before_or_after_its_deadline() {
    check(&[switch(GREEN.guarded()), Rollback], 2, 4, &["taken back", "all returned"]);
}

#[test]
fn a_scheduled_switch_takes_effect_or_is_cancelled() {
    check(&[switch(GREEN.at(1)), Rollback], 2, 3, &["cancelled", "all returned"]);
}

#[test]
fn a_guarded_schedule_is_kept_or_taken_back() {
    check(&[switch(GREEN.at(1).guarded()), Confirm], 1, 5, &["kept", "taken back", "too late", "all returned"]);
}

#[test]
fn a_guarded_schedule_is_cancelled_or_replaced() {
    check(&[switch(GREEN.at(1).guarded()), Rollback], 1, 5, &["cancelled", "taken back", "all returned"]);
}

#[test]
fn a_ramp_only_grows_until_it_is_over_or_cancelled() {
    check(&[switch(GREEN.ramp()), switch(PARTLY_GREEN)], 2, 3, &["moved", "cancelled", "all returned"]);
}

#[test]
fn a_freeze_holds_until_its_end_whatever_is_switched() {
    check(&[Freeze(2), switch(GREEN.guarded())], 2, 4, &["taken back", "all returned"]);
    check(&[Freeze(2), switch(GREEN.at(1))], 2, 3, &["all returned"]);
    check(&[Freeze(2), switch(GREEN), switch(BLUE)], 2, 2, &["all returned"]);
}

#[test]
fn a_freeze_is_put_off_until_its_new_end() {
    check(&[Freeze(1), Freeze(2)], 2, 3, &["all returned"]);
}

fn finds(mutation: Mutation, commands: &[Command], cpus: usize, horizon: u64, fault: Fault) {
    let protocol = protocol(commands, cpus, horizon);
    Protocol { mutation: Some(mutation), ..protocol }.assert_fails(fault);
}

#[test]
fn each_fault_of_the_protocol_is_found() {
    let plain = [switch(GREEN), switch(BLUE), switch(PARTLY_GREEN)];
    finds(Mutation::NoFenceBefore, &plain, 2, 0, Fault::ForeignTerms);
    finds(Mutation::NoFenceAfter, &plain, 2, 0, Fault::OldWord);
    finds(Mutation::WordFirst, &plain, 2, 0, Fault::ForeignTerms);
    finds(Mutation::NoLock, &plain, 2, 0, Fault::ForeignTerms);
    let confirmed = [switch(GREEN.guarded()), Confirm];
    finds(Mutation::ConfirmByStore, &confirmed, 2, 4, Fault::WentBack);
    finds(Mutation::ExpiryByStore, &confirmed, 2, 4, Fault::TwoOutcomes);
    finds(Mutation::LateDeadline, &confirmed, 2, 4, Fault::NotTakenBack);
    finds(Mutation::NoLastLook, &confirmed, 2, 4, Fault::ForeignTerms);
    let replaced = [switch(GREEN.guarded()), Rollback];
    finds(Mutation::NoReprieve, &replaced, 2, 4, Fault::ForeignTerms);
    finds(Mutation::NoSecondLook, &replaced, 2, 4, Fault::ForeignTerms);
    let cancelled = [switch(GREEN.at(1).guarded()), Rollback];
    finds(Mutation::ImplicitState, &cancelled, 1, 5, Fault::ForeignTerms);
    finds(Mutation::BlindFreeze, &[Freeze(2), switch(GREEN.guarded())], 2, 4, Fault::NotHeld);
    finds(Mutation::HastyFreeze, &[Freeze(1), Freeze(2)], 2, 3, Fault::NotHeld);
    finds(Mutation::ForgottenFreeze, &[Freeze(2), switch(GREEN)], 1, 3, Fault::NotHeld);
    finds(Mutation::HastyConfirm, &[switch(GREEN.at(1).guarded()), Confirm], 1, 5, Fault::TwoOutcomes);
}
