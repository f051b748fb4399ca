//! Switches that wait for something: for a confirmation, for an instant, for the end of a ramp; and shares that divide clients.
//! Nothing of bgctl runs while they wait. Each in every mode, in both families, with another deployment that stays as it is.

use anyhow::{Context, Result, ensure};
use bg_common::{Colour, LiveFlags};
use bg_tests::{
    Bgctl, Fabric, Lab, NewFlows, Offloads, Ready, address,
    config::{DEPLOYMENT, shop, udp_vip},
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

/// Runs `test` on labs of all modes.
fn in_all_modes(keys: &str, test: impl Fn(&Ready) -> Result<()>) -> Result<()> {
    type Make = fn() -> Result<Lab>;
    let wire: Make = || Lab::wire(Fabric::Switch);
    let (bridge, zones): (Make, Make) = (Lab::bridge, || Lab::zones(Offloads::Default));
    // One lab at a time.
    for (mode, attach, lab) in
        [("nat", "native", wire), ("nat", "generic", wire), ("nat", "tc", bridge), ("local", "tc", zones)]
    {
        let lab = lab()?;
        let config = shop(&lab, mode, keys);
        let ready = Ready::with(lab, attach, &config)?;
        test(&ready).with_context(|| format!("{mode} by {attach}"))?;
        ready.neighbour_is_undisturbed()?;
    }
    Ok(())
}

/// New flows of a client's address, each from a port that no other flow has used.
fn flows(family: usize, ports: std::ops::Range<u16>) -> NewFlows {
    let (vip, client) = FAMILIES[family];
    NewFlows::new(udp_vip(vip), &[client], ports)
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

/// Asks with new flows until well after an instant. Each goes to `before` if it is over by then, and to `after` if it begins later.
fn turns_at(ready: &Ready, flows: &mut NewFlows, at: SystemTime, before: Colour, after: Colour) -> Result<()> {
    let mut seen_after = 0;
    while seen_after < 20 {
        let sent = SystemTime::now();
        let asked = ready.lab.client.enter(|| flows.ask(&ready.live()?))??;
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
    }
    Ok(())
}

fn code(bgctl: &Bgctl, arguments: &[&str]) -> Result<i32> {
    bgctl.try_run(arguments)?.status.code().context("killed")
}

fn millis(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

#[test]
fn without_a_confirmation_new_flows_are_on_the_old_colour_from_the_deadline_on() -> Result<()> {
    in_all_modes("", |ready| {
        let bgctl = &ready.bgctl;
        for family in 0..2 {
            let mut flows = flows(family, 2000..40_000);
            let generation = bgctl.deployment(DEPLOYMENT)?["generation"].as_u64().context("a number")?;
            let within = millis(SOON);
            let switched = bgctl.json(&["switch", DEPLOYMENT, "green", "--confirm-within", &within])?;
            let deadline = instant(&switched["confirm_deadline"])?;
            let status = bgctl.deployment(DEPLOYMENT)?;
            if SystemTime::now() + ROUNDING < deadline {
                ensure!(status["phase"] == "confirming" && status["live"] == "green", "{status}");
                let told = instant(&status["confirm_deadline"])?;
                let apart = told.duration_since(deadline).or_else(|early| anyhow::Ok(early.duration()))?;
                ensure!(apart <= ROUNDING, "two deadlines: {told:?}, {deadline:?}");
            }
            turns_at(ready, &mut flows, deadline, Colour::Green, Colour::Blue)?;
            ensure!(code(bgctl, &["confirm", DEPLOYMENT])? == 3, "too late");
            let status = bgctl.deployment(DEPLOYMENT)?;
            ensure!(status["generation"] == generation + 2 && status["live"] == "blue", "{status}");
            ensure!(status["confirm_deadline"].is_null(), "{status}");
            ensure!(code(bgctl, &["rollback", DEPLOYMENT])? == 3, "that would undo the way back");
        }
        Ok(())
    })
}

#[test]
fn a_confirmed_switch_stays_and_one_that_was_rolled_back_does_not_come_again() -> Result<()> {
    in_all_modes("", |ready| {
        let bgctl = &ready.bgctl;
        for family in 0..2 {
            let mut flows = flows(family, 2000..40_000);
            let long = ["switch", DEPLOYMENT, "green", "--confirm-within", "1h"];
            bgctl.run(&long)?;
            let confirmed = bgctl.json(&["confirm", DEPLOYMENT])?;
            ensure!(confirmed["changed"] == true && confirmed["to"]["live"] == "green", "{confirmed}");
            ensure!(bgctl.json(&["confirm", DEPLOYMENT])?["changed"] == false, "a second time");
            ensure!(bgctl.deployment(DEPLOYMENT)?["confirm_deadline"].is_null());
            ensure!(new_flow(ready, &mut flows)?.0 == Colour::Green);

            bgctl.run(&["switch", DEPLOYMENT, "blue", "--confirm-within", &millis(SOON)])?;
            let back = bgctl.json(&["rollback", DEPLOYMENT])?;
            ensure!(back["changed"] == true && back["to"]["live"] == "green", "{back}");
            let generation = back["to"]["generation"].clone();
            thread::sleep(SOON + ROUNDING);
            ensure!(new_flow(ready, &mut flows)?.0 == Colour::Green);
            ensure!(bgctl.deployment(DEPLOYMENT)?["generation"] == generation, "the old guard has acted");
            ensure!(code(bgctl, &["confirm", DEPLOYMENT])? == 3, "nothing waits");
            bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
        }
        Ok(())
    })
}

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

#[test]
fn a_scheduled_switch_takes_effect_at_its_instant_unless_something_changes_before() -> Result<()> {
    in_all_modes("on_switch = \"cut\"", |ready| {
        let bgctl = &ready.bgctl;
        for (family, (vip, client)) in FAMILIES.into_iter().enumerate() {
            let mut flows = flows(family, 2000..40_000);
            // Not from a port of the kernel's choice: the new flows use them in order.
            let open = ready.lab.client.enter(|| Echo::open_from(SocketAddr::new(client, 1999), udp_vip(vip)))??;
            ensure!(open.ask("before")?.colour == Colour::Blue);
            let switched = bgctl.json(&["switch", DEPLOYMENT, "green", "--at", &rfc3339(SOON)])?;
            let at = instant(&switched["activate_at"])?;
            let status = bgctl.deployment(DEPLOYMENT)?;
            if SystemTime::now() + ROUNDING < at {
                ensure!(status["phase"] == "scheduled" && status["live"] == "blue", "{status}");
                ensure!(open.ask("meanwhile")?.colour == Colour::Blue || SystemTime::now() + ROUNDING > at);
            }
            turns_at(ready, &mut flows, at, Colour::Blue, Colour::Green)?;
            ensure!(open.ask("after")?.colour == Colour::Green, "it is a cut");
            ensure!(bgctl.deployment(DEPLOYMENT)?["phase"] == "steady");

            // Cancelled by the next change, and the rollback has nothing else to do.
            bgctl.run(&["switch", DEPLOYMENT, "blue", "--at", &rfc3339(SOON)])?;
            let cancelled = bgctl.json(&["rollback", DEPLOYMENT])?;
            ensure!(cancelled["changed"] == true && cancelled["to"]["live"] == "green", "{cancelled}");
            thread::sleep(SOON + ROUNDING);
            ensure!(new_flow(ready, &mut flows)?.0 == Colour::Green && open.ask("still")?.colour == Colour::Green);
            bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
        }
        Ok(())
    })
}

#[test]
fn a_ramp_ends_where_it_leads_and_its_guard_begins_there() -> Result<()> {
    let ready = Ready::native("")?;
    let bgctl = &ready.bgctl;
    let mut flows = flows(0, 2000..40_000);
    let (ramp, within) = (millis(3 * SOON), millis(SOON));
    let switched = bgctl.json(&["switch", DEPLOYMENT, "green", "--ramp", &ramp, "--confirm-within", &within])?;
    let (begin, end) = (instant(&switched["activate_at"])?, instant(&switched["ramp_until"])?);
    let status = bgctl.deployment(DEPLOYMENT)?;
    ensure!(status["phase"] == "ramping" || SystemTime::now() + ROUNDING > end, "{status}");
    // The shares of both halves: a quarter and three quarters.
    let mut halves = [[0_u32; 2]; 2];
    loop {
        let (colour, sent, answered) = new_flow(&ready, &mut flows)?;
        let half = begin + (end.duration_since(begin)?) / 2;
        if answered < half {
            halves[0][colour as usize] += 1;
        } else if sent > half && answered < end {
            halves[1][colour as usize] += 1;
        } else if sent > end + ROUNDING {
            break;
        }
    }
    let share = |[blue, green]: [u32; 2]| f64::from(green) / f64::from(blue + green).max(1.0);
    println!("{halves:?}");
    ensure!((share(halves[0]) - 0.25).abs() < 0.15 && (share(halves[1]) - 0.75).abs() < 0.15, "{halves:?}");
    let deadline = instant(&bgctl.deployment(DEPLOYMENT)?["confirm_deadline"])?;
    let window = deadline.duration_since(end)?;
    ensure!(window + ROUNDING > SOON && window < SOON + ROUNDING, "{window:?}");
    turns_at(&ready, &mut flows, deadline, Colour::Green, Colour::Blue)?;
    ready.neighbour_is_undisturbed()
}

/// The part of green among `[blue, green]`.
fn share_of_green([blue, green]: [u32; 2]) -> f64 {
    f64::from(green) / f64::from(blue + green).max(1.0)
}

#[test]
fn a_split_by_flow_divides_the_flows_of_one_client() -> Result<()> {
    in_all_modes("", |ready| {
        let bgctl = &ready.bgctl;
        for family in 0..2 {
            let mut flows = flows(family, 2000..40_000);
            bgctl.run(&["split", DEPLOYMENT, "--green", "30"])?;
            let mut answers = [0; 2];
            for _ in 0..400 {
                answers[new_flow(ready, &mut flows)?.0 as usize] += 1;
            }
            ensure!((share_of_green(answers) - 0.3).abs() < 0.12, "{answers:?}");
            let measured = bgctl.deployment(DEPLOYMENT)?["green_share_measured"].as_f64().context("a share")?;
            ensure!((measured - share_of_green(answers)).abs() < 0.001, "{measured}, {answers:?}");
            bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
        }
        Ok(())
    })
}

#[test]
fn a_split_by_client_shows_each_client_one_colour_and_a_larger_one_takes_nobody_back() -> Result<()> {
    in_all_modes("sticky = \"client\"\nsticky_prefix = { ipv4 = 32, ipv6 = 128 }", |ready| {
        let (bgctl, client) = (&ready.bgctl, &ready.lab.client);
        for (vip, first) in FAMILIES {
            let mut before: Vec<Option<Colour>> = vec![None; 24];
            let mut port = 2000;
            for host in 0..before.len() {
                let (address, length) = (beside(first, host as u8), if first.is_ipv4() { "24" } else { "64 nodad" });
                client.ip(&format!("address add {address}/{length} dev eth0"))?;
            }
            for percent in ["20", "55.5", "90"] {
                let split = bgctl.json(&["split", DEPLOYMENT, "--green", percent])?;
                ensure!(split["to"]["generation"].as_u64() > split["from"]["generation"].as_u64(), "{split}");
                for (host, seen) in before.iter_mut().enumerate() {
                    let address = beside(first, host as u8);
                    let mut colours = Vec::new();
                    for _ in 0..3 {
                        port += 1;
                        let from = SocketAddr::new(address, port);
                        let flow = client.enter(|| Echo::open_from(from, udp_vip(vip)))?;
                        colours.push(flow.context("an address of the client")?.ask("which")?.colour);
                    }
                    ensure!(colours.iter().all(|colour| *colour == colours[0]), "{address}: {colours:?}");
                    ensure!(seen.is_none_or(|seen| seen <= colours[0]), "{address} went back at {percent} %");
                    *seen = Some(colours[0]);
                }
            }
            let green = before.iter().filter(|colour| **colour == Some(Colour::Green)).count();
            ensure!(green > 12, "90 % of 24 clients are {green}");
            let status = bgctl.deployment(DEPLOYMENT)?;
            ensure!(status["phase"] == "split" && status["green_share"] == 0.9, "{status}");
            ensure!(status["green_share_measured"].as_f64().is_some_and(|share| share > 0.5), "{status}");
            // A switch out of a split is one.
            let whole = bgctl.json(&["switch", DEPLOYMENT, "green"])?;
            ensure!(whole["changed"] == true && bgctl.deployment(DEPLOYMENT)?["green_share"] == 1.0, "{whole}");
            let back = bgctl.json(&["switch", DEPLOYMENT, "blue"])?;
            ensure!(back["changed"] == true, "{back}");
        }
        Ok(())
    })
}

/// Another address of the client, which it has to have.
fn beside(first: IpAddr, host: u8) -> IpAddr {
    match first {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, 100 + host])
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[15] = 100 + host;
            IpAddr::from(octets)
        }
    }
}

/// A process that is killed right after its store, before it has told anybody.
#[test]
fn whoever_kills_a_guarded_switch_does_not_end_its_guard() -> Result<()> {
    let rounds = if std::env::var_os("BG_TEST_FULL").is_some() { 1000 } else { 60 };
    let ready = Ready::native("")?;
    let live = ready.live()?;
    let mut flows = flows(0, 2000..60_000);
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
    let mut flows = flows(1, 2000..60_000);
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
