//! A dry run over open flows of real stacks, and what the switch then does to them.

use anyhow::{Context, Result, bail};
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
    time::Duration,
};

const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];

/// A connection and a UDP flow of each family: a user's, then a tester's.
struct Clients {
    tcp: Vec<Connection>,
    udp: Vec<Echo>,
}

impl Clients {
    fn open(lab: &Lab) -> Result<Self> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for from in [[address::CLIENT_V4, address::CLIENT_V6], [address::TESTER_V4, address::TESTER_V6]] {
            for (vip, from) in VIPS.into_iter().zip(from) {
                let from = SocketAddr::new(from, 0);
                tcp.push(Connection::open_from(&lab.client, from, http_vip(vip))?);
                udp.push(lab.client.enter(|| Echo::open_from(from, udp_vip(vip)))??);
            }
        }
        Ok(Self { tcp, udp })
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
    let clients = Clients::open(&ready.lab)?;
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

in_each_setting!(a_dry_run_says_what_then_happens);
