//! Many clients at the same time.

use crate::setup::Served;
use anyhow::{Context, Result, ensure};
use bg_tests::{
    HttpClient,
    config::{DEPLOYMENT, NEIGHBOUR},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

const CLIENTS: usize = 100;
const REQUESTS: usize = 100;
/// How many of them switch.
const SWITCHERS: usize = 5;

/// The live colour of each generation, as everybody has seen it.
type Seen = Mutex<HashMap<u64, String>>;

fn of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let deployments = status["deployments"].as_array().map(Vec::as_slice).unwrap_or_default();
    deployments.iter().find(|deployment| deployment["name"] == name).unwrap_or(&Value::Null)
}

fn note(seen: &Seen, state: &Value) -> Result<u64> {
    let generation = state["generation"].as_u64().with_context(|| format!("no generation in {state}"))?;
    let live = state["live"].as_str().context("no live colour")?.to_owned();
    let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = seen.entry(generation).or_insert_with(|| live.clone());
    ensure!(*known == live, "generation {generation} is {known} and {live}");
    Ok(generation)
}

/// One client. Returns how many switches it has made.
fn client(served: &Served, nth: usize, seen: &Seen, neighbour: &Value) -> Result<u64> {
    let open = || if nth.is_multiple_of(2) { served.client() } else { served.tcp() };
    let mut client: HttpClient = open()?;
    let (mut last, mut switches) = (0, 0);
    for request in 0..REQUESTS {
        let generation = if nth < SWITCHERS && request.is_multiple_of(10) {
            let answer = client.post(&format!("/v1/deployments/{DEPLOYMENT}/switch"), &json!({}))?.done()?;
            ensure!(answer["changed"] == true, "{answer}");
            switches += 1;
            note(seen, &answer["from"])?;
            note(seen, &answer["to"])?
        } else if request.is_multiple_of(3) {
            let status = client.get(&format!("/v1/deployments/{DEPLOYMENT}"))?.done()?;
            note(seen, of(&status, DEPLOYMENT))?
        } else {
            let status = client.get("/v1/status")?.done()?;
            ensure!(of(&status, NEIGHBOUR)["generation"] == *neighbour, "the other deployment has changed");
            note(seen, of(&status, DEPLOYMENT))?
        };
        ensure!(generation >= last, "client {nth}: generation {generation} after {last}");
        last = generation;
    }
    Ok(switches)
}

#[test]
fn a_hundred_clients_agree_on_what_is_live_while_five_of_them_switch() -> Result<()> {
    let served = Served::local()?;
    let seen = Seen::default();
    let status = served.client()?.get("/v1/status")?.done()?;
    let neighbour = of(&status, NEIGHBOUR)["generation"].clone();
    let before = note(&seen, of(&status, DEPLOYMENT))?;
    let began = Instant::now();
    let switches = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|nth| {
                scope.spawn({
                    let (served, seen, neighbour) = (&served, &seen, &neighbour);
                    move || client(served, nth, seen, neighbour)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client has panicked")).sum::<Result<u64>>()
    })?;
    println!("{} requests, {switches} of them switches, in {:?}", CLIENTS * REQUESTS, began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let after = note(&seen, &served.ready.bgctl.deployment(DEPLOYMENT)?)?;
    assert_eq!(after, before + switches, "each switch was made once");
    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}

#[test]
fn a_repeated_request_is_done_once_and_an_old_generation_changes_nothing() -> Result<()> {
    let served = Served::local()?;
    let path = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let generation = || Ok::<_, anyhow::Error>(served.ready.bgctl.deployment(DEPLOYMENT)?["generation"].as_u64());
    let before = generation()?.context("no generation")?;
    let ask = |headers: &[(&str, &str)], body: &str| {
        let headers = [headers, &[("Content-Type", "application/json")]].concat();
        served.client()?.request("POST", &path, &headers, body.as_bytes())
    };
    let key = [("Idempotency-Key", "one")];
    let first = ask(&key, "{}")?;
    let again = ask(&key, "{}")?;
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!(generation()?, Some(before + 1));
    assert_eq!(ask(&key, "{\"to\": \"blue\"}")?.status, 422, "another request with the same key");
    let refused = [("Idempotency-Key", "two"), ("If-Match", "\"1234\"")];
    assert_eq!([ask(&refused, "{}")?.status, ask(&refused, "{}")?.status], [412; 2], "a refusal is repeated too");
    // All at once.
    let statuses = thread::scope(|scope| {
        let asked: Vec<_> = (0..20).map(|_| scope.spawn(|| ask(&[("Idempotency-Key", "three")], "{}"))).collect();
        asked.into_iter().map(|asked| Ok(asked.join().expect("no panic")?.status)).collect::<Result<Vec<_>>>()
    })?;
    assert!(statuses.contains(&200) && statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
    assert_eq!(generation()?, Some(before + 2));

    for etag in ["\"1\"", "\"4294967295\"", &format!("\"{}\"", before + 1)] {
        for verb in ["switch", "rollback", "confirm", "split", "freeze", "thaw", "drain"] {
            let body = if verb == "split" { "{\"green\": 50}" } else { "{}" };
            let headers = [("If-Match", etag), ("Content-Type", "application/json")];
            let path = format!("/v1/deployments/{DEPLOYMENT}/{verb}");
            let answer = served.client()?.request("POST", &path, &headers, body.as_bytes())?;
            assert_eq!(answer.status, 412, "{verb} {etag}: {}", answer.text());
        }
    }
    assert_eq!(ask(&[], "{\"if_generation\": 1}")?.status, 409, "in the body it is as on the command line");
    assert_eq!(ask(&[("If-Match", "\"1\"")], "{\"if_generation\": 2}")?.status, 400);
    assert_eq!(generation()?, Some(before + 2));
    let status = served.client()?.get(&format!("/v1/deployments/{DEPLOYMENT}"))?;
    let etag = status.header("etag").context("no etag")?.to_owned();
    assert_eq!(ask(&[("If-Match", &etag)], "{}")?.status, 200);
    assert_eq!(ask(&[("If-Match", &etag)], "{}")?.status, 412, "it is used up");
    Ok(())
}
