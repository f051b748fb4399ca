//! Switches that wait for something: for a confirmation, for an instant, for the end of a ramp; and shares that divide clients.
//! Nothing of bgctl runs while they wait. Each in every setting, in both families at once, with another deployment that stays as it is.

mod ramps;
mod splits;

use anyhow::{Context, Result, ensure};
use bg_common::{Colour, LiveFlags};
use bg_tests::{
    Bgctl, NewFlows, Ready, Setting, address,
    config::{DEPLOYMENT, udp_vip},
    in_each_setting,
    load::Echo,
};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    process::Stdio,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const FAMILIES: [(IpAddr, IpAddr); 2] = [(address::VIP_V4, address::CLIENT_V4), (address::VIP_V6, address::CLIENT_V6)];
/// Instants in JSON are rounded to milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_millis(700);
/// The same for what is taken back before, by another command.
const LATER: Duration = Duration::from_secs(2);

/// New flows of the client's address of each family, each from a port that no other flow has used.
fn flows() -> [NewFlows; 2] {
    FAMILIES.map(|(vip, client)| NewFlows::new(udp_vip(vip), &[client], 2000..60_000))
}

/// The colour of a new flow, and when it was between asked and answered.
fn new_flow(ready: &Ready, flows: &mut NewFlows) -> Result<(Colour, SystemTime, SystemTime)> {
    let sent = SystemTime::now();
    let answer = ready.lab.client.enter(|| flows.ask(&ready.live()?))??.answer.context("no answer")?;
    Ok((answer.colour, sent, SystemTime::now()))
}

/// An instant of a JSON result.
fn instant(value: &Value) -> Result<SystemTime> {
    let text = value.as_str().with_context(|| format!("no instant: {value}"))?;
    let time: humantime::Timestamp = text.parse().with_context(|| format!("no RFC 3339 time: {text}"))?;
    Ok(time.into())
}

/// An instant from now on, in RFC 3339 format.
fn rfc3339(ahead: Duration) -> String {
    humantime::format_rfc3339_millis(SystemTime::now() + ahead).to_string()
}

/// Asks with new flows of both families until well after an instant. Each goes to `before` if it is over by then, and to `after` if it begins later.
fn turns_at(ready: &Ready, flows: &mut [NewFlows; 2], at: SystemTime, before: Colour, after: Colour) -> Result<()> {
    let mut seen_after = 0;
    for family in [0, 1].into_iter().cycle() {
        let sent = SystemTime::now();
        let asked = ready.lab.client.enter(|| flows[family].ask(&ready.live()?))??;
        let answered = SystemTime::now();
        let Some(colour) = asked.answer.map(|answer| answer.colour) else {
            // A cut silences the old colour.
            ensure!(sent < at + ROUNDING && answered + ROUNDING > at, "no answer");
            continue;
        };
        if answered + ROUNDING < at {
            ensure!(colour == before, "{colour:?} before the instant");
        } else if sent > at + ROUNDING {
            ensure!(colour == after, "{colour:?} after the instant");
            seen_after += 1;
        }
        if seen_after == 40 {
            break;
        }
    }
    Ok(())
}

/// New flows of both families go to this colour.
fn all_go_to(ready: &Ready, flows: &mut [NewFlows; 2], colour: Colour) -> Result<()> {
    for flows in flows {
        let (found, ..) = new_flow(ready, flows)?;
        ensure!(found == colour, "{found:?}");
    }
    Ok(())
}

fn code(bgctl: &Bgctl, arguments: &[&str]) -> Result<i32> {
    bgctl.try_run(arguments)?.status.code().context("killed")
}

fn millis(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

fn without_a_confirmation_new_flows_are_on_the_old_colour_from_the_deadline_on(setting: Setting) -> Result<()> {
    let ready = setting.ready("")?;
    let (bgctl, mut flows) = (&ready.bgctl, flows());
    let generation = bgctl.deployment(DEPLOYMENT)?["generation"].as_u64().context("a number")?;
    let switched = bgctl.json(&["switch", DEPLOYMENT, "green", "--confirm-within", &millis(SOON)])?;
    let deadline = instant(&switched["confirm_deadline"])?;
    let status = bgctl.deployment(DEPLOYMENT)?;
    if SystemTime::now() + ROUNDING < deadline {
        ensure!(status["phase"] == "confirming" && status["live"] == "green", "{status}");
        let told = instant(&status["confirm_deadline"])?;
        let apart = told.duration_since(deadline).or_else(|early| anyhow::Ok(early.duration()))?;
        ensure!(apart <= ROUNDING, "two deadlines: {told:?}, {deadline:?}");
    }
    turns_at(&ready, &mut flows, deadline, Colour::Green, Colour::Blue)?;
    ensure!(code(bgctl, &["confirm", DEPLOYMENT])? == 3, "too late");
    let status = bgctl.deployment(DEPLOYMENT)?;
    ensure!(status["generation"] == generation + 2 && status["live"] == "blue", "{status}");
    ensure!(status["confirm_deadline"].is_null(), "{status}");
    ensure!(code(bgctl, &["rollback", DEPLOYMENT])? == 3, "that would undo the way back");
    ready.neighbour_is_undisturbed()
}

in_each_setting!(without_a_confirmation_new_flows_are_on_the_old_colour_from_the_deadline_on);

fn a_confirmed_switch_stays_and_one_that_was_rolled_back_does_not_come_again(setting: Setting) -> Result<()> {
    let ready = setting.ready("")?;
    let (bgctl, mut flows) = (&ready.bgctl, flows());
    bgctl.run(&["switch", DEPLOYMENT, "green", "--confirm-within", "1h"])?;
    let confirmed = bgctl.json(&["confirm", DEPLOYMENT])?;
    ensure!(confirmed["changed"] == true && confirmed["to"]["live"] == "green", "{confirmed}");
    ensure!(bgctl.json(&["confirm", DEPLOYMENT])?["changed"] == false, "a second time");
    ensure!(bgctl.deployment(DEPLOYMENT)?["confirm_deadline"].is_null());
    all_go_to(&ready, &mut flows, Colour::Green)?;

    bgctl.run(&["switch", DEPLOYMENT, "blue", "--confirm-within", &millis(LATER)])?;
    let back = bgctl.json(&["rollback", DEPLOYMENT])?;
    ensure!(back["changed"] == true && back["to"]["live"] == "green", "{back}");
    let generation = back["to"]["generation"].clone();
    thread::sleep(LATER + ROUNDING);
    all_go_to(&ready, &mut flows, Colour::Green)?;
    ensure!(bgctl.deployment(DEPLOYMENT)?["generation"] == generation, "the old guard has acted");
    ensure!(code(bgctl, &["confirm", DEPLOYMENT])? == 3, "nothing waits");
    ready.neighbour_is_undisturbed()
}

in_each_setting!(a_confirmed_switch_stays_and_one_that_was_rolled_back_does_not_come_again);

#[test]
fn a_switch_that_is_refused_or_changes_nothing_leaves_nothing_armed() -> Result<()> {
    let ready = Ready::native("")?;
    let bgctl = &ready.bgctl;
    let (word, guard) = (|| Ok::<_, anyhow::Error>(ready.live()?.word()), ["--confirm-within", "100ms"]);
    let before = word()?;
    for (arguments, expected) in [
        (&["switch", DEPLOYMENT, "green", "--if-generation", "77"][..], 3),
        (&["switch", DEPLOYMENT, "blue"], 0),
        (&["switch", "nobody", "green"], 2),
    ] {
        ensure!(code(bgctl, &[arguments, &guard].concat())? == expected, "{arguments:?}");
        ensure!(word()? == before, "{arguments:?}");
    }
    for wrong in [["--confirm-within", "1ms"], ["--at", "2001-01-01T00:00:00Z"], ["--ramp", "0s"], ["--at", "soon"]] {
        ensure!(code(bgctl, &[&["switch", DEPLOYMENT], &wrong[..]].concat())? == 2, "{wrong:?}");
        ensure!(word()? == before, "{wrong:?}");
    }
    // With a guard that waits, a switch to the colour that is live changes nothing either.
    bgctl.run(&["switch", DEPLOYMENT, "green", "--confirm-within", "1h"])?;
    let guarded = word()?;
    ensure!(guarded.flags().has(LiveFlags::TIMED));
    ensure!(bgctl.json(&[&["switch", DEPLOYMENT, "green"], &guard[..]].concat())?["changed"] == false);
    thread::sleep(Duration::from_millis(150));
    ensure!(word()? == guarded && bgctl.live(DEPLOYMENT)? == "green");
    Ok(())
}

fn a_scheduled_switch_takes_effect_at_its_instant_unless_something_changes_before(setting: Setting) -> Result<()> {
    let ready = setting.ready("on_switch = \"cut\"")?;
    let (bgctl, mut flows) = (&ready.bgctl, flows());
    // Not from a port of the kernel's choice: the new flows use them in order.
    let open = FAMILIES.map(|(vip, client)| {
        ready.lab.client.enter(|| Echo::open_from(SocketAddr::new(client, 1999), udp_vip(vip)))?
    });
    let open = open.into_iter().collect::<Result<Vec<_>>>()?;
    let all_are_on = |colour: Colour| -> Result<bool> {
        let colours = open.iter().map(|flow| Ok(flow.ask("which?")?.colour)).collect::<Result<Vec<_>>>()?;
        Ok(colours == [colour; 2])
    };
    ensure!(all_are_on(Colour::Blue)?);
    let switched = bgctl.json(&["switch", DEPLOYMENT, "green", "--at", &rfc3339(SOON)])?;
    let at = instant(&switched["activate_at"])?;
    let status = bgctl.deployment(DEPLOYMENT)?;
    if SystemTime::now() + ROUNDING < at {
        ensure!(status["phase"] == "scheduled" && status["live"] == "blue", "{status}");
        ensure!(all_are_on(Colour::Blue)? || SystemTime::now() + ROUNDING > at);
    }
    turns_at(&ready, &mut flows, at, Colour::Blue, Colour::Green)?;
    ensure!(all_are_on(Colour::Green)?, "it is a cut");
    ensure!(bgctl.deployment(DEPLOYMENT)?["phase"] == "steady");

    // Cancelled by the next change, and the rollback has nothing else to do.
    bgctl.run(&["switch", DEPLOYMENT, "blue", "--at", &rfc3339(LATER)])?;
    let cancelled = bgctl.json(&["rollback", DEPLOYMENT])?;
    ensure!(cancelled["changed"] == true && cancelled["to"]["live"] == "green", "{cancelled}");
    thread::sleep(LATER + ROUNDING);
    all_go_to(&ready, &mut flows, Colour::Green)?;
    ensure!(all_are_on(Colour::Green)?);
    ready.neighbour_is_undisturbed()
}

in_each_setting!(a_scheduled_switch_takes_effect_at_its_instant_unless_something_changes_before);

/// A process that is killed right after its store, before it has told anybody.
#[test]
fn whoever_kills_a_guarded_switch_does_not_end_its_guard() -> Result<()> {
    let rounds = if std::env::var_os("BG_TEST_FULL").is_some() { 1000 } else { 60 };
    let ready = Ready::native("")?;
    let live = ready.live()?;
    let [mut flows, _] = flows();
    let within = Duration::from_millis(20);
    let mut killed = 0;
    for round in 0..rounds {
        let before = live.word();
        let arguments = ["switch", DEPLOYMENT, "green", "--confirm-within", &millis(within)];
        let mut child = ready.bgctl.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let start = Instant::now();
        while live.word() == before {
            ensure!(start.elapsed() < Duration::from_secs(20), "no switch");
            std::hint::spin_loop();
        }
        // Between the store and its fence, or a millisecond after it.
        if round % 2 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        child.kill()?;
        killed += u32::from(!child.wait()?.success());
        thread::sleep(within + Duration::from_millis(2));
        let (colour, ..) = new_flow(&ready, &mut flows)?;
        ensure!(colour == Colour::Blue, "round {round}: {colour:?} after the deadline");
        ensure!(live.word().generation() == before.generation() + 2, "round {round}");
    }
    println!("{killed} of {rounds} killed before they had ended");
    ensure!(killed > 0);
    ready.neighbour_is_undisturbed()
}

/// Confirmations that come about when the deadline does: one outcome, on which exit code, word and next flow agree.
#[test]
fn a_confirmation_at_the_deadline_has_one_outcome() -> Result<()> {
    let rounds = if std::env::var_os("BG_TEST_FULL").is_some() { 1000 } else { 40 };
    let ready = Ready::native("")?;
    let live = ready.live()?;
    let [_, mut flows] = flows();
    let mut outcomes = [0; 2];
    let mut chance = bg_tests::Chance::new();
    for round in 0..rounds {
        let switched = ready.bgctl.json(&["switch", DEPLOYMENT, "green", "--confirm-within", "40ms"])?;
        let deadline = instant(&switched["confirm_deadline"])?;
        let early = chance.below(Duration::from_millis(24));
        while SystemTime::now() + early < deadline {
            new_flow(&ready, &mut flows)?;
        }
        let is_confirmed = match code(&ready.bgctl, &["confirm", DEPLOYMENT])? {
            0 => true,
            3 => false,
            other => anyhow::bail!("exit code {other}"),
        };
        outcomes[usize::from(is_confirmed)] += 1;
        let generation = switched["to"]["generation"].as_u64().context("a number")? as u32;
        let expected = if is_confirmed { (generation, Colour::Green) } else { (generation + 1, Colour::Blue) };
        for _ in 0..3 {
            let colour = new_flow(&ready, &mut flows)?.0;
            ensure!((live.word().generation(), colour) == expected, "round {round}, confirmed: {is_confirmed}");
        }
        if is_confirmed {
            ready.bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
        }
    }
    println!("confirmed and expired: {outcomes:?}");
    ready.neighbour_is_undisturbed()
}

/// The clock of the tests is that of the deadlines.
#[test]
fn instants_are_told_by_the_wall_clock() -> Result<()> {
    let ready = Ready::native("")?;
    let before = SystemTime::now();
    let switched = ready.bgctl.json(&["switch", DEPLOYMENT, "--confirm-within", "1h"])?;
    let (deadline, hour) = (instant(&switched["confirm_deadline"])?, Duration::from_secs(3600));
    ensure!(deadline + ROUNDING > before + hour && deadline < SystemTime::now() + hour + ROUNDING);
    ensure!(deadline.duration_since(UNIX_EPOCH).is_ok());
    Ok(())
}
