//! Many checks at once. With `BG_TEST_FULL`, 10,000 a second, which takes an optimised bgctl and a machine that does nothing else.

use anyhow::{Context as _, Result, ensure};
use bg_tests::{Controller, Fabric, Lab, Stop, Worker};
use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const PORT: u16 = 8080;
/// Backends of a service, in both colours together.
const OF_SERVICE: usize = 100;

fn backend(number: usize) -> SocketAddr {
    SocketAddr::from(([127, 1, (number >> 8) as u8, number as u8], PORT))
}

fn config(services: usize) -> String {
    let mut config =
        "[deployments.many]\nhealth = { kind = \"http\", interval = \"1s\", timeout = \"500ms\" }\n".to_owned();
    for service in 0..services {
        let colour = |half: usize| {
            let first = service * OF_SERVICE + half * OF_SERVICE / 2;
            let addresses = (first..first + OF_SERVICE / 2).map(|number| format!("\"{}\"", backend(number)));
            addresses.collect::<Vec<_>>().join(", ")
        };
        let _ = write!(
            config,
            "[[deployments.many.services]]\nvip = \"203.0.113.10:{}\"\nprotocol = \"tcp\"\nmode = \"local\"\nblue = [{}]\ngreen = [{}]\n",
            1000 + service,
            colour(0),
            colour(1)
        );
    }
    config
}

/// The time of a process on the CPUs so far, in seconds.
fn cpu_time(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").context("no name")?.1.split(' ').collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

#[test]
fn many_checks_begin_in_time_and_are_spread() -> Result<()> {
    let is_full = std::env::var_os("BG_TEST_FULL").is_some();
    let (services, time) = if is_full { (100, Duration::from_secs(30)) } else { (2, Duration::from_secs(4)) };
    let backends = services * OF_SERVICE;
    let lab = Lab::wire(Fabric::Switch)?;
    lab.edge.ip("link set lo up")?;
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    let _server = Worker::spawn(&lab.edge, async move |mut stop: Stop| {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
        let serve = async {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counter = counter.clone();
                tokio::spawn(async move {
                    let mut request = [0; 512];
                    let _ = stream.read(&mut request).await;
                    counter.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                });
            }
        };
        tokio::select! {
            () = serve => {}
            () = stop.wait() => {}
        }
        Ok(())
    })?;
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach", "--mode", "native", "--backends", "20000"], lab.interfaces.as_slice()].concat())?;
    bgctl.apply(&config(services))?;
    let file = bgctl.config().display().to_string();
    let controller = Controller::start_with(&bgctl, &["-v", "-c", &file])?;
    let ready = Instant::now();
    while asked.load(Ordering::Relaxed) < backends as u64 {
        ensure!(ready.elapsed() < Duration::from_secs(10), "{} were asked", asked.load(Ordering::Relaxed));
        thread::sleep(Duration::from_millis(1));
    }

    let (begin, cpu, before) = (Instant::now(), cpu_time(controller.id())?, asked.load(Ordering::Relaxed));
    let (mut most, mut last) = (0, before);
    while begin.elapsed() < time {
        thread::sleep(Duration::from_millis(100));
        let now = asked.load(Ordering::Relaxed);
        (most, last) = (most.max(now - last), now);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let rate = (asked.load(Ordering::Relaxed) - before) as f64 / seconds;
    let busy = (cpu_time(controller.id())? - cpu) / seconds;
    let log = controller.log()?;
    let late: Vec<&str> = log.lines().filter(|line| line.contains("late")).collect();
    println!("{backends} backends: {rate:.0} checks a second, at most {most} in a tenth of a second, {busy:.2} CPUs");
    late.iter().for_each(|line| println!("{line}"));
    ensure!(rate >= backends as f64, "{rate} checks a second");
    ensure!((most as f64) < 0.3 * backends as f64, "{most} checks in a tenth of a second");
    ensure!(!log.contains("checks were up to"), "checks were late");
    ensure!(!log.contains("is down"), "a check has failed: {log}");
    Ok(())
}
