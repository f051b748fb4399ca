//! All orders of all steps of packets on two CPUs, commands that may be killed, and time.
//!
//! `BG_TEST_FULL=1` lets more CPUs take part, and more time pass.

use Command::{Confirm, Freeze, Rollback};
use bg_common::{
    Colour::{self, Blue, Green},
    FULL_SHARE,
};
use bg_model::{Command, Fault, Mutation, Protocol, Switch};

const GREEN: Switch = Switch::to(FULL_SHARE).cut();
const PARTLY_GREEN: Switch = Switch::to(3000);
const BLUE: Switch = Switch::to(0);

const fn switch(switch: Switch) -> Command {
    Command::Switch(switch)
}

fn protocol(commands: &[Command], cpus: usize, horizon: u64) -> Protocol {
    Protocol { commands: commands.to_vec(), cpus, horizon, kills: 1, repeats: false, fails: Vec::new(), mutation: None }
}

/// Visits all states.
fn check(commands: &[Command], cpus: usize, horizon: u64, must_be_possible: &[&'static str]) {
    check_if(&[], commands, cpus, horizon, must_be_possible);
}

/// The same if flows of these colours may be reset.
fn check_if(fails: &[Colour], commands: &[Command], cpus: usize, horizon: u64, must_be_possible: &[&'static str]) {
    let protocol = |cpus, horizon| Protocol { fails: fails.to_vec(), ..protocol(commands, cpus, horizon) };
    let more = u64::from(std::env::var_os("BG_TEST_FULL").is_some());
    protocol(cpus, horizon + more).assert_holds(must_be_possible);
    if more != 0 {
        protocol(cpus + 1, horizon).assert_holds(must_be_possible);
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

const WATCHED: Switch = GREEN.watched();

#[test]
fn a_condition_takes_a_switch_back_or_it_is_kept() {
    check_if(&[Green], &[switch(WATCHED), Confirm], 2, 2, &["kept", "tripped", "too late", "all returned"]);
    check_if(&[Green], &[switch(WATCHED.guarded()), Confirm], 1, 2, &["kept", "tripped", "too late", "all returned"]);
}

#[test]
fn a_switch_with_a_condition_is_replaced_before_or_after_that() {
    check_if(&[Green], &[switch(WATCHED), Rollback], 2, 1, &["tripped", "all returned"]);
    check_if(&[Green], &[switch(WATCHED), switch(BLUE), switch(WATCHED)], 1, 1, &["tripped", "all returned"]);
}

#[test]
fn a_schedule_is_judged_once_it_has_taken_effect() {
    check_if(&[Green], &[switch(WATCHED.at(1)), Rollback], 1, 2, &["cancelled", "all returned"]);
    check_if(&[Green], &[switch(WATCHED.at(1)), Confirm], 1, 3, &["kept", "tripped", "all returned"]);
}

#[test]
fn a_ramp_is_judged_while_it_goes_on() {
    check_if(&[Green], &[switch(WATCHED.ramp()), Rollback], 1, 2, &["moved", "cancelled", "tripped", "all returned"]);
    check_if(&[Green], &[switch(WATCHED.ramp()), Confirm], 1, 2, &["moved", "kept", "tripped", "all returned"]);
}

#[test]
fn a_ramp_that_goes_on_with_another_is_taken_back_to_where_that_began() {
    let ramp = switch(WATCHED.ramp());
    check_if(&[Green], &[ramp, ramp], 1, 2, &["moved", "cancelled", "tripped", "all returned"]);
}

#[test]
fn a_ramp_is_judged_by_its_own_flows_whatever_was_judged_before() {
    let back = switch(BLUE.ramp().watched());
    check_if(&[Blue], &[switch(WATCHED), back], 1, 2, &["tripped", "all returned"]);
}

/// Checks a switch, and a confirmation that may be killed and repeated.
fn check_repeated(switched: Switch, horizon: u64) {
    let commands = [switch(switched), Confirm];
    let protocol = Protocol { fails: vec![Green], repeats: true, ..protocol(&commands, 1, horizon) };
    protocol.assert_holds(&["kept", "all returned"]);
}

#[test]
fn a_confirmation_that_is_killed_is_completed_by_the_next() {
    check_repeated(WATCHED.ramp(), 2);
    check_repeated(WATCHED.at(1), 2);
    check_repeated(GREEN.at(1).guarded(), 3);
}

#[test]
fn a_ramp_is_cancelled_after_a_confirmation_that_was_killed() {
    check_if(&[Green], &[switch(WATCHED.ramp()), Confirm, Rollback], 1, 1, &["kept", "cancelled", "all returned"]);
}

#[test]
fn a_freeze_leaves_the_condition_armed() {
    check_if(&[Green], &[Freeze(1), switch(WATCHED)], 1, 2, &["tripped", "all returned"]);
}

#[test]
fn a_condition_that_both_colours_meet_is_not_armed() {
    check_if(&[Blue, Green], &[switch(WATCHED), Rollback], 1, 2, &["all returned"]);
}

fn finds(mutation: Mutation, commands: &[Command], cpus: usize, horizon: u64, fault: Fault) {
    finds_if(&[Green], mutation, commands, cpus, horizon, fault);
}

fn finds_if(fails: &[Colour], mutation: Mutation, commands: &[Command], cpus: usize, horizon: u64, fault: Fault) {
    let protocol = protocol(commands, cpus, horizon);
    Protocol { mutation: Some(mutation), fails: fails.to_vec(), ..protocol }.assert_fails(fault);
}

fn finds_repeated(mutation: Mutation, commands: &[Command], horizon: u64, fault: Fault) {
    let protocol = protocol(commands, 1, horizon);
    Protocol { mutation: Some(mutation), fails: vec![Green], repeats: true, ..protocol }.assert_fails(fault);
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
    finds(Mutation::NoFirstLook, &cancelled, 1, 5, Fault::ForeignTerms);
    finds(Mutation::BlindFreeze, &[Freeze(2), switch(GREEN.guarded())], 2, 4, Fault::NotHeld);
    finds(Mutation::HastyFreeze, &[Freeze(1), Freeze(2)], 2, 3, Fault::NotHeld);
    finds(Mutation::ForgottenFreeze, &[Freeze(2), switch(GREEN)], 1, 3, Fault::NotHeld);
    let confirmed = [switch(GREEN.at(1).guarded()), Confirm];
    finds(Mutation::HastyConfirm, &confirmed, 1, 5, Fault::TwoOutcomes);
    finds_repeated(Mutation::ForgottenConfirm, &confirmed, 2, Fault::Forgotten);
}

#[test]
fn each_fault_of_the_conditions_is_found() {
    let watched = [switch(WATCHED)];
    finds(Mutation::NoPause, &watched, 2, 1, Fault::ForeignTerms);
    finds(Mutation::LastingPause, &watched, 1, 0, Fault::NotTripped);
    finds(Mutation::KeptCounters, &watched, 1, 1, Fault::FalseTrip);
    finds(Mutation::CountsGoOn, &watched, 2, 1, Fault::FalseTrip);
    finds(Mutation::LostPause, &[switch(WATCHED.at(1))], 2, 2, Fault::ForeignTerms);
    let confirmed = [switch(WATCHED), Confirm];
    finds(Mutation::ExpiryByStore, &confirmed, 2, 1, Fault::TwoOutcomes);
    let replaced = [switch(WATCHED), Rollback];
    finds(Mutation::NoReprieve, &replaced, 2, 1, Fault::ForeignTerms);
    finds(Mutation::HastyConfirm, &[switch(WATCHED.ramp()), Confirm], 1, 2, Fault::TwoOutcomes);
    finds_repeated(Mutation::BlindConfirm, &[switch(WATCHED.at(1)), Confirm], 2, Fault::Forgotten);
    finds(Mutation::HastyCancel, &[switch(WATCHED.ramp()), Confirm, Rollback], 1, 1, Fault::ForeignTerms);
    finds(Mutation::ArmedCancel, &[switch(WATCHED.ramp()), Rollback], 1, 2, Fault::LeftArmed);
    let ramp = switch(WATCHED.ramp());
    finds(Mutation::ForgottenRamp, &[ramp, ramp], 1, 2, Fault::HalfWayBack);
    let back = switch(BLUE.ramp().watched());
    finds_if(&[Blue], Mutation::ColourlessCount, &[switch(WATCHED), back], 1, 2, Fault::NotTripped);
    finds_if(&[Blue, Green], Mutation::NoDisarm, &watched, 1, 1, Fault::FromBadToBad);
}
