//! Changes, and what is seen of them.

use crate::setup::Served;
use anyhow::{Context, Result};
use bg_tests::config::{DEPLOYMENT, NEIGHBOUR};
use serde_json::{Value, json};

fn of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let deployments = status["deployments"].as_array().map(Vec::as_slice).unwrap_or_default();
    deployments.iter().find(|deployment| deployment["name"] == name).unwrap_or(&Value::Null)
}

/// The last record of the history.
fn last(served: &Served) -> Result<Value> {
    let history = served.ready.bgctl.json(&["history", "--last", "1"])?;
    Ok(history["records"][0].clone())
}

#[test]
fn answers_are_those_of_the_commands_and_changes_are_recorded_with_their_sender() -> Result<()> {
    let served = Served::local()?;
    let bgctl = &served.ready.bgctl;
    let mut client = served.client()?;
    assert_eq!(client.get("/healthz")?.text(), "ok\n");
    let same = |path: &str, arguments: &[&str], client: &mut bg_tests::HttpClient| -> Result<()> {
        let (api, command) = (client.get(path)?.done()?, bgctl.json(arguments)?);
        // Packets pass meanwhile, if only those of neighbour discovery.
        let keys = |value: &Value| value.as_object().map(|it| it.keys().cloned().collect::<Vec<_>>());
        assert_eq!(keys(&api), keys(&command), "{path}");
        for (api, command) in std::iter::zip(
            api["deployments"].as_array().into_iter().flatten(),
            command["deployments"].as_array().into_iter().flatten(),
        ) {
            for key in ["name", "live", "generation", "phase", "green_share", "flows"] {
                assert_eq!(api[key], command[key], "{path} {key}");
            }
            assert_eq!(keys(api), keys(command), "{path}");
        }
        assert_eq!(api["records"], command["records"], "{path}");
        Ok(())
    };
    same("/v1/status", &["status"], &mut client)?;
    same(&format!("/v1/deployments/{DEPLOYMENT}"), &["status", DEPLOYMENT], &mut client)?;
    same("/v1/history", &["history"], &mut client)?;
    same(
        &format!("/v1/history?deployment={DEPLOYMENT}&last=1&since=1h"),
        &["history", DEPLOYMENT, "--last", "1"],
        &mut client,
    )?;
    same(&format!("/v1/flows?deployment={DEPLOYMENT}"), &["flows", DEPLOYMENT], &mut client)?;

    let mut events = served.events()?;
    let first = events.next_event()?;
    assert_eq!((first.0.as_str(), &of(&first.1["status"], DEPLOYMENT)["live"]), ("state", &json!("blue")));
    let path = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let before = bgctl.deployment(NEIGHBOUR)?;
    let answer = client.post(&path, &json!({ "to": "green", "reason": "by the API" }))?;
    let switched = answer.done()?;
    assert_eq!((&switched["changed"], &switched["to"]["live"]), (&json!(true), &json!("green")));
    assert_eq!(answer.header("etag"), Some(format!("\"{}\"", switched["to"]["generation"]).as_str()));
    assert!(switched["receipt"].is_object() && switched["fence_us"].is_u64(), "{switched}");
    assert_eq!(bgctl.live(DEPLOYMENT)?, "green");
    let record = last(&served)?;
    assert_eq!((&record["who"]["user"], &record["reason"]), (&json!("root"), &json!("by the API")));
    assert!(
        record["command"].as_str().is_some_and(|command| command.starts_with(&format!("POST {path} {{"))),
        "{record}"
    );
    let told = events.next_of("switch")?;
    assert_eq!(
        (&told["deployment"], &told["to"], &told["who"]["user"]),
        (&json!(DEPLOYMENT), &record["to"], &json!("root"))
    );
    let counters = events.next_of("counters")?;
    assert_eq!(of(&counters, DEPLOYMENT)["live"], "green");

    // Nothing of the other deployment has changed.
    let after = bgctl.deployment(NEIGHBOUR)?;
    assert_eq!([&before["live"], &before["generation"]], [&after["live"], &after["generation"]]);
    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}

#[test]
fn each_command_has_its_request() -> Result<()> {
    let served = Served::local()?;
    let bgctl = &served.ready.bgctl;
    let mut client = served.client()?;
    let mut ask = |verb: &str, body: Value| client.post(&format!("/v1/deployments/{DEPLOYMENT}/{verb}"), &body);
    let live = || bgctl.live(DEPLOYMENT);
    let generation = || Ok::<_, anyhow::Error>(bgctl.deployment(DEPLOYMENT)?["generation"].clone());

    let before = generation()?;
    let dry = ask("switch", json!({ "dry_run": true }))?.done()?;
    assert_eq!((&dry["would"], &dry["to"]["live"]), (&json!("switch"), &json!("green")));
    assert_eq!(generation()?, before);
    let guarded =
        ask("switch", json!({ "confirm_within": "1h", "revert_if": ["silence 1h"], "on_switch": "drain" }))?.done()?;
    assert!(guarded["confirm_deadline"].is_string() && guarded["revert_if"][0] == "silence 1h", "{guarded}");
    assert_eq!(bgctl.deployment(DEPLOYMENT)?["phase"], "confirming");
    assert_eq!(ask("confirm", json!({}))?.done()?["changed"], true);
    assert_eq!(ask("confirm", json!({}))?.done()?["changed"], false, "it is confirmed already");
    assert_eq!(ask("rollback", json!({ "reason": "back" }))?.done()?["to"]["live"], "blue");
    let refused = ask("rollback", json!({}))?;
    assert_eq!((refused.status, refused.json()?["exit_code"].as_u64()), (409, Some(3)), "{}", refused.text());
    assert_eq!(ask("split", json!({ "green": 12.5, "by": "client" }))?.done()?["green_share"], 0.125);
    assert_eq!(bgctl.deployment(DEPLOYMENT)?["green_share"], 0.125);
    assert_eq!(ask("split", json!({ "green": "0" }))?.done()?["green_share"], 0.0);
    assert_eq!(ask("drain", json!({ "wait": true, "timeout": "5s" }))?.done()?["left"], 0);
    let frozen = ask("freeze", json!({ "max": "1m", "reason": "calm" }))?.done()?;
    assert!(frozen["frozen_until"].is_string(), "{frozen}");
    assert_eq!(bgctl.deployment(DEPLOYMENT)?["phase"], "frozen");
    assert_eq!(ask("thaw", json!({}))?.done()?["changed"], true);
    let window = ask("switch", json!({ "to": "green", "freeze": "5s" }))?.done()?;
    assert!(window["frozen_ms"].is_u64() && live()? == "green", "{window}");
    let scheduled = ask("switch", json!({ "at": "2099-01-01T00:00:00Z" }))?;
    assert_eq!(scheduled.status, 400, "more than a year ahead: {}", scheduled.text());
    let ramp = ask("switch", json!({ "ramp": "1h" }))?.done()?;
    assert!(ramp["ramp_until"].is_string(), "{ramp}");
    assert_eq!(ask("switch", json!({ "to": "blue" }))?.done()?["to"]["live"], "blue");
    assert_eq!(ask("fly", json!({}))?.status, 404);
    let unknown = client.post("/v1/deployments/shopp/switch", &json!({}))?;
    let detail = unknown.json()?["detail"].as_str().map(str::to_owned).context("no detail")?;
    assert!(unknown.status == 404 && detail.contains("shop"), "{detail}");
    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}

#[test]
fn an_apply_is_repeated_safely_and_has_no_generation() -> Result<()> {
    let served = Served::local()?;
    let bgctl = &served.ready.bgctl;
    let config = std::fs::read_to_string(bgctl.config())?;
    let other = config.replacen("drain_timeout = \"1h\"", "drain_timeout = \"2h\"", 1);
    assert_ne!(config, other);
    let ask = |path: &str, headers: &[(&str, &str)], body: &str| {
        let headers = [headers, &[("Content-Type", "application/toml")]].concat();
        served.client()?.request("POST", path, &headers, body.as_bytes())
    };
    let applies = || {
        let history = bgctl.json(&["history"])?;
        let records = history["records"].as_array().cloned().unwrap_or_default();
        Ok::<_, anyhow::Error>(records.iter().filter(|record| record["action"] == "apply").count())
    };
    let before = applies()?;
    let refused = ask("/v1/apply", &[("If-Match", "\"1\"")], &other)?;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("If-Match"), "{}", refused.text());
    assert_eq!(applies()?, before, "nothing was applied");

    let key = [("Idempotency-Key", "one")];
    let first = ask("/v1/apply", &key, &other)?;
    assert!(!first.done()?["changes"].as_array().context("no changes")?.is_empty(), "{}", first.text());
    let again = ask("/v1/apply", &key, &other)?;
    assert_eq!((again.status, &again.body), (200, &first.body), "what the first one has changed");
    assert_eq!(applies()?, before + 1);
    assert_eq!(ask("/v1/apply?reason=why", &key, &other)?.status, 422, "other options are another request");
    assert_eq!(ask("/v1/apply", &key, &config)?.status, 422);
    let same = ask("/v1/apply", &[("Idempotency-Key", "two")], &other)?;
    assert_eq!(same.done()?["changes"].as_array().map(Vec::len), Some(0), "it is applied already");
    served.ready.neighbour_is_undisturbed()
}
