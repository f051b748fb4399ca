//! `bgctl top` in a terminal: keys change the chosen deployment as its question has said, and no other; and however it ends, the terminal is as it was.

use anyhow::{Context, Result};
use bg_tests::{
    NewFlows, Ready, Terminal, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip, shop, udp_vip},
    load::Connection,
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

const SIZE: (u16, u16) = (110, 40);
const BEFORE: &str = "what was there before";

/// A terminal with top in it.
fn top(ready: &Ready, words: &[&str]) -> Result<Terminal> {
    let terminal = Terminal::start(&ready.lab.edge, ready.lab.sandbox.dir(), SIZE)?;
    terminal.type_line(&format!("echo {BEFORE}"))?;
    terminal.wait_for("an echo", |text| text.contains(&format!("\n{BEFORE}")))?;
    terminal.type_line(&line(ready, words))?;
    terminal.wait_for("the keys", |text| text.contains("q quit"))?;
    Ok(terminal)
}

fn line(ready: &Ready, words: &[&str]) -> String {
    let command = ready.bgctl.command(words);
    // Without what enters the namespace, in which the terminal is.
    let words = command.get_args().skip_while(|word| *word != "--").skip(1);
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn state(ready: &Ready, deployment: &str) -> Result<(String, u64, String)> {
    let status = ready.bgctl.deployment(deployment)?;
    let text = |key: &str| status[key].as_str().map(str::to_owned).context("no text");
    Ok((text("live")?, status["generation"].as_u64().context("no generation")?, text("phase")?))
}

/// Presses a key, reads the question, and says yes.
fn ask_and_do(terminal: &Terminal, key: &str, title: &str, done: &str) -> Result<String> {
    terminal.press(&[key])?;
    let question = terminal.wait_for(title, |text| text.contains(title) && text.contains("y yes"))?;
    terminal.press(&["y"])?;
    terminal.wait_for(done, |text| text.contains(done) && !text.contains("y yes"))?;
    Ok(question)
}

#[test]
fn keys_change_the_chosen_deployment_as_was_shown() -> Result<()> {
    let ready = Ready::native("drain_timeout = \"1h\"")?;
    let neighbour = state(&ready, NEIGHBOUR)?;
    let generation = state(&ready, DEPLOYMENT)?.1;
    let from = SocketAddr::new(address::CLIENT_V4, 0);
    let vip = http_vip(address::VIP_V4);
    let open = || Connection::open_from(&ready.lab.client, from, vip);
    let connections = [open()?, open()?, open()?];
    for connection in &connections {
        connection.ask()?;
    }
    let terminal = top(&ready, &["top"])?;
    let both = |text: &str| text.contains(DEPLOYMENT) && text.contains(NEIGHBOUR);
    terminal.wait_for("both deployments", both)?;
    // The first one in the list is not the one that is switched.
    terminal.press(&["Down"])?;
    terminal.wait_for("the details of the other one", |text| text.contains("shop: ● blue is LIVE"))?;

    terminal.press(&["s"])?;
    let question = terminal.wait_for("the question", |text| text.contains("y yes"))?;
    let dry_run = ready.bgctl.json(&["switch", DEPLOYMENT, "--dry-run"])?;
    assert_eq!(dry_run["flows"]["stay"], 3);
    for said in [
        "switch shop?".to_owned(),
        format!("blue -> green, generation {generation} -> {}", generation + 1),
        "Open flows: 3 stay (for 1h at most), 0 move, 0 reset.".to_owned(),
        "green: 8 backends of 8 ready".replace("8 backends of 8", &ready_backends(&dry_run)),
    ] {
        assert!(question.contains(&said), "{said}\n{question}");
    }
    terminal.press(&["n"])?;
    terminal.wait_for("no question", |text| !text.contains("y yes"))?;
    assert_eq!(state(&ready, DEPLOYMENT)?, ("blue".to_owned(), generation, "steady".to_owned()), "no is no");

    ask_and_do(&terminal, "s", "switch shop?", "shop: blue -> green")?;
    assert_eq!(state(&ready, DEPLOYMENT)?, ("green".to_owned(), generation + 1, "draining".to_owned()));
    terminal.wait_for("the drain", |text| text.contains("drain: 3 of 3 left on blue"))?;
    terminal.wait_for("the history", |text| text.contains(&format!("switch blue@{generation} -> green@")))?;

    ask_and_do(&terminal, "r", "rollback shop?", "shop: green -> blue")?;
    assert_eq!(state(&ready, DEPLOYMENT)?.0, "blue");

    ready.bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "90s"])?;
    terminal.wait_for("the deadline", |text| {
        text.contains("confirming 1:2") && text.contains("goes back to blue in 1:2")
    })?;
    let question = ask_and_do(&terminal, "c", "confirm shop?", "shop: confirmed, green stays live")?;
    assert!(question.contains("the data path goes back to blue at "), "{question}");
    let status = ready.bgctl.deployment(DEPLOYMENT)?;
    assert_eq!((&status["live"], &status["confirm_deadline"]), (&"green".into(), &Value::Null));
    terminal.press(&["c"])?;
    terminal.wait_for("a refusal", |text| text.contains("shop: no confirm: no switch waits for a confirmation"))?;

    ask_and_do(&terminal, "f", "freeze shop?", "shop: frozen until")?;
    assert_eq!(state(&ready, DEPLOYMENT)?.2, "frozen");
    terminal.wait_for("the end", |text| text.contains("frozen 0:0") && text.contains("(t thaws)"))?;
    ask_and_do(&terminal, "t", "thaw shop?", "shop: thawed")?;
    assert_ne!(state(&ready, DEPLOYMENT)?.2, "frozen");

    assert_eq!(state(&ready, NEIGHBOUR)?, neighbour);
    terminal.press(&["q"])?;
    assert_eq!(terminal.at_rest(BEFORE)?, 0);
    for connection in &connections {
        assert_eq!(connection.colour()?, "blue", "they have stayed");
    }
    ready.neighbour_is_undisturbed()
}

/// How many backends a dry run has found ready, in words.
fn ready_backends(dry_run: &Value) -> String {
    let target = dry_run["target"].as_array().map_or(&[][..], Vec::as_slice);
    let ready = target.iter().filter(|backend| backend["ready"] == true).count();
    format!("{ready} of {} backends", target.len())
}

#[test]
fn what_has_changed_since_it_was_shown_is_refused() -> Result<()> {
    let ready = Ready::native("")?;
    let terminal = top(&ready, &["top", DEPLOYMENT])?;
    let text = terminal.wait_for("the deployment", |text| text.contains("shop: ● blue is LIVE"))?;
    assert!(!text.contains(NEIGHBOUR), "only the one that was named\n{text}");
    terminal.press(&["s"])?;
    terminal.wait_for("the question", |text| text.contains("y yes"))?;
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    ready.bgctl.run(&["rollback", DEPLOYMENT])?;
    let before = state(&ready, DEPLOYMENT)?;
    terminal.press(&["y"])?;
    terminal.wait_for("a refusal", |text| text.contains("refused or failed:") && text.contains("generation"))?;
    assert_eq!(state(&ready, DEPLOYMENT)?, before);

    terminal.wait_for("the present generation", |text| text.contains(&format!("generation {}", before.1)))?;
    // A freeze does not change the generation, but was shown at one.
    terminal.press(&["f"])?;
    terminal.wait_for("the question", |text| text.contains("y yes"))?;
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    terminal.press(&["y"])?;
    terminal.wait_for("a refusal", |text| text.contains("it was changed meanwhile"))?;
    assert_ne!(state(&ready, DEPLOYMENT)?.2, "frozen");
    Ok(())
}

#[test]
fn it_moves_in_windows_of_any_size_and_while_backends_do_not_answer() -> Result<()> {
    let ready = Ready::native("")?;
    for backend in &ready.lab.backends[2..] {
        for line in [
            "add table inet silent",
            "add chain inet silent input { type filter hook input priority 0 ; }",
            "add rule inet silent input meta l4proto tcp drop",
        ] {
            backend.namespace.run(&format!("nft {line}"))?;
        }
    }
    let terminal = top(&ready, &["top", DEPLOYMENT])?;
    let mut flows = NewFlows::new(udp_vip(address::VIP_V4), &[address::CLIENT_V4], 20_000..30_000);
    let live = ready.live()?;
    ready.lab.client.enter(|| {
        let end = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < end {
            flows.ask(&live)?;
            thread::sleep(Duration::from_millis(10));
        }
        anyhow::Ok(())
    })??;
    let is_plot = |line: &str| line.starts_with("● blue") && line.contains("LIVE") && line.contains(['▆', '▇', '█']);
    let text = terminal.wait_for("flows of blue", |text| text.lines().any(is_plot))?;
    let rate = text.lines().find(|line| is_plot(line)).and_then(|line| line.split("/s").next()?.rsplit(' ').next());
    let rate: f64 = rate.context("no rate")?.parse()?;
    assert!((10.0..=100.0).contains(&rate), "{rate}\n{text}");

    for (width, height) in [(60, 15), (30, 6), (12, 2), (3, 1), (200, 60), (110, 40)] {
        terminal.resize(width, height)?;
        if width >= 30 {
            let is_there = |text: &str| text.contains(DEPLOYMENT) && text.contains("● blue");
            terminal.wait_for(&format!("a picture of {width}x{height}"), is_there)?;
        } else {
            thread::sleep(Duration::from_millis(400));
            terminal.program().context("top has ended")?;
        }
    }
    // While it finds out about backends that do not answer, it can be left at once, and what comes then is not shown.
    terminal.press(&["s"])?;
    terminal.wait_for("a search", |text| text.contains("Finding out"))?;
    terminal.press(&["Escape"])?;
    let at_once = Duration::from_millis(1000);
    terminal.wait_within(at_once, "no search", |text| !text.contains("Finding out"))?;
    thread::sleep(Duration::from_secs(2));
    assert!(!terminal.text()?.contains("y yes"));
    terminal.press(&["s"])?;
    let question = terminal.wait_for("the question", |text| text.contains("y yes"))?;
    assert!(question.contains("NOT READY") && question.contains("green: 4 of 8 backends ready"), "{question}");
    terminal.press(&["Escape"])?;
    terminal.wait_for("no question", |text| !text.contains("y yes"))?;
    terminal.press(&["q"])?;
    assert_eq!(terminal.at_rest(BEFORE)?, 0);
    Ok(())
}

#[test]
fn the_terminal_is_restored_after_a_signal_and_after_a_panic() -> Result<()> {
    let ready = Ready::native("")?;
    let terminal = top(&ready, &["top"])?;
    terminal.wait_for("a deployment", |text| text.contains(DEPLOYMENT))?;
    for signal in ["TERM", "INT", "HUP"] {
        bg_tests::run(&format!("kill -{signal} {}", terminal.program()?))?;
        assert_eq!(terminal.at_rest(BEFORE)?, 0, "{signal}");
        terminal.type_line(&line(&ready, &["top"]))?;
        terminal.wait_for("a deployment", |text| text.contains("q quit") && text.contains(DEPLOYMENT))?;
    }
    // Threads with stacks that no machine has cannot be started, which is a panic.
    bg_tests::run(&format!("kill -TERM {}", terminal.program()?))?;
    terminal.at_rest(BEFORE)?;
    let words = line(&ready, &["top"]);
    let elsewhere = words.replace(&ready.lab.sandbox.pin_root().display().to_string(), "/sys/fs/bpf/bg-nowhere");
    terminal.type_line(&format!("RUST_MIN_STACK={} {elsewhere}", 1_u64 << 46))?;
    terminal.wait_for("the message", |text| text.contains("panicked") && text.contains("failed to spawn thread"))?;
    assert_eq!(terminal.at_rest(BEFORE)?, 101);
    Ok(())
}

#[test]
fn it_waits_for_an_instance_and_needs_a_terminal() -> Result<()> {
    let ready = Ready::native("")?;
    let output = ready.bgctl.try_run(&["top"])?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("it needs a terminal") && message.contains("bgctl status --watch --json"), "{message}");

    let terminal = top(&ready, &["top"])?;
    terminal.wait_for("a deployment", |text| text.contains(DEPLOYMENT))?;
    terminal.press(&["s"])?;
    terminal.wait_for("the question", |text| text.contains("y yes"))?;
    ready.bgctl.run(&["detach", "--all"])?;
    let is_gone = |text: &str| text.contains("This waits") && !text.contains(DEPLOYMENT) && !text.contains("y yes");
    terminal.wait_for("that it is gone", is_gone)?;
    terminal.press(&["y", "s", "r"])?;
    let interfaces = ready.lab.interfaces.as_slice();
    ready.bgctl.run(&[&["attach", "--mode", "native"], interfaces].concat())?;
    terminal.wait_for("that nothing is configured", |text| text.contains("no deployments"))?;
    ready.bgctl.apply(&shop(&ready.lab, "nat", ""))?;
    terminal.wait_for("the deployments", |text| text.contains(DEPLOYMENT) && text.contains(NEIGHBOUR))?;
    terminal.press(&["C-c"])?;
    assert_eq!(terminal.at_rest(BEFORE)?, 0);

    terminal.type_line(&line(&ready, &["top", "nobody"]))?;
    terminal.wait_for("a refusal", |text| text.contains("no deployment"))?;
    assert_eq!(terminal.at_rest(BEFORE)?, 2);
    Ok(())
}

#[test]
fn a_switch_asks_the_gates_of_its_deployment() -> Result<()> {
    let ready = Ready::native("")?;
    let config = std::fs::read_to_string(ready.bgctl.config())?;
    let gate = |deployment: &str, command: &str| {
        format!("\n[[deployments.{deployment}.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"{command}\"]\n")
    };
    ready.bgctl.apply(&(config.clone() + &gate(DEPLOYMENT, "/bin/false") + &gate(NEIGHBOUR, "/bin/true")))?;
    let terminal = top(&ready, &["top", DEPLOYMENT])?;
    terminal.wait_for("the deployment", |text| text.contains("shop: ● blue is LIVE"))?;
    let question = ask_and_do(&terminal, "s", "switch shop?", "refused or failed:")?;
    assert!(question.contains("Before the switch, a gate is asked: exec /bin/false."), "{question}");
    assert_eq!(state(&ready, DEPLOYMENT)?.0, "blue");
    ready.bgctl.apply(&(config + &gate(DEPLOYMENT, "/bin/true") + &gate(NEIGHBOUR, "/bin/false")))?;
    ask_and_do(&terminal, "s", "switch shop?", "all gates passed")?;
    assert_eq!(state(&ready, DEPLOYMENT)?.0, "green");
    ready.neighbour_is_undisturbed()
}
