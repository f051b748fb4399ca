//! The controller is killed at random moments, under load, while backends come and go, while it asks the gates of switches of two deployments,
//! and while it holds the connections of a service in mode `tee`. Packets do not notice, its successor knows what it knew, no outcome of a
//! gate is lost or invented, and only the connections that it held end with it.

use anyhow::{Context, Result, bail, ensure};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Chance, Controller, Fabric, HTTP_PORT, HttpClient, Lab, Ready, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip, shop},
    load::{Connection, Fresh, KeepAlive},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    io::{ErrorKind, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The deployment with a service in mode `tee`.
const TEED: &str = "teed";
/// The deployments that are switched, with gates.
const GATED: [&str; 2] = [DEPLOYMENT, TEED];
const TEED_PORT: u16 = 81;
/// The time for the confirmation.
const WINDOW: Duration = Duration::from_millis(400);

fn is_full() -> bool {
    std::env::var_os("BG_TEST_FULL").is_some()
}

fn rounds() -> usize {
    if is_full() { 200 } else { 15 }
}

/// How soon a new connection of the service in mode `tee` works after the controller is there again.
fn soon() -> Duration {
    Duration::from_secs(if is_full() { 1 } else { 5 })
}

/// UDP services, too, are asked at the port of HTTP.
fn checks() -> String {
    format!(
        "health = {{ kind = \"tcp\", port = {HTTP_PORT}, interval = \"50ms\", timeout = \"40ms\", rise = 2, fall = 2 }}\n"
    )
}

/// What a gate writes its answers to, each as the generation and `passed` or `failed`.
fn log(dir: &Path, deployment: &str, when: &str) -> PathBuf {
    dir.join(format!("{deployment}-{when}.log"))
}

/// Says which gate of a deployment fails: `before`, `after` or none.
fn order(dir: &Path, deployment: &str) -> PathBuf {
    dir.join(format!("{deployment}.order"))
}

/// A gate that takes a moment and writes its answer down before it gives it.
fn gate(dir: &Path, deployment: &str, when: &str) -> String {
    let (log, order) = (log(dir, deployment, when), order(dir, deployment));
    let (log, order) = (log.display(), order.display());
    let says = |word, code| format!("echo $BGCTL_GENERATION {word} >> {log}; exit {code}");
    let line = format!(
        "sleep 0.05; if test \"$(cat {order})\" = {when}; then {}; fi; {}",
        says("failed", 1),
        says("passed", 0)
    );
    format!(
        "[[deployments.{deployment}.gates]]\nwhen = \"{when}\"\nkind = \"exec\"\ncommand = ['/bin/sh', '-c', '''{line}''']\n\
         timeout = \"2s\"\ninterval = \"20ms\"\n"
    )
}

fn config(lab: &Lab) -> String {
    let (dir, checks) = (lab.sandbox.dir(), checks());
    let colour = |colour: Colour| {
        let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
        let address = |backend: &bg_tests::Backend| format!("\"{}\"", SocketAddr::new(backend.addresses[0], HTTP_PORT));
        of_colour.map(address).collect::<Vec<_>>().join(", ")
    };
    let teed = format!(
        "[deployments.{TEED}]\n{checks}[[deployments.{TEED}.services]]\nname = \"web\"\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"tee\"\n\
         blue = [{}]\ngreen = [{}]\n",
        SocketAddr::new(address::VIP_V4, TEED_PORT),
        colour(Colour::Blue),
        colour(Colour::Green)
    );
    let gates = GATED.map(|deployment| gate(dir, deployment, "before") + &gate(dir, deployment, "after")).concat();
    let both = shop(lab, "nat", &checks).replace("[deployments.mail]\n", &format!("[deployments.mail]\n{checks}"));
    format!("[serve]\nsocket = \"{}\"\n\n{both}\n{teed}\n{gates}", dir.join("api.sock").display())
}

/// The health of a service's backends in one colour, by address.
fn health(status: &Value, deployment: &str, colour: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let deployments = status["deployments"].as_array().into_iter().flatten();
    for service in
        deployments.filter(|found| found["name"] == deployment).flat_map(|found| found["services"].as_array()).flatten()
    {
        for backend in service[colour]["backends"].as_array().into_iter().flatten() {
            let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
            all.push((text("address"), text("health")));
        }
    }
    all
}

fn until(ready: &Ready, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let status = ready.bgctl.json(&["status"])?;
        if holds(&status) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{what} for ten seconds: {status:#}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Live colour and generation.
fn state(bgctl: &Bgctl, deployment: &str) -> Result<(String, u64)> {
    let found = bgctl.deployment(deployment)?;
    let live = found["live"].as_str().with_context(|| format!("no live colour in {found}"))?;
    Ok((live.to_owned(), found["generation"].as_u64().context("no generation")?))
}

/// Asks the controller to switch. `None` if it was killed before it has answered.
fn ask(socket: &Path, deployment: &str) -> Option<Result<(u16, Value)>> {
    let body = serde_json::json!({ "confirm_within": humantime::format_duration(WINDOW).to_string() });
    let mut client = HttpClient::unix(socket).ok()?;
    let answer = client.post(&format!("/v1/deployments/{deployment}/switch"), &body).ok()?;
    Some(answer.json().map(|json| (answer.status, json)))
}

/// What the gates of a deployment have answered for a generation.
fn answers(dir: &Path, deployment: &str, when: &str, generation: u64) -> Vec<String> {
    let text = fs::read_to_string(log(dir, deployment, when)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(of, _)| *of == generation.to_string()).map(|(_, word)| word.to_owned()).collect()
}

/// Waits for the end of a connection.
fn ends(connection: &Connection) -> Result<()> {
    let mut stream = connection.stream();
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("nobody has asked anything"),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(()),
        Err(error) => Err(error).context("it has not ended"),
    }
}

/// A new connection that works, and how long it took until there was one.
fn works(ready: &Ready) -> Result<(Connection, Duration)> {
    let (vip, begin) = (SocketAddr::new(address::VIP_V4, TEED_PORT), Instant::now());
    loop {
        let opened = Connection::open(&ready.lab.client, vip);
        let why = match opened.map(|connection| (connection.ask(), connection)) {
            Ok((Ok(_), connection)) => return Ok((connection, begin.elapsed())),
            Ok((Err(error), _)) => error.into(),
            Err(error) => error,
        };
        ensure!(begin.elapsed() < Duration::from_secs(10), "no connection for {:?}: {why:#}", begin.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
}

/// One switch with gates, and what has come of it.
struct Switch<'a> {
    dir: &'a Path,
    deployment: &'static str,
    before: (String, u64),
    /// Whether the controller lived on for long enough after the request that the gates could have been through.
    may_be_kept: bool,
    answer: Option<(u16, Value)>,
}

impl Switch<'_> {
    /// Fails if the state, the history and the answer say anything that the gates have not said. Returns how many generations it has made.
    fn judge(&self, now: &(String, u64), records: &HashMap<u64, Vec<&Value>>) -> Result<u64> {
        let (first, made) = (self.before.1, now.1 - self.before.1);
        let asked = |when, generation| answers(self.dir, self.deployment, when, generation);
        let (before, after) = (asked("before", first), asked("after", first + 1));
        let said = |generation: u64, action: &str, text: &str| {
            records.get(&generation).into_iter().flatten().any(|record| {
                record["action"] == action && record["reason"].as_str().is_some_and(|reason| reason.contains(text))
            })
        };
        ensure!((made == 1) == (now.0 != self.before.0), "{made} changes");
        let has_passed = |answers: &[String]| !answers.is_empty() && answers.iter().all(|answer| answer == "passed");
        match made {
            0 => ensure!(after.is_empty(), "it was asked after a switch that was not made: {after:?}"),
            // It was confirmed.
            1 => {
                ensure!(
                    has_passed(&before) && has_passed(&after),
                    "confirmed, but the gates have said {before:?} {after:?}"
                );
                ensure!(self.may_be_kept, "it was confirmed before the gates could be through");
            }
            // It was taken back by the gates, or by the data path.
            2 => {
                ensure!(has_passed(&before), "it was switched, but the gate before has said {before:?}");
                let is_failed = after.iter().any(|answer| answer == "failed");
                // One that was late has said nothing, which is a failure too.
                let invented = said(first + 2, "rollback", "exit status");
                ensure!(is_failed || !invented, "the history invents a failure: {after:?}");
            }
            _ => bail!("{made} changes"),
        }
        let is_confirmed = said(first + 1, "confirm", "gates passed");
        ensure!(made == 1 || !is_confirmed, "the history invents a confirmation: {after:?}");
        match &self.answer {
            Some((200, json)) => {
                ensure!(
                    json["confirmed"] == "by_gates" && made == 1 && is_confirmed,
                    "{json}: {made} changes, recorded: {is_confirmed}"
                );
            }
            Some((409, json)) => {
                let detail = json["detail"].as_str().unwrap_or_default();
                let when = if made == 0 { &before } else { &after };
                let has_failed = when.iter().any(|answer| answer == "failed");
                // A busy machine may have been too slow for the window.
                ensure!(made != 1 && (has_failed || made == 2), "{detail}: {made} changes, {when:?}");
            }
            Some((status, json)) => bail!("status {status}: {json}"),
            None => {}
        }
        Ok(made)
    }
}

#[test]
fn packets_do_not_notice_and_the_successor_knows() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = config(&lab);
    let ready = Ready::with(lab, "native", &config)?;
    let (dir, bgctl) = (ready.lab.sandbox.dir().to_owned(), &ready.bgctl);
    let socket = &*dir.join("api.sock");
    let mut chance = Chance::new();
    // Its live colour is green, and only blue is cut off: none of its flows has a reason to fail.
    let vip = http_vip(address::NEIGHBOUR_V4);
    let new = Fresh { clients: 2, pause: Duration::from_millis(3) }.start(&ready.lab.client, vip)?;
    let kept = KeepAlive { clients: 2, pause: Duration::from_millis(3) }.start(&ready.lab.client, vip)?;

    // One blue backend of the deployment under test is cut off from checks and flows, in every other round.
    let victim = ready.lab.backends.iter().find(|backend| backend.name == "blue2").context("blue2")?;
    let is_victim = |address: &str| victim.addresses.iter().any(|own| address.contains(&own.to_string()));
    let of_http = |found: &(String, String)| found.0.ends_with(&format!(":{HTTP_PORT}"));
    let (mut outcomes, mut answered, mut longest) = ([0; 3], 0, Duration::ZERO);
    let mut controller = Controller::start(bgctl)?;
    let mut held = works(&ready)?.0;
    for round in 0..rounds() {
        let is_cut = round % 2 == 0;
        if is_cut {
            for line in [
                "add table inet cut",
                "add chain inet cut input { type filter hook input priority 0 ; }",
                &format!("add rule inet cut input tcp dport {HTTP_PORT} ct state new reject with tcp reset"),
            ] {
                victim.namespace.run(&format!("nft {line}"))?;
            }
        } else if round > 0 {
            victim.namespace.run("nft delete table inet cut")?;
        }
        let mut switches = Vec::new();
        for deployment in GATED {
            let fails = ["before", "after", "none", "none", "none", "none"][(chance.number() >> 33) as usize % 6];
            fs::write(order(&dir, deployment), fails)?;
            // An earlier switch that was not made was for the same generation.
            ["before", "after"].iter().for_each(|when| drop(fs::remove_file(log(&dir, deployment, when))));
            let before = state(bgctl, deployment)?;
            switches.push(Switch { dir: &dir, deployment, before, may_be_kept: false, answer: None });
        }
        let delay = chance.below(WINDOW.mul_f64(2.0));
        let (successor, lived) = thread::scope(|scope| {
            let asked = GATED.map(|deployment| scope.spawn(move || ask(socket, deployment)));
            let begin = Instant::now();
            thread::sleep(delay);
            let ended = controller.end(libc::SIGKILL)?;
            let lived = begin.elapsed();
            ensure!(ended.code().is_none(), "round {round}: it was killed, not {ended}");
            ends(&held).with_context(|| format!("round {round}: a connection of the service in mode tee"))?;
            for (switch, asked) in switches.iter_mut().zip(asked) {
                switch.answer = asked.join().expect("it asks").transpose()?;
            }
            // What was known stays in the kernel, and nothing is judged without a look.
            Ok::<_, anyhow::Error>((Controller::start(bgctl)?, lived))
        })?;
        controller = successor;
        let (connection, time) = works(&ready).with_context(|| format!("round {round}"))?;
        (held, longest) = (connection, longest.max(time));
        ensure!(time < soon(), "round {round}: a new connection works after {time:?}");

        let known = health(&bgctl.json(&["status"])?, DEPLOYMENT, "blue");
        let wanted = if is_cut { "down" } else { "up" };
        until(&ready, &format!("round {round}: the victim is not {wanted}, after {known:?}"), |status| {
            let blue = health(status, DEPLOYMENT, "blue");
            blue.iter()
                .filter(|found| of_http(found))
                .all(|(address, health)| health == if is_victim(address) { wanted } else { "up" })
        })?;
        until(&ready, &format!("round {round}: a switch is not decided"), |status| {
            let mut all = status["deployments"].as_array().into_iter().flatten();
            all.all(|found| found["phase"] == "steady" || found["phase"] == "draining")
        })?;
        ensure!(state(bgctl, NEIGHBOUR)?.0 == "green", "round {round}: nobody has switched the other deployment");
        for switch in &mut switches {
            switch.may_be_kept = lived >= WINDOW / 2;
            answered += usize::from(switch.answer.is_some());
            let now = state(bgctl, switch.deployment)?;
            let history = bgctl.json(&["history", switch.deployment])?;
            let mut records: HashMap<u64, Vec<&Value>> = HashMap::new();
            for record in history.as_array().or(history["records"].as_array()).into_iter().flatten() {
                records.entry(record["to"]["generation"].as_u64().unwrap_or_default()).or_default().push(record);
            }
            let made = switch.judge(&now, &records).with_context(|| {
                format!(
                    "round {round}, {} {:?} -> {now:?}, killed after {lived:?}, answer {:?}",
                    switch.deployment, switch.before, switch.answer
                )
            })?;
            outcomes[made as usize] += 1;
        }
    }
    bgctl.run(&["history", "--verify"])?;
    let [unchanged, confirmed, taken_back] = outcomes;
    println!(
        "killed {} times: {unchanged} switches not made, {confirmed} confirmed by gates, {taken_back} taken back; {answered} were answered. \
         New connections worked after {longest:?} at most",
        rounds()
    );
    ensure!(confirmed > 0 && taken_back > 0, "so it has shown nothing");
    for load in [new, kept] {
        let counts = load.finish()?;
        println!("{counts:?}");
        ensure!(counts.failures == 0 && counts.strayed == 0, "{counts:?}");
        ensure!(counts.answers[0] == 0 && counts.answers[1] > 100, "{counts:?}");
    }
    Ok(())
}
