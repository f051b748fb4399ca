//! Health checks against real servers: each kind sees a backend die, in each of the ways that it can, within its bound, and come back.
//! Meanwhile an apply, and a controller that is killed and started again, forget nothing.

mod all_down;
mod encrypted;
mod grpc;
mod kept;
mod kinds;
mod load;
mod slow_start;

use anyhow::{Context as _, Result, ensure};
use bg_tests::{Backend, BackendHealth, Nginx, Ready, load::Connection};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The interval of the checks. Detection is counted in it.
pub(crate) const INTERVAL: Duration = Duration::from_millis(400);
pub(crate) const TIMEOUT: Duration = Duration::from_millis(250);
pub(crate) const FALL: u32 = 3;
pub(crate) const RISE: u32 = 2;
/// What detection may take beside the checks themselves.
pub(crate) const SLACK: Duration = Duration::from_millis(100);

/// The keys that all checks have.
pub(crate) fn times() -> String {
    format!("interval = \"{INTERVAL:?}\", timeout = \"{TIMEOUT:?}\", rise = {RISE}, fall = {FALL}")
}

/// The longest time from the death of a backend that refuses connections, or answers something else, to its detection.
pub(crate) fn at_once() -> Duration {
    INTERVAL * FALL + SLACK
}

/// The same of one that says nothing.
pub(crate) fn silent() -> Duration {
    at_once() + TIMEOUT
}

/// The longest time until one that is well again is up, after it has gone down so many times in a row.
pub(crate) fn back(times: u32) -> Duration {
    INTERVAL * (RISE << (times - 1)) + TIMEOUT + SLACK
}

pub(crate) fn at(backend: &Backend, port: u16) -> SocketAddr {
    SocketAddr::new(backend.addresses[0], port)
}

/// The backend with this name.
pub(crate) fn named<'a>(ready: &'a Ready, name: &str) -> Result<&'a Backend> {
    ready.lab.backends.iter().find(|backend| backend.name == name).with_context(|| format!("no backend {name}"))
}

pub(crate) fn health(ready: &Ready) -> Result<BackendHealth> {
    BackendHealth::open(ready.lab.sandbox.pin_root())
}

pub(crate) fn nginx(ready: &Ready, backend: &Backend) -> Result<Nginx> {
    Nginx::start(&ready.lab.sandbox, &backend.namespace, &backend.says(), &backend.addresses)
}

/// Waits until the backend is in this state, and says how long that took beside how long it may take. A check that is under way
/// when the backend changes may still see what was before, so the time is counted from `since`.
pub(crate) fn detected(
    health: &BackendHealth,
    what: &str,
    address: SocketAddr,
    to: &str,
    since: Instant,
    bound: Duration,
) -> Result<()> {
    health.wait(address, to, Duration::from_secs(10)).with_context(|| what.to_owned())?;
    let took = since.elapsed();
    println!("{what}: {to} after {} ms, at most {} ms", took.as_millis(), bound.as_millis());
    ensure!(took <= bound, "{what}: {to} only after {took:?}, and not within {bound:?}");
    Ok(())
}

/// Which backends answer new connections of the client to a virtual address.
pub(crate) fn answering(ready: &Ready, vip: SocketAddr, connections: usize) -> Result<Vec<String>> {
    let ask = |_| Ok(Connection::open(&ready.lab.client, vip)?.ask()?);
    let mut names = (0..connections).map(ask).collect::<Result<Vec<_>>>()?;
    names.sort();
    names.dedup();
    Ok(names)
}
