//! The web page of `bgctl serve`, in Chromium: clicks and keys change the chosen deployment as the question has said, and no other; it is
//! honest when it is not connected; and it can be read by anybody, in any window.

mod browser;
mod stage;
mod terminal_picture;

use self::stage::{Stage, card};
use anyhow::{Context, Result};
use bg_tests::{
    Terminal, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip},
    load::Connection,
};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::PathBuf, thread, time::Duration};

const ENABLED: &str =
    "!document.querySelector('#question .do').disabled && !document.querySelector('#question .do').hidden";
const OPEN: &str = "document.querySelector('#question').open";
const CLOSED: &str = "!document.querySelector('#question').open";

/// Clicks a button of the shop's card, and waits for its question.
fn ask(stage: &Stage, verb: &str) -> Result<String> {
    stage.browser.click(&card(DEPLOYMENT, &format!("[data-verb={verb}]")))?;
    stage.browser.wait_for("a question that can be answered", &format!("{OPEN} && {ENABLED}"))?;
    stage.browser.text("#question")
}

/// Asks, and says yes.
fn ask_and_do(stage: &Stage, verb: &str, done: &str) -> Result<()> {
    ask(stage, verb)?;
    stage.browser.click("#question .do")?;
    stage.browser.wait_for("no question", CLOSED)?;
    stage.browser.wait_for_text("#said", done)
}

#[test]
fn clicks_change_the_chosen_deployment_as_was_shown() -> Result<()> {
    let stage = Stage::set("drain_timeout = \"1h\"", "")?;
    let (browser, bgctl) = (&stage.browser, &stage.ready.bgctl);
    let neighbour = stage.state(NEIGHBOUR)?;
    let generation = stage.state(DEPLOYMENT)?.1;
    let open = || {
        let from = SocketAddr::new(address::CLIENT_V4, 0);
        Connection::open_from(&stage.ready.lab.client, from, http_vip(address::VIP_V4))
    };
    let connections = [open()?, open()?, open()?];
    for connection in &connections {
        connection.ask()?;
    }
    stage.open()?;
    assert_eq!(browser.value("document.querySelectorAll('.card').length")?, 2);
    assert!(browser.text(&card(DEPLOYMENT, ".title"))?.contains("● BLUE is live"));
    browser.wait_for_text(&card(DEPLOYMENT, "[data-colour=blue]"), "3")?;

    let question = ask(&stage, "switch")?;
    let dry_run = bgctl.json(&["switch", DEPLOYMENT, "--dry-run"])?;
    assert_eq!(dry_run["flows"]["stay"], 3);
    for said in
        ["Switch shop?", "● blue → ◆ green", "Stay (for 1h at most)", "Open flows\t3\t0\t0", "8 of 8 backends ready"]
    {
        assert!(question.contains(said), "{said}: {question}");
    }
    assert!(question.contains(&format!("generation {generation} → {}", generation + 1)), "{question}");
    browser.click("#question .cancel")?;
    browser.wait_for("no question", CLOSED)?;
    assert_eq!(stage.state(DEPLOYMENT)?, ("blue".to_owned(), generation, "steady".to_owned()), "no is no");
    assert_eq!(browser.value("document.activeElement.dataset.verb")?, "switch", "focus is where it was");

    // With a deadline, and a reason that is no markup.
    ask(&stage, "switch")?;
    browser.value("document.querySelector('#question select').focus()")?;
    browser.press("ArrowDown")?;
    browser.press("ArrowDown")?;
    browser.wait_for_text("#question .answer", "Goes back after 5m, unless confirmed.")?;
    browser.value("document.querySelector('#question [name=reason]').focus()")?;
    browser.type_text("<img src=x onerror=alert(1)>")?;
    browser.wait_for("an answer", ENABLED)?;
    browser.click("#question .do")?;
    browser.wait_for_text("#said", "shop: blue → green, generation")?;
    assert_eq!(stage.state(DEPLOYMENT)?, ("green".to_owned(), generation + 1, "confirming".to_owned()));
    browser.wait_for_text(&card(DEPLOYMENT, ".title"), "◆ GREEN is live")?;
    browser.wait_for_text(&card(DEPLOYMENT, ".phase"), "confirming, 4:5")?;
    browser.wait_for_text(&card(DEPLOYMENT, ".drain"), "Drain: 3 of 3 flows left on blue")?;
    browser.wait_for_text(&card(DEPLOYMENT, ".history"), "root: <img src=x onerror=alert(1)>")?;
    assert_eq!(browser.value("document.images.length")?, 0);

    ask_and_do(&stage, "confirm", "shop: confirmed, green stays live")?;
    assert_eq!(bgctl.deployment(DEPLOYMENT)?["confirm_deadline"], Value::Null);
    ask_and_do(&stage, "rollback", "shop: green → blue")?;
    assert_eq!(stage.state(DEPLOYMENT)?.0, "blue");

    browser.click(&card(DEPLOYMENT, "[data-verb=split]"))?;
    browser.wait_for("a question", OPEN)?;
    browser.value("document.querySelector('#question [name=green]').select()")?;
    browser.type_text("25")?;
    browser.press("Tab")?;
    browser.wait_for_text("#question .answer", "25 % of new flows to green")?;
    browser.wait_for("an answer", ENABLED)?;
    browser.click("#question .do")?;
    browser.wait_for_text("#said", "25 % of new flows go to green")?;
    assert_eq!(bgctl.deployment(DEPLOYMENT)?["green_share"], 0.25);
    ask_and_do(&stage, "freeze", "shop is frozen until")?;
    browser.wait_for_text(&card(DEPLOYMENT, ".phase"), "frozen, 0:0")?;
    ask_and_do(&stage, "thaw", "shop is thawed")?;

    // Each change named the generation that was shown, and nothing that was not.
    let sent = browser.value("window.sent")?;
    let sent = sent.as_array().context("nothing was sent")?;
    let done: Vec<_> = sent.iter().filter(|request| request["body"]["dry_run"].is_null()).collect();
    assert_eq!(done.len(), 6, "{sent:?}");
    for (nth, request) in done.iter().take(3).enumerate() {
        assert_eq!(request["generation"], format!("\"{}\"", generation + [0, 1, 1][nth]), "{request}");
    }
    let body = json!({ "to": "green", "on_switch": "drain", "confirm_within": "5m", "reason": "<img src=x onerror=alert(1)>" });
    assert_eq!(done[0]["body"], body);
    assert_eq!(stage.state(NEIGHBOUR)?, neighbour);
    for connection in &connections {
        assert_eq!(connection.colour()?, "blue", "they have stayed");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
    stage.ready.neighbour_is_undisturbed()
}

#[test]
fn keys_alone_switch_confirm_and_roll_back() -> Result<()> {
    let gate = "{ when = \"before\", kind = \"exec\", command = [\"/bin/sleep\", \"1\"], timeout = \"9s\" }";
    let stage = Stage::set(&format!("gates = [{gate}]"), "")?;
    let (browser, bgctl) = (&stage.browser, &stage.ready.bgctl);
    let neighbour = stage.state(NEIGHBOUR)?;
    stage.open()?;
    let by_keys = |verb: &str, done: &str| -> Result<()> {
        let is_focused =
            format!("document.activeElement.matches({})", json!(card(DEPLOYMENT, &format!("[data-verb={verb}]"))));
        stage.tab_to(&is_focused)?;
        browser.press("Enter")?;
        browser.wait_for("a question", &format!("{OPEN} && {ENABLED}"))?;
        assert_eq!(browser.value("document.activeElement.className")?, "cancel", "Enter alone changes nothing");
        // The focus stays in the question.
        for _ in 0..8 {
            browser.press("Tab")?;
            let is_inside = "document.querySelector('#question').contains(document.activeElement) || document.activeElement === document.body";
            assert_eq!(browser.value(is_inside)?, true);
        }
        stage.tab_to("document.activeElement.className === 'do'")?;
        browser.press("Enter")?;
        browser.wait_for_text("#said", done)?;
        browser.wait_for("the focus", &is_focused)
    };
    by_keys("switch", "shop: blue → green")?;
    assert_eq!(stage.state(DEPLOYMENT)?.0, "green");
    by_keys("rollback", "shop: green → blue")?;
    assert_eq!(stage.state(DEPLOYMENT)?.0, "blue");
    bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "90s"])?;
    browser.wait_for_text(&card(DEPLOYMENT, ".notices"), "Goes back to blue in 1:")?;
    by_keys("confirm", "shop: confirmed, green stays live")?;
    // The button that has just been pressed keeps the focus, but there is nothing left to confirm.
    let confirm = format!("document.querySelector({})", json!(card(DEPLOYMENT, "[data-verb=confirm]")));
    browser.wait_for("a button without use", &format!("{confirm}.ariaDisabled === 'true'"))?;
    assert_eq!(browser.value(&format!("document.activeElement === {confirm}"))?, true);
    browser.press("Enter")?;
    assert_eq!(browser.value(CLOSED)?, true);
    let before = stage.state(DEPLOYMENT)?;

    // Escape leaves, and what somebody else does meanwhile withdraws the question.
    ask(&stage, "switch")?;
    browser.press("Escape")?;
    browser.wait_for("no question", CLOSED)?;
    assert_eq!(stage.state(DEPLOYMENT)?, before);
    ask(&stage, "switch")?;
    bgctl.run(&["switch", DEPLOYMENT, "blue", "--skip-gates"])?;
    browser.wait_for_text("#question .answer", "was changed meanwhile")?;
    assert_eq!(browser.value("document.querySelector('#question .do').hidden")?, true);
    browser.click("#question .again")?;
    browser.wait_for_text("#question .answer", "● blue → ◆ green")?;
    browser.wait_for_text("#question .answer", "before: ")?;
    // While the gate is asked, the question can be left, and the result comes all the same.
    browser.wait_for("an answer", ENABLED)?;
    browser.click("#question .do")?;
    browser.wait_for_text("#question .about", "Being done")?;
    browser.press("Escape")?;
    browser.wait_for("no question", CLOSED)?;
    assert_eq!(stage.state(DEPLOYMENT)?.0, "blue", "the gate has not passed yet");
    browser.wait_for_text("#said", "shop: blue → green")?;
    assert_eq!(stage.state(DEPLOYMENT)?.0, "green");
    assert_eq!(stage.state(NEIGHBOUR)?, neighbour);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_lost_connection_is_told_and_nothing_can_be_changed_until_it_is_back() -> Result<()> {
    let mut stage = Stage::set("", "")?;
    stage.open()?;
    ask(&stage, "switch")?;
    stage.controller()?.signal(libc::SIGSTOP)?;
    let browser = &stage.browser;
    browser.wait_for("a banner", "!document.querySelector('#lost').hidden")?;
    browser.wait_for_text("#lost", "Connection to the controller lost")?;
    browser.wait_for("the age", "/you see is ([5-9]|\\d\\d) s old/.test(document.querySelector('#lost').innerText)")?;
    assert_eq!(browser.value(ENABLED)?, false, "the question cannot be answered");
    browser.press("Escape")?;
    let all_disabled =
        "[...document.querySelectorAll('.card button')].every((button) => button.ariaDisabled === 'true')";
    assert_eq!(browser.value(all_disabled)?, true);
    assert_eq!(browser.text("#connection")?, "not connected");
    stage.controller()?.signal(libc::SIGCONT)?;
    browser.wait_for("no banner", "document.querySelector('#lost').hidden")?;
    assert_eq!(browser.value(all_disabled)?, false);

    stage.end_controller()?;
    stage.ready.bgctl.run(&["switch", DEPLOYMENT])?;
    stage.browser.wait_for("a banner", "!document.querySelector('#lost').hidden")?;
    assert!(stage.browser.text(&card(DEPLOYMENT, ".title"))?.contains("● BLUE is live"), "nobody has told it");
    stage.start_controller()?;
    stage.browser.wait_for_text(&card(DEPLOYMENT, ".title"), "◆ GREEN is live")?;
    stage.browser.wait_for_text(&card(DEPLOYMENT, ".history"), "switch blue@")?;
    stage.browser.wait_for("no banner", "document.querySelector('#lost').hidden")?;

    let interfaces = stage.ready.lab.interfaces.clone();
    stage.ready.bgctl.run(&["detach", "--all"])?;
    stage.browser.wait_for_text("#empty", "There is no instance")?;
    stage.ready.bgctl.run(&[&["attach", "--mode", "native"], interfaces.as_slice()].concat())?;
    stage.browser.wait_for_text("#empty", "No deployments")?;
    assert_eq!(stage.browser.complaints(), Vec::<String>::new());
    Ok(())
}

#[test]
fn with_tokens_one_signs_in_and_a_viewer_only_views() -> Result<()> {
    let stage = Stage::set("", "tokens")?;
    let browser = &stage.browser;
    // The browser itself asks for a token; here somebody else has answered it, and only for the page.
    let header = |value: Option<&str>| match value {
        Some(value) => json!({ "headers": { "authorization": value } }),
        None => json!({ "headers": {} }),
    };
    browser.call("Network.setExtraHTTPHeaders", header(Some("Bearer look")))?;
    browser.open(stage::PAGE)?;
    browser.wait_for("the page", "document.querySelectorAll('.card').length === 2")?;
    browser.call("Network.setExtraHTTPHeaders", header(None))?;
    // The next connection has none.
    browser.value("window.stop()")?;
    browser.wait_for("a form", "!document.querySelector('#sign-in').hidden")?;
    browser.type_text("wrong")?;
    browser.value("document.querySelector('#why-sign-in').textContent = 'not asked again yet'")?;
    browser.press("Enter")?;
    browser.wait_for("an answer", "document.querySelector('#why-sign-in').textContent !== 'not asked again yet'")?;
    browser.wait_for("the form again", "!document.querySelector('#sign-in').hidden")?;
    browser.type_text("look")?;
    browser.press("Enter")?;
    browser.wait_for("a connection", "document.querySelector('#connection').dataset.state === 'live'")?;
    let before = stage.state(DEPLOYMENT)?;
    browser.click(&card(DEPLOYMENT, "[data-verb=switch]"))?;
    browser.wait_for_text("#question .answer", "Not allowed")?;
    assert_eq!(browser.value("document.querySelector('#question .do').hidden")?, true);
    assert_eq!(stage.state(DEPLOYMENT)?, before);
    assert_eq!(browser.value("Object.values(localStorage).length + document.cookie.length")?, 0);
    Ok(())
}

#[test]
fn it_can_be_read_in_light_and_dark_on_a_phone_and_with_fifty_deployments() -> Result<()> {
    let health = "health = { kind = \"tcp\", port = 8080, interval = \"500ms\", timeout = \"200ms\" }";
    let stage = Stage::set(&format!("drain_timeout = \"10m\"\n{health}"), "")?;
    let browser = &stage.browser;
    stage.silence_one()?;
    let _load = stage.load()?;
    stage.open()?;
    stage.ready.bgctl.run(&["switch", NEIGHBOUR, "blue", "--confirm-within", "5m", "--reason", "release 42"])?;
    browser.wait_for_text(&card(NEIGHBOUR, ".phase"), "confirming")?;
    let flows =
        format!("Number(document.querySelector({}).innerText) > 5", json!(card(DEPLOYMENT, "[data-colour=blue] dd")));
    browser.wait_for("flows per second", &flows)?;
    let label = format!("document.querySelector({}).getAttribute('aria-label')", json!(card(DEPLOYMENT, ".plot")));
    assert!(browser.value(&label)?.as_str().is_some_and(|label| label.contains("blue") && label.contains("at most")));
    browser.wait_for_text(&card(DEPLOYMENT, "[data-colour=blue]"), "8 of 8 up")?;
    browser.wait_for_text(&card(DEPLOYMENT, "[data-colour=green]"), "4 of 8 DOWN")?;
    // The pictures in docs/screenshots have full plots.
    let is_full = std::env::var_os("BG_TEST_FULL").is_some();
    let top = is_full.then(|| picture_of_top(&stage, Duration::from_secs(100))).transpose()?;
    for (name, width, height, scheme) in [
        ("light", 1200, 900, "light"),
        ("dark", 1200, 900, "dark"),
        ("phone", 390, 844, "dark"),
        ("narrow", 320, 700, "light"),
    ] {
        browser.window(width, height, scheme)?;
        let poor = browser.value(stage::POOR_CONTRAST)?;
        assert_eq!(poor, json!([]), "{name}");
        let wide = browser.value("document.documentElement.scrollWidth")?;
        assert!(wide.as_u64().is_some_and(|wide| wide <= width.into()), "{name}: {wide}");
        let beyond = browser.value("[...document.querySelectorAll('.card > *')].filter((it) => it.getBoundingClientRect().right > innerWidth).length")?;
        assert_eq!(beyond, 0, "{name}");
        browser.shoot(&stage::pictures().join(format!("{name}.png")))?;
    }
    browser.window(1200, 900, "dark")?;
    ask(&stage, "switch")?;
    browser.shoot(&stage::pictures().join("question.png"))?;
    assert_eq!(browser.value(stage::POOR_CONTRAST)?, json!([]));
    browser.press("Escape")?;

    browser.window(1200, 900, "light")?;
    stage.apply_many(50)?;
    browser.wait_for("all of them", "document.querySelectorAll('.card').length === 50")?;
    // A second of the page with all of them takes a small part of a second.
    let longest = browser.value(
        "new Promise((resolve) => { let [longest, last, left] = [0, performance.now(), 60]; const step = () => { const now = performance.now(); \
         longest = Math.max(longest, now - last); last = now; left -= 1; if (left > 0) setTimeout(step, 50); else resolve(longest); }; step(); })",
    )?;
    assert!(longest.as_f64().is_some_and(|longest| longest < 500.0), "{longest}");
    browser.click("#filter input")?;
    browser.type_text("many-17")?;
    browser
        .wait_for("one of them", "[...document.querySelectorAll('.card')].filter((it) => !it.hidden).length === 1")?;
    browser.shoot(&stage::pictures().join("many.png"))?;
    if let Some(top) = top {
        browser.window(1020, 675, "dark")?;
        browser.open(&format!("file://{}", top.display()))?;
        thread::sleep(Duration::from_millis(500));
        browser.shoot(&stage::pictures().join("top.png"))?;
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
    Ok(())
}

/// Shows `bgctl top` in a terminal for a while, and makes a page of what can be read there.
fn picture_of_top(stage: &Stage, time: Duration) -> Result<PathBuf> {
    let terminal = Terminal::start(&stage.ready.lab.edge, stage.ready.lab.sandbox.dir(), (110, 36))?;
    let command = stage.ready.bgctl.command(&["top"]);
    let words = command.get_args().skip_while(|word| *word != "--").skip(1).map(|word| word.to_string_lossy());
    terminal.type_line(&words.collect::<Vec<_>>().join(" "))?;
    terminal.wait_for("the deployments", |text| text.contains(DEPLOYMENT))?;
    terminal.press(&["Down"])?;
    thread::sleep(time);
    let file = stage.ready.lab.sandbox.dir().join("top.html");
    std::fs::write(&file, terminal_picture::page(&terminal.styled_text()?))?;
    Ok(file)
}

/// Has each answer of /v1/status wait until the test lets it through.
const LATE: &str = "window.held = 0; const prompt = window.fetch; window.fetch = async (url, options) => { \
                    const answer = await prompt(url, options); if (!String(url).endsWith('v1/status')) return answer; \
                    const text = await answer.text(); window.held += 1; await new Promise((done) => { window.release = done; }); \
                    return new Response(text); };";

#[test]
fn an_answer_that_comes_late_is_not_shown_after_a_newer_state() -> Result<()> {
    let health = "health = { kind = \"tcp\", port = 8080, interval = \"500ms\", timeout = \"200ms\" }";
    let stage = Stage::set(health, "")?;
    let browser = &stage.browser;
    browser.run_first(LATE)?;
    stage.open()?;
    browser.wait_for_text(&card(DEPLOYMENT, "[data-colour=green]"), "8 of 8 up")?;
    // The event has the page look.
    stage.silence_one()?;
    browser.wait_for("an answer under way", "window.held === 1")?;
    stage.ready.bgctl.run(&["switch", DEPLOYMENT, "green", "--force"])?;
    browser.wait_for_text(&card(DEPLOYMENT, ".title"), "◆ GREEN is live")?;
    let title = json!(card(DEPLOYMENT, ".title"));
    browser.value(&format!(
        "window.wasBlue = false; new MutationObserver(() => {{ window.wasBlue ||= document.querySelector({title}).innerText.includes('BLUE'); }}) \
         .observe(document.body, {{ subtree: true, childList: true, characterData: true }})"
    ))?;
    browser.value("window.release()")?;
    browser.wait_for("another look", "window.held === 2")?;
    assert_eq!(browser.value("window.wasBlue")?, false, "the old answer was shown");
    browser.value("window.release()")?;
    Ok(())
}
