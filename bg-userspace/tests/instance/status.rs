//! What `status` and `flows` tell, of an instance with several deployments and services.

use std::{
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
};

use bg_userspace::{AttachMode, Colour, Error, FlowFilter, SwitchRequest, config::parse};

use crate::{flows::send_to, lab::Lab};

const CONFIG: &str = r#"
[deployments.mail]
on_switch = "cut"
[[deployments.mail.services]]
name = "web"
vip = "203.0.113.9:443"
protocol = "udp"
mode = "nat"
blue = ["10.0.1.9:443"]
green = ["10.0.2.9:443"]
[deployments.shop]
drain_timeout = "10m"
testers = ["198.51.100.0/24", "2001:db8:7::/48"]
[[deployments.shop.services]]
name = "web"
vip = "203.0.113.10:443"
protocol = "udp"
mode = "nat"
blue = ["10.0.1.10:443"]
green = ["10.0.2.10:443"]
preview = "203.0.113.10:9443"
[[deployments.shop.services]]
name = "店"
vip = "203.0.113.11:443"
protocol = "udp"
mode = "nat"
blue = ["10.0.1.11:443"]
green = ["10.0.2.11:443"]
"#;

fn applied() -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Native).unwrap();
    lab.instance().apply(&parse(Path::new("test.toml"), CONFIG).unwrap()).unwrap();
    lab
}

/// Datagrams of clients to the three VIPs, in this order.
fn send(lab: &Lab, client: u8, count: [u16; 3]) {
    for (vip, count) in (9..).zip(count) {
        (0..count).for_each(|port| send_to(lab, [192, 0, 2, client], 5000 + port, [203, 0, 113, vip]));
    }
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn only_the_flows_that_are_asked_for_are_told() {
    let lab = applied();
    send(&lab, 1, [1, 2, 4]);
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    send(&lab, 2, [8, 16, 32]);

    let all = FlowFilter::default();
    let shop = FlowFilter { deployment: Some("shop".into()), ..all.clone() };
    let web = |filter: &FlowFilter| FlowFilter { service: Some("web".into()), ..filter.clone() };
    let of = |colour, filter: &FlowFilter| FlowFilter { colour: Some(colour), ..filter.clone() };
    let to = |backend: &str| FlowFilter { backend: Some(backend.parse().unwrap()), ..all.clone() };
    let instance = lab.instance();
    for (filter, expected) in [
        (all.clone(), 63),
        (shop.clone(), 54),
        (web(&all), 27),
        (web(&shop), 18),
        (of(Colour::Blue, &all), 15),
        (of(Colour::Green, &web(&shop)), 16),
        (of(Colour::Blue, &web(&shop)), 2),
        (to("10.0.1.11:443"), 4),
        (to("10.0.1.11:444"), 0),
        (FlowFilter { deployment: Some("mail".into()), ..to("10.0.2.11:443") }, 0),
    ] {
        assert_eq!(instance.count_flows(&filter).unwrap(), expected, "{filter:?}");
        let flows = instance.flows(&filter).unwrap();
        assert_eq!(flows.len() as u64, expected, "{filter:?}");
        for flow in flows {
            assert!(filter.deployment.as_ref().is_none_or(|wanted| *wanted == flow.deployment), "{flow:?}");
            assert!(filter.service.as_ref().is_none_or(|wanted| *wanted == flow.service), "{flow:?}");
            assert!(filter.colour.is_none_or(|wanted| wanted == flow.colour), "{flow:?}");
            assert!(filter.backend.is_none_or(|wanted| wanted == flow.backend), "{flow:?}");
        }
    }
    let words = ["flows", "shop", "--service", "web", "--colour", "green", "--backend", "10.0.2.10:443", "--count"];
    assert_eq!(stdout(lab.bgctl().args(words)), "16\n");
    assert_eq!(stdout(lab.bgctl().args(words).arg("--json")).replace(char::is_whitespace, ""), r#"{"count":16}"#);
    let error = instance.flows(&FlowFilter { service: Some("wep".into()), ..shop }).unwrap_err();
    assert!(matches!(&error, Error::UnknownService { .. }) && error.to_string().contains("\"web\""), "{error}");
    let error = instance.flows(&FlowFilter { deployment: Some("shpo".into()), ..all }).unwrap_err();
    assert!(error.to_string().ends_with("did you mean \"shop\"?"), "{error}");
}

#[test]
fn status_tells_what_a_switch_would_do_and_when_a_drain_ends() {
    let lab = applied();
    send(&lab, 1, [1, 2, 4]);
    let deployment = |index: usize| -> serde_json::Value {
        let status: serde_json::Value = serde_json::from_str(&stdout(lab.bgctl().args(["status", "--json"]))).unwrap();
        status["deployments"][index].clone()
    };
    let (mail, shop) = (deployment(0), deployment(1));
    assert_eq!((&mail["name"], &mail["on_switch"]), (&"mail".into(), &"cut".into()));
    assert!(mail["drain_timeout"].is_null() && mail["testers"].as_array().unwrap().is_empty());
    assert_eq!((&shop["on_switch"], &shop["drain_timeout"]), (&"drain".into(), &"10m".into()));
    assert_eq!(shop["testers"], serde_json::json!(["198.51.100.0/24", "2001:db8:7::/48"]));
    assert_eq!(shop["services"][0]["preview"], "203.0.113.10:9443");
    assert_eq!(shop["services"][1]["green"]["backends"][0]["health"], "unknown");
    assert!(shop["drain_deadline"].is_null());

    let before = jiff::Timestamp::now();
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    let (mail, shop) = (deployment(0), deployment(1));
    assert!(mail["drain_deadline"].is_null());
    assert_eq!(shop["phase"], "draining");
    let deadline: jiff::Timestamp = shop["drain_deadline"].as_str().unwrap().parse().unwrap();
    let left = deadline.duration_since(before).as_secs();
    assert!((598..=605).contains(&left), "{left} seconds");

    let text = stdout(lab.bgctl().args(["status", "--color", "never"]));
    for part in [
        "mail: blue is live, steady",
        "  switch: green would become live; open flows are cut",
        "shop: green is live, draining",
        "  drain: open flows on blue end at 2",
        "  switch: blue would become live; open flows drain, for at most 10m",
        "  testers, always on blue: 198.51.100.0/24, 2001:db8:7::/48",
        "  preview, always on blue: web 203.0.113.10:9443/udp",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // Numbers end in line, also behind characters that are two columns wide.
    let row = |service: &str, colour: &str| {
        let line = text.lines().skip_while(|line| !line.starts_with("shop")).find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(service) && words.any(|word| word == colour)
        });
        line.unwrap().to_owned()
    };
    assert!(row("web", "green").contains("green (live)") && !row("web", "blue").contains("(live)"));
    assert_eq!(row("web", "blue").chars().count(), row("店", "blue").chars().count() + 1);

    let coloured = stdout(lab.bgctl().args(["status", "--color", "always"]));
    let is_steady = |line: &&str| !line.starts_with("  drain:");
    let plain = anstream::adapter::strip_str(&coloured).to_string();
    assert!(coloured.contains('\x1b'));
    assert!(plain.lines().filter(is_steady).eq(text.lines().filter(is_steady)), "{plain}");
}

/// What a command writes that has to be interrupted once it has written enough.
fn shown_until(command: &mut Command, is_enough: impl Fn(&str) -> bool, interrupt: impl FnOnce(&mut Child)) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut output, mut shown, mut piece) = (child.stdout.take().unwrap(), Vec::new(), [0; 4096]);
    let mut interrupt = Some(interrupt);
    loop {
        let length = output.read(&mut piece).unwrap();
        if length == 0 {
            break;
        }
        shown.extend_from_slice(&piece[..length]);
        if is_enough(&String::from_utf8_lossy(&shown))
            && let Some(interrupt) = interrupt.take()
        {
            interrupt(&mut child);
        }
    }
    let (status, shown) = (child.wait().unwrap(), String::from_utf8(shown).unwrap());
    assert!(status.success(), "{status}: {shown:?}");
    shown
}

#[test]
fn a_small_terminal_shows_what_is_live_and_how_much_is_missing() {
    let lab = applied();
    send(&lab, 1, [1, 2, 4]);
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    let bgctl = lab.bgctl();
    let words: Vec<_> = std::iter::once(bgctl.get_program()).chain(bgctl.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
    // Ctrl-C goes to all processes of the terminal, and not every shell survives it. So bgctl replaces the shell. The terminal neither
    // echoes Ctrl-C nor throws away what it has not displayed yet, which may be the middle of a screen.
    let watch = format!("stty rows 6 cols 60 -echo noflsh; exec {} status --watch", words.join(" "));
    let mut terminal = Command::new("timeout");
    terminal.args(["60", "script", "-qec", &watch, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
    // Two screens, then Ctrl-C.
    let shown = shown_until(
        &mut terminal,
        |shown| shown.matches("more lines").count() >= 2,
        |child| {
            child.stdin.take().unwrap().write_all(b"\x03").unwrap();
        },
    );
    let (_, screens) = shown.split_once("\x1b[?1049h").expect("a screen of its own");
    let (screens, after) = screens.split_once("\x1b[?1049l").expect("which is left");
    let missing = format!("({} more lines", after.trim().lines().count() - 3);
    for screen in screens.split("\x1b[H").skip(1) {
        let screen = anstream::adapter::strip_str(screen).to_string();
        let lines: Vec<_> = screen.lines().map(str::trim_end).collect();
        assert_eq!(lines.len(), 6, "{screen}");
        assert!(lines[0].starts_with("mail: blue is live") && lines[1].ends_with("blue 1, green 0"), "{screen}");
        assert!(lines[3].starts_with("shop: green is live") && lines[4].ends_with("blue 6, green 0"), "{screen}");
        assert!(lines.iter().all(|line| line.chars().count() <= 60), "{screen}");
        assert!(lines[5].starts_with(&missing), "{screen}");
    }
    assert!(after.contains("interfaces: v0 (native)"), "all of it stays when it ends: {after}");
    assert!(!shown.contains("\x1b[2J") && !shown.contains("\x1b[3J"), "what stood there before stays");

    // A pipe gets everything each time.
    let mut piped = Command::new("timeout");
    piped.arg("60").args(words).args(["status", "--watch"]);
    let whole = |shown: &str| shown.matches("interfaces: v0 (native)").count() >= 2;
    let shown = shown_until(&mut piped, whole, |child| {
        let child = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(child, rustix::process::Signal::INT).unwrap();
    });
    assert!(shown.contains("mail:") && shown.contains("interfaces: v0 (native)") && !shown.contains('\x1b'), "{shown}");
}

#[test]
fn an_instance_without_deployments_or_interfaces_tells_the_next_step() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let text = stdout(lab.bgctl().arg("status"));
    let options = format!("--pin-root {} --state-dir", lab.paths.pin_root.display());
    let apply = format!("no deployments: write a configuration, then `bgctl apply -c FILE {options}");
    assert!(text.contains(&apply), "{text}");
    bg_userspace::detach(&lab.paths, &bg_userspace::Target::Interfaces(vec!["v0".into()])).unwrap();
    let text = stdout(lab.bgctl().arg("status"));
    let attach = format!("`bgctl attach IFACE... {options}");
    assert!(text.contains(&attach) && text.contains("is the next step"), "{text}");
}
