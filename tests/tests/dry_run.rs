//! A dry run over open flows of real stacks, and what the switch then does to them; and an explanation of packets, and where they then go.

use anyhow::{Context, Result, bail, ensure};
use bg_tests::{
    Bgctl, HTTP_PORT, Lab, Ready, Setting, address,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    in_each_setting,
    load::{Connection, Echo},
};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant, SystemTime},
};

const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
/// Users, then testers.
const CLIENTS: [IpAddr; 4] = [address::CLIENT_V4, address::CLIENT_V6, address::TESTER_V4, address::TESTER_V6];

/// A connection and a UDP flow of each family: a user's, then a tester's.
struct Clients {
    tcp: Vec<Connection>,
    udp: Vec<Echo>,
}

impl Clients {
    fn open(lab: &Lab) -> Result<Self> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for (vip, from) in VIPS.into_iter().cycle().zip(CLIENTS) {
            let from = SocketAddr::new(from, 0);
            tcp.push(Connection::open_from(&lab.client, from, http_vip(vip))?);
            udp.push(lab.client.enter(|| Echo::open_from(from, udp_vip(vip)))??);
        }
        Ok(Self { tcp, udp })
    }

    /// Opens the connections anew that were reset.
    fn reopen(&mut self, lab: &Lab) -> Result<()> {
        for ((connection, vip), from) in self.tcp.iter_mut().zip(VIPS.into_iter().cycle()).zip(CLIENTS) {
            if connection.ask().is_err() {
                *connection = Connection::open_from(&lab.client, SocketAddr::new(from, 0), http_vip(vip))?;
                connection.ask()?;
            }
        }
        Ok(())
    }

    /// The colours that answer; `None` for a connection that was reset.
    fn ask(&self) -> Result<(Vec<Option<String>>, Vec<&'static str>)> {
        let udp = self.udp.iter().map(|flow| Ok(flow.ask("who is there?")?.colour.name())).collect::<Result<_>>()?;
        Ok((self.tcp.iter().map(|connection| connection.colour().ok()).collect(), udp))
    }
}

/// The configuration with a port at which nobody listens in place of green's first backend. It gets no flows.
fn with_one_closed_port(config: &str) -> (String, String) {
    let open = SocketAddr::new(address::BACKENDS[2].2[0], HTTP_PORT);
    let closed = SocketAddr::new(open.ip(), HTTP_PORT + 1).to_string();
    let (others, shop) = config.split_at(config.find("[deployments.shop]").expect("the deployment under test"));
    let weightless = format!("{{ address = \"{closed}\", weight = 0 }}");
    (others.to_owned() + &shop.replacen(&format!("\"{open}\""), &weightless, 1), closed)
}

fn a_dry_run_says_what_then_happens(setting: Setting) -> Result<()> {
    let mut closed = String::new();
    let ready = setting.ready_with(|lab, mode| {
        let config = shop(lab, mode, "drain_timeout = \"1h\"");
        let (config, port) = with_one_closed_port(&config);
        closed = port;
        Ok(config)
    })?;
    let bgctl = &ready.bgctl;
    let mut clients = Clients::open(&ready.lab)?;
    let (tcp, udp) = clients.ask()?;
    let [b, g] = ["blue", "green"];
    assert_eq!(udp, [b, b, g, g]);
    assert_eq!(tcp, [b, b, g, g].map(|colour| Some(colour.to_owned())));

    let dry_run = |words: &[&str]| bgctl.json(&[&["switch", DEPLOYMENT, "--dry-run"], words].concat());
    let before = at_rest(bgctl)?;
    let drain = dry_run(&[])?;
    let cut = dry_run(&["--on-switch", "cut"])?;
    assert_eq!(bgctl.deployment(DEPLOYMENT)?, before, "nothing has changed, and no packet was counted");
    assert_eq!(clients.ask()?, (tcp, udp));

    assert_eq!(drain["flows"], json!({"stay": 4, "move": 2, "reset": 2}), "the testers' flows do not stay");
    assert_eq!(cut["flows"], json!({"stay": 0, "move": 4, "reset": 4}));
    for said in [&drain, &cut] {
        assert_eq!((&said["would"], &said["refusal"], &said["clients"]), (&json!("switch"), &Value::Null, &json!(4)));
        assert_eq!((&said["from"]["live"], &said["to"]["live"]), (&json!("blue"), &json!("green")));
        let services = said["services"].as_array().context("no services")?;
        let clients = services.iter().map(|service| service["clients"].as_u64());
        assert_eq!(clients.collect::<Vec<_>>(), [Some(2); 4], "{services:?}");
        let target = said["target"].as_array().context("no target")?;
        let not_ready: Vec<_> = target.iter().filter(|backend| backend["ready"] != true).collect();
        assert_eq!((target.len(), not_ready.len()), (8, 1), "{target:?}");
        assert_eq!((&not_ready[0]["service"], &not_ready[0]["backend"]), (&json!("web4"), &json!(closed)));
        assert!(not_ready[0]["why"].as_str().is_some_and(|why| why.contains("refused")), "{not_ready:?}");
    }

    bgctl.run(&["switch", DEPLOYMENT])?;
    let (tcp, udp) = clients.ask()?;
    let blue = Some(b.to_owned());
    assert_eq!((tcp, udp), (vec![blue.clone(), blue, None, None], vec![b, b, b, b]));
    a_split_does_what_its_dry_run_says(&ready, &clients)?;
    bgctl.run(&["split", DEPLOYMENT, "--green", "0"])?;
    switches_that_wait_do_what_their_dry_runs_say(&ready, &mut clients)?;
    packets_go_where_an_explanation_says(&ready)?;
    ready.neighbour_is_undisturbed()
}

/// The status once no packet is counted any more. A client may acknowledge an answer 200 ms later.
fn at_rest(bgctl: &Bgctl) -> Result<Value> {
    let mut before = bgctl.deployment(DEPLOYMENT)?;
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(300));
        let now = bgctl.deployment(DEPLOYMENT)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    bail!("packets go on: {before}")
}

/// Green is live, and the users' flows have stayed on blue. The testers' datagrams go there too, and their connections have ended.
fn a_split_does_what_its_dry_run_says(ready: &Ready, clients: &Clients) -> Result<()> {
    let bgctl = &ready.bgctl;
    let split = ["split", DEPLOYMENT, "--green", "25", "--by", "client"];
    let before = at_rest(bgctl)?;
    let said = bgctl.json(&[&split[..], &["--dry-run"]].concat())?;
    assert_eq!(bgctl.deployment(DEPLOYMENT)?, before, "nothing has changed, and no packet was counted");

    let expected = json!({"would": "split", "refusal": null, "green_share": 0.25, "divide_by": "client",
        "from": {"generation": 2, "live": "green"}, "to": {"generation": 3, "live": "blue"},
        "on_switch": "drain", "drain_timeout": null, "flows": {"stay": 4, "move": 2, "reset": 0},
        "clients": 4, "clients_by_fate": {"stay": 2, "move": 2, "reset": 0}});
    for (key, value) in expected.as_object().context("an object")? {
        assert_eq!(&said[key], value, "{key}");
    }
    let services = said["services"].as_array().context("no services")?;
    let of = |name: &str, key: &str| services.iter().find(|of| of["service"] == name).map(|of| of[key].clone());
    for version in ["4", "6"] {
        let (web, echo) = (format!("web{version}"), format!("echo{version}"));
        assert_eq!(of(&web, "flows"), Some(json!({"stay": 1, "move": 0, "reset": 0})));
        assert_eq!(of(&echo, "flows"), Some(json!({"stay": 1, "move": 1, "reset": 0})));
        assert_eq!([of(&web, "clients"), of(&echo, "clients")], [Some(json!(1)), Some(json!(2))]);
    }
    // Both colours get new flows.
    let target = said["target"].as_array().context("no target")?;
    let of_colour = |colour: &str| target.iter().filter(|backend| backend["colour"] == colour).count();
    let not_ready: Vec<_> = target.iter().filter(|backend| backend["ready"] != true).collect();
    assert_eq!((of_colour("blue"), of_colour("green"), not_ready.len()), (8, 8, 1), "{not_ready:?}");
    assert_eq!(not_ready[0]["colour"], "green");

    let done = bgctl.json(&split)?;
    assert_eq!((&done["from"], &done["to"], &done["on_switch"]), (&said["from"], &said["to"], &said["on_switch"]));
    let receipt = &done["receipt"];
    assert_eq!(json!({"stay": receipt["kept"], "move": receipt["moved"], "reset": receipt["reset"]}), said["flows"]);
    let (tcp, udp) = clients.ask()?;
    let blue = Some("blue".to_owned());
    assert_eq!((tcp, udp), (vec![blue.clone(), blue, None, None], vec!["blue", "blue", "green", "green"]));

    // The same once more, with and without --by; and a whole share, which is a switch.
    for words in [&split[..], &split[..4]] {
        let said = bgctl.json(&[words, &["--dry-run"]].concat())?;
        assert_eq!(
            (&said["would"], &said["to"], &said["divide_by"]),
            (&json!("nothing"), &done["to"], &json!("client"))
        );
        assert_eq!(bgctl.json(words)?["changed"], false);
    }
    let whole = bgctl.json(&["split", DEPLOYMENT, "--green", "100", "--dry-run"])?;
    assert_eq!(
        (&whole["would"], &whole["drain_timeout"], &whole["green_share"]),
        (&json!("switch"), &json!("1h"), &json!(1.0))
    );
    assert_eq!(whole["target"].as_array().map(Vec::len), Some(8));
    // The testers' datagrams, which are on green.
    assert_eq!(whole["flows"], json!({"stay": 4, "move": 2, "reset": 0}));
    Ok(())
}

/// An instant in JSON.
fn instant(value: &Value) -> Result<SystemTime> {
    let text = value.as_str().with_context(|| format!("no instant: {value}"))?;
    Ok(text.parse::<humantime::Timestamp>()?.into())
}

/// Asserts that an instant is between two others, but for the rounding in JSON.
fn is_between(value: &Value, [first, last]: [SystemTime; 2]) -> Result<()> {
    const ROUNDING: Duration = Duration::from_millis(5);
    let found = instant(value)?;
    ensure!(found + ROUNDING > first && found < last + ROUNDING, "{found:?} is not between {first:?} and {last:?}");
    Ok(())
}

/// What was said of a switch, what it has answered, and when it was made.
struct Waiting {
    said: Value,
    done: Value,
    made: [SystemTime; 2],
}

/// Says what a switch of the clients would do, makes it, and compares what both have told.
fn waiting(ready: &Ready, clients: &mut Clients, options: &[&str]) -> Result<Waiting> {
    let (bgctl, live) = (&ready.bgctl, ready.live()?);
    clients.reopen(&ready.lab)?;
    let words = [&["switch", DEPLOYMENT], options].concat();
    let before = live.word();
    let said = bgctl.json(&[&words[..], &["--dry-run"]].concat())?;
    assert_eq!(live.word(), before, "nothing has changed, and nothing waits");
    let begin = SystemTime::now();
    let done = bgctl.json(&words)?;
    let made = [begin, SystemTime::now()];
    assert_eq!((&said["would"], &said["refusal"]), (&json!("switch"), &Value::Null));
    for key in ["from", "on_switch", "green_share", "revert_if", "not_armed"] {
        assert_eq!(said[key], done[key], "{key}");
    }
    assert_eq!(said["to"]["generation"], done["to"]["generation"]);
    Ok(Waiting { said, done, made })
}

/// Waits until the deployment is in one of these phases.
fn wait_for_phase(bgctl: &Bgctl, phases: &[&str]) -> Result<Value> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let status = bgctl.deployment(DEPLOYMENT)?;
        if status["phase"].as_str().is_some_and(|phase| phases.contains(&phase)) {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "none of {phases:?}: {status}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Blue is live. The testers' datagrams go to green.
fn switches_that_wait_do_what_their_dry_runs_say(ready: &Ready, clients: &mut Clients) -> Result<()> {
    const HOUR: Duration = Duration::from_secs(3600);
    const RAMP: Duration = Duration::from_millis(600);
    let bgctl = &ready.bgctl;
    let [b, g] = ["blue", "green"];
    let tcp = |colours: [Option<&str>; 4]| colours.map(|colour| colour.map(str::to_owned)).to_vec();

    // A confirmation, after a cut.
    let cut = ["green", "--confirm-within", "1h", "--on-switch", "cut"];
    let Waiting { said, done, made } = waiting(ready, clients, &cut)?;
    assert_eq!((&said["confirm_within"], &said["drain_timeout"]), (&json!("1h"), &Value::Null));
    assert_eq!((&said["at"], &said["ramp"]), (&Value::Null, &Value::Null));
    assert_eq!((&said["to"], &done["activate_at"]), (&done["to"], &Value::Null));
    is_between(&done["confirm_deadline"], made.map(|time| time + HOUR))?;
    assert_eq!(said["flows"], json!({"stay": 0, "move": 4, "reset": 4}));
    let receipt = &done["receipt"];
    assert_eq!(json!({"stay": receipt["kept"], "move": receipt["moved"], "reset": receipt["reset"]}), said["flows"]);
    assert_eq!(clients.ask()?, (tcp([None; 4]), vec![g, g, b, b]));
    bgctl.run(&["confirm", DEPLOYMENT])?;

    // A ramp, and a drain.
    let ramp = format!("{}ms", RAMP.as_millis());
    let Waiting { said, done, made } = waiting(ready, clients, &["blue", "--ramp", &ramp])?;
    assert_eq!((&said["ramp"], &said["drain_timeout"]), (&json!(ramp), &json!("1h")));
    assert_eq!((&said["at"], &said["confirm_within"]), (&Value::Null, &Value::Null));
    assert_eq!((&said["to"]["live"], &done["to"]["live"]), (&json!(b), &json!(g)), "the old one is live until the end");
    is_between(&done["activate_at"], made)?;
    is_between(&done["ramp_until"], [instant(&done["activate_at"])? + RAMP; 2])?;
    assert_eq!(said["flows"], json!({"stay": 4, "move": 2, "reset": 2}));
    wait_for_phase(bgctl, &["draining"])?;
    assert_eq!(clients.ask()?, (tcp([Some(g), Some(g), None, None]), vec![g; 4]));

    // An instant, and conditions and a deadline from then on.
    let switch_at = |lead: Duration, clients: &mut Clients| {
        let at = humantime::format_rfc3339_millis(SystemTime::now() + lead).to_string();
        let options = ["green", "--at", &at, "--confirm-within", "1h", "--revert-if", "silence 1h"];
        waiting(ready, clients, &options).map(|waiting| (waiting, at))
    };
    // On a busy machine the instant may pass while the dry run is made.
    let mut leads = [1, 5, 20].into_iter().map(Duration::from_secs);
    let (Waiting { said, done, .. }, at) = loop {
        match switch_at(leads.next().context("each instant had passed")?, clients) {
            Ok(switched) => break switched,
            Err(error) => println!("{error:#}"),
        }
    };
    let at = instant(&json!(at))?;
    assert_eq!((&said["confirm_within"], &said["ramp"]), (&json!("1h"), &Value::Null));
    assert_eq!((&said["to"]["live"], &done["to"]["live"]), (&json!(g), &json!(b)));
    assert_eq!((&said["revert_if"], &done["confirm_deadline"]), (&json!(["silence 1h"]), &Value::Null));
    is_between(&said["at"], [at; 2])?;
    is_between(&done["activate_at"], [at; 2])?;
    assert_eq!(said["flows"], json!({"stay": 4, "move": 2, "reset": 2}));
    let status = wait_for_phase(bgctl, &["confirming"])?;
    is_between(&status["confirm_deadline"], [at + HOUR; 2])?;
    assert_eq!(status["revert_if"], said["revert_if"]);
    assert_eq!(clients.ask()?, (tcp([Some(g), Some(g), None, None]), vec![g, g, b, b]));
    Ok(())
}

/// Green is live: users reach it, and testers reach blue.
fn packets_go_where_an_explanation_says(ready: &Ready) -> Result<()> {
    let (lab, live) = (&ready.lab, ready.bgctl.live(DEPLOYMENT)?);
    for ((vip, from), is_tcp) in VIPS.into_iter().cycle().zip(CLIENTS).zip([true, false, false, true]) {
        let (from, to) = (SocketAddr::new(from, 810), if is_tcp { http_vip(vip) } else { udp_vip(vip) });
        let ends = [from, to].map(|end| end.to_string());
        let protocol = if is_tcp { "tcp" } else { "udp" };
        let said = ready.bgctl.json(&["explain", "--from", &ends[0], "--to", &ends[1], "--protocol", protocol])?;
        let destination: SocketAddr = said["packet"]["destination"].as_str().context("no destination")?.parse()?;
        let mut backends = lab.backends.iter();
        let backend = backends.find(|backend| backend.addresses.contains(&destination.ip())).context("a backend")?;
        let is_tester = CLIENTS[2..].contains(&from.ip());
        assert_eq!(is_tester, backend.colour.name() != live, "{said}");
        let answered = if is_tcp {
            Connection::open_from(&lab.client, from, to)?.ask()?
        } else {
            let answer = lab.client.enter(|| Echo::open_from(from, to))??.ask("who is there?")?;
            format!("{} {}", answer.colour.name(), answer.backend)
        };
        assert_eq!(answered, backend.says());
    }
    Ok(())
}

in_each_setting!(a_dry_run_says_what_then_happens);
