//! Clients that send too much, too slowly, or nonsense.

use crate::setup::Served;
use anyhow::Result;
use bg_tests::{Chance, HttpClient, config::DEPLOYMENT};
use serde_json::json;
use std::{
    thread,
    time::{Duration, Instant},
};

/// More connections than the controller keeps.
const MANY: usize = 300;

fn switch_path() -> String {
    format!("/v1/deployments/{DEPLOYMENT}/switch")
}

#[test]
fn slow_clients_and_large_requests_keep_nobody_from_switching() -> Result<()> {
    let served = Served::local()?;
    // A body that does not come. All else goes on meanwhile.
    let mut slow_body = served.tcp()?;
    let head = format!("POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n", switch_path());
    slow_body.send(format!("{head}Content-Length: 100\r\n\r\n{{").as_bytes())?;
    let began_body = Instant::now();
    let slow_body = thread::spawn(move || slow_body.answer(false).map(|answer| (answer.status, began_body.elapsed())));

    // Headers that do not come, on all connections that there may be.
    let mut loris: Vec<HttpClient> = Vec::new();
    for _ in 0..MANY {
        let mut client = served.tcp()?;
        client.send(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX-")?;
        loris.push(client);
    }
    // Listeners that do not listen.
    let deaf: Vec<_> = (0..8).map(|_| served.events()).collect::<Result<_>>()?;
    for nth in 0..20 {
        for mut client in [served.tcp()?, served.client()?] {
            let began = Instant::now();
            let answer = client.post(&switch_path(), &json!({ "reason": "in between" }))?;
            assert_eq!(answer.status, 200, "{nth}: {}", answer.text());
            assert!(began.elapsed() < Duration::from_secs(2), "{nth}: {:?}", began.elapsed());
        }
        loris.iter_mut().rev().take(20).for_each(|client| drop(client.send(b"a")));
    }
    assert_eq!(served.ready.bgctl.deployment(DEPLOYMENT)?["live"], "blue", "an even number of switches");
    drop(deaf);
    // Each of them is closed in the end.
    let closed = loris.iter_mut().filter_map(|client| client.answer(false).err()).count();
    assert_eq!(closed, MANY, "no answer to half a request");

    let long = "x".repeat(20_000);
    for header in [("X-Long", long.as_str()), ("Authorization", long.as_str())] {
        let answer = served.tcp()?.request("GET", "/v1/status", &[header], b"")?;
        assert_eq!(answer.status, 431);
    }
    let many: Vec<_> = (0..500).map(|_| ("X-Many", "1")).collect();
    assert_eq!(served.tcp()?.request("GET", "/v1/status", &many, b"")?.status, 431);
    // A body that is too long is not even waited for.
    let mut client = served.tcp()?;
    client.send(format!("{head}Content-Length: 1048577\r\n\r\n").as_bytes())?;
    assert_eq!(client.answer(false)?.status, 413);
    let mut client = served.tcp()?;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(17);
    let _ = client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n").as_bytes());
    assert_eq!(client.answer(false)?.status, 413);

    let (status, took) = slow_body.join().expect("no panic")?;
    assert_eq!(status, 408);
    assert!((5..15).contains(&took.as_secs()), "{took:?}");
    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}

#[test]
fn nonsense_is_refused_and_changes_nothing() -> Result<()> {
    let served = Served::local()?;
    let generation = || Ok::<_, anyhow::Error>(served.ready.bgctl.deployment(DEPLOYMENT)?["generation"].clone());
    let before = generation()?;
    let mut chance = Chance::seeded(0xB0D1E5);
    let mut client = served.client()?;
    let json = [("Content-Type", "application/json")];
    let toml = [("Content-Type", "application/toml")];
    let words = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"to\"",
        "\"green\"",
        "\"red\"",
        "null",
        "1e999",
        "-0",
        "\"at\"",
        "\u{0}",
        "\"\\ud800\"",
        "true",
    ];
    for nth in 0..600 {
        let length = 1 + (chance.number() % 24) as usize;
        let text: String = (0..length).map(|_| words[(chance.number() % words.len() as u64) as usize]).collect();
        let bytes: Vec<u8> = (0..length * 4).map(|_| chance.number() as u8).collect();
        let verb = ["switch", "rollback", "split", "confirm", "drain", "freeze"][nth % 6];
        // What happens to be an object with options that there are would be done, so each has one that there is not.
        let closed = format!("{{\"nonsense\": {text}}}");
        for body in [text.as_bytes(), &bytes, closed.as_bytes()] {
            if body.trim_ascii() == b"{}" {
                continue;
            }
            let path = format!("/v1/deployments/{DEPLOYMENT}/{verb}");
            let answer = client.request("POST", &path, &json, body)?;
            assert_eq!(answer.status, 400, "{verb} {}: {}", String::from_utf8_lossy(body), answer.text());
            assert_eq!(answer.json()?["status"], 400);
        }
        if nth.is_multiple_of(4) {
            let path = ["/v1/apply", "/v1/plan", "/v1/check"][nth % 3];
            let answer = client.request("POST", path, &toml, &bytes)?;
            assert_eq!(answer.status, 422, "{}", answer.text());
        }
    }
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/deployments/nothing", 404),
        ("GET", "/v1/deployments/%ff", 400),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/apply", 405),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/history?last=-1", 400),
        ("GET", "/v1/history?since=soon", 400),
        ("GET", "/v1/history?unknown=1", 400),
        ("GET", "/v1/history?deployment=nothing", 404),
        ("GET", "/v1/flows?colour=red", 400),
        ("GET", "/v1/flows?backend=there", 400),
        ("GET", "/v1/flows?deployment=nothing", 404),
    ] {
        let answer = client.request(method, path, &[], b"")?;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{method} {path}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
    }
    for garbage in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut client = served.tcp()?;
        let _ = client.send(garbage);
        let answer = client.answer(false);
        assert!(answer.as_ref().map_or(true, |answer| answer.status == 400), "{garbage:?}: {answer:?}");
    }
    assert_eq!(generation()?, before);
    assert_eq!(served.client()?.get("/healthz")?.status, 200);
    assert!(!served.controller.log()?.contains("panicked"));
    Ok(())
}
