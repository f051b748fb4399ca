//! Webhooks of the controller: what they are told, in which order, and that nothing waits for them.

use anyhow::{Context, Result};
use bg_tests::{Controller, Ready, config::DEPLOYMENT, config::NEIGHBOUR};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Less than the controller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(9);

/// A receiver that answers with each of these status codes in turn, and with the last one for ever. Zero is no answer.
struct Receiver {
    told: Arc<Mutex<Vec<Value>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Receiver {
    fn start(ready: &Ready, port: u16, answers: &'static [u16]) -> Result<Self> {
        let listener = ready.lab.edge.enter(|| TcpListener::bind(("127.0.0.1", port)))??;
        listener.set_nonblocking(true)?;
        let (told, stop) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::<AtomicBool>::default());
        let (all, ended) = (told.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut held = Vec::new();
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let answer = answers[number.min(answers.len() - 1)];
                number += 1;
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                if let Some(body) = post(&stream, answer) {
                    all.lock().unwrap().push(body);
                }
                if answer == 0 {
                    held.push(stream);
                }
            }
        });
        Ok(Self { told, stop, thread: Some(thread) })
    }

    /// What was posted, each try.
    fn told(&self) -> Vec<Value> {
        self.told.lock().unwrap().clone()
    }

    fn wait(&self, number: usize) -> Result<Vec<Value>> {
        let end = Instant::now() + Duration::from_secs(30);
        while self.told().len() < number {
            anyhow::ensure!(Instant::now() < end, "only {:#?}", self.told());
            thread::sleep(Duration::from_millis(10));
        }
        Ok(self.told())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn post(stream: &TcpStream, answer: u16) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if answer != 0 {
        let mut stream = stream;
        let close = "Connection: close\r\nContent-Length: 0\r\n\r\n";
        let _ = write!(stream, "HTTP/1.1 {answer} x\r\nLocation: http://127.0.0.1:1/\r\n{close}");
    }
    serde_json::from_slice(&body).ok()
}

fn configured(ready: &Ready, hooks: &[(u16, &str)]) -> Result<String> {
    let config = std::fs::read_to_string(ready.bgctl.config())?;
    let own = config.split("\n[[notify]]").next().unwrap_or_default().to_owned();
    let hooks = hooks
        .iter()
        .map(|(port, events)| format!("\n[[notify]]\nurl = \"http://127.0.0.1:{port}/hook\"\nevents = [{events}]\n"));
    ready.bgctl.write_config(&(own + &hooks.collect::<String>()))
}

fn generations(told: &[Value]) -> Vec<u64> {
    told.iter().filter_map(|event| event["to"]["generation"].as_u64()).collect()
}

#[test]
fn receivers_are_told_in_order_again_until_they_take_it_and_hold_nothing_up() -> Result<()> {
    let ready = Ready::native("")?;
    let failing = Receiver::start(&ready, 7001, &[500, 503, 429, 200])?;
    let refusing = Receiver::start(&ready, 7002, &[410, 302, 204])?;
    let hanging = Receiver::start(&ready, 7003, &[0])?;
    let late = Receiver::start(&ready, 7004, &[200])?;
    let both = "\"switch\", \"revert\"";
    configured(&ready, &[(7001, both), (7002, "\"switch\""), (7003, both)])?;
    let mut controller = Controller::start(&ready.bgctl)?;

    let began = Instant::now();
    ready.bgctl.run(&["switch", DEPLOYMENT, "--reason", "release 7"])?;
    ready.bgctl.run(&["switch", NEIGHBOUR])?;
    ready.bgctl.run(&["rollback", DEPLOYMENT])?;
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    assert!(began.elapsed() < PATIENCE, "no switch waits for a receiver");

    let told = failing.wait(7)?;
    assert!(told[..4].windows(2).all(|pair| pair[0] == pair[1]), "the same is told again: {told:#?}");
    let fresh = &told[3..];
    let seen: Vec<_> = fresh.iter().map(|event| (event["event"].as_str(), event["deployment"].as_str())).collect();
    let (shop, mail) = (Some(DEPLOYMENT), Some(NEIGHBOUR));
    assert_eq!(seen, [(Some("switch"), shop), (Some("switch"), mail), (Some("revert"), shop), (Some("switch"), shop)],);
    assert_eq!(fresh[0]["reason"], "release 7");
    assert_eq!(fresh[0]["who"]["uid"], 0);
    assert_eq!(fresh[0]["from"]["live"], "blue");
    let first = fresh[0]["to"]["generation"].as_u64().context("a generation")?;
    assert_eq!(
        (fresh[2]["to"]["generation"].as_u64(), fresh[3]["to"]["generation"].as_u64()),
        (Some(first + 1), Some(first + 2))
    );

    // What it refuses is not told again, and the rest is.
    let told = refusing.wait(3)?;
    assert_eq!(told.iter().filter(|event| event["event"] == "switch").count(), 3, "{told:#?}");
    assert_eq!(generations(&told).last(), Some(&(first + 2)));
    let told = hanging.wait(1)?;
    assert!(
        generations(&told).iter().all(|generation| *generation == first),
        "it is still at the first one: {told:#?}"
    );

    // A new receiver is told of what comes, and the others keep their places.
    configured(&ready, &[(7001, both), (7004, "\"revert\"")])?;
    controller.reload()?;
    ready.bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "200ms"])?;
    let told = late.wait(1)?;
    assert_eq!((told[0]["event"].as_str(), told[0]["action"].as_str()), (Some("revert"), Some("expired")));
    assert_eq!(failing.wait(9)?.len(), 9);
    assert_eq!(late.told().len(), 1, "it wants reverts only");
    assert_eq!(refusing.told().len(), 3, "it is a receiver no longer");
    // Neither is the one that hangs, although much waits for it. Somebody else may have its port by now.
    drop(hanging);
    let other = Receiver::start(&ready, 7003, &[200])?;
    thread::sleep(Duration::from_secs(2));
    assert_eq!(other.told().len(), 0, "{:#?}", other.told());
    assert_eq!(controller.end(libc::SIGTERM)?.code(), Some(0));
    Ok(())
}
