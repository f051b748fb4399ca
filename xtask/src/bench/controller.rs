//! `bench controller`: what the controller takes while nothing happens, beside HAProxy with as many services.
//!
//! An edge box runs it all day, so its idle cost counts. The backends are addresses of the edge itself, where one listener takes all checks.

use super::{
    edge::{CLIENT_SIDE, Edge, bgctl},
    report::{Cell, Report, Table},
    stats::Summary,
};
use crate::process::say;
use anyhow::{Context, Result, ensure};
use bg_tests::Process;
use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of services, each with a backend of each colour.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    services: Vec<u32>,
    /// Rounds of each contender.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a round.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Few services and short rounds; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

/// Where the checks go, on every address of the edge.
const PORT: u16 = 8443;
/// How long a contender has to settle, before it is idle.
const SETTLE: Duration = Duration::from_secs(3);

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// The controller, with nothing to check.
    Controller,
    /// The controller, with a TCP check of each backend each second.
    Checking,
    /// HAProxy, without checks.
    Haproxy,
    /// HAProxy, with the same checks.
    HaproxyChecking,
}

impl Contender {
    const ALL: [Self; 4] = [Self::Controller, Self::Checking, Self::Haproxy, Self::HaproxyChecking];

    const fn name(self) -> &'static str {
        match self {
            Self::Controller => "bgctl serve",
            Self::Checking => "bgctl serve, a TCP check of each backend each second",
            Self::Haproxy => "HAProxy",
            Self::HaproxyChecking => "HAProxy, the same checks",
        }
    }
}

/// What was measured of one contender. Memory is in MiB, CPU in per cent of one.
#[derive(Default)]
struct Found {
    cpu: Vec<f64>,
    resident: Vec<f64>,
    anonymous: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let (rounds, seconds) = if args.quick { (2, 1) } else { (args.rounds, args.seconds) };
    let mut rows = Vec::new();
    for services in args.services.iter().copied().filter(|services| !args.quick || *services <= 100) {
        let mut found: [Found; 4] = Default::default();
        for _ in 0..rounds {
            for (contender, found) in Contender::ALL.into_iter().zip(&mut found) {
                measure(contender, services, Duration::from_secs(seconds), found)
                    .with_context(|| format!("{} with {services} services", contender.name()))?;
            }
        }
        for (contender, found) in Contender::ALL.into_iter().zip(found) {
            let cpu = Summary::of(found.cpu);
            say(format_args!("{services} services, {}: {cpu} % of a CPU", contender.name()));
            rows.push(vec![
                Cell::Number(services.into()),
                contender.name().into(),
                cpu.into(),
                Summary::of(found.resident).into(),
                Summary::of(found.anonymous).into(),
            ]);
        }
    }
    let size = fs::metadata(bgctl()).context("no bgctl")?.size();
    Ok(Report {
        part: "controller".into(),
        about: "What the controller takes while nothing happens, beside HAProxy with as many services, of one backend of each colour each. The backends are \
                addresses of the edge, where one listener takes all checks; its own time is not counted. CPU time is from /proc/PID/stat, memory from smaps_rollup. Most \
                of the controller's resident memory is the pinned maps, which it has mapped and shares with the kernel: the anonymous part is its own."
            .into(),
        tables: vec![
            Table {
                title: "Idle".into(),
                about: String::new(),
                columns: ["services", "process", "% of a CPU", "resident, MiB", "of it anonymous, MiB"].map(Into::into).to_vec(),
                rows,
            },
            Table {
                title: "Size".into(),
                about: String::new(),
                columns: ["file", "MiB"].map(Into::into).to_vec(),
                rows: vec![vec!["bgctl, with the controller".into(), Cell::Number(size as f64 / f64::from(1 << 20))]],
            },
        ],
        plots: Vec::new(),
    })
}

fn measure(contender: Contender, services: u32, time: Duration, found: &mut Found) -> Result<()> {
    let edge = Edge::create()?;
    edge.namespace.ip("link set lo up")?;
    for network in ["10.16.0.0/12", "10.32.0.0/12"] {
        edge.namespace.ip(&format!("route add local {network} dev lo"))?;
    }
    edge.namespace.enter(|| -> Result<()> {
        let listener = TcpListener::bind(("0.0.0.0", PORT))?;
        thread::spawn(move || listener.incoming().for_each(drop));
        let mut process = start(contender, services, &edge)?;
        thread::sleep(SETTLE);
        let (began, before) = (Instant::now(), cpu_time(process.id())?);
        thread::sleep(time);
        let used = cpu_time(process.id())? - before;
        found.cpu.push(100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64());
        found.resident.push(memory(process.id(), "Rss:")?);
        found.anonymous.push(memory(process.id(), "Anonymous:")?);
        ensure!(process.wait(Duration::ZERO)?.is_none(), "it has ended: {}", log(&edge));
        if contender == Contender::Checking {
            let status: serde_json::Value = serde_json::from_str(&edge.run(&["status", "--json"])?)?;
            let up = status.to_string().matches("\"health\":\"up\"").count();
            ensure!(up == 2 * services as usize, "{up} of {} backends are up: {}", 2 * services, log(&edge));
        }
        Ok(())
    })?
}

fn start(contender: Contender, services: u32, edge: &Edge) -> Result<Process> {
    let mut command = match contender {
        Contender::Controller | Contender::Checking => {
            let file = edge.write_config(&config(services, contender == Contender::Checking, edge))?;
            let room = (4 * services).max(16).to_string();
            edge.run(&[
                "attach",
                CLIENT_SIDE,
                "--mode",
                "native",
                "--services",
                &services.to_string(),
                "--backends",
                &room,
            ])?;
            edge.run(&["apply", "-c", &file])?;
            edge.command(&["serve", "-c", &file])
        }
        Contender::Haproxy | Contender::HaproxyChecking => {
            let path = edge.file("haproxy.cfg");
            fs::write(&path, haproxy(services, contender == Contender::HaproxyChecking))?;
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(path);
            command
        }
    };
    let log = fs::File::create(edge.file("log"))?;
    Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
}

fn log(edge: &Edge) -> String {
    fs::read_to_string(edge.file("log")).unwrap_or_default()
}

/// The backend of a service and a colour.
fn backend(colour: u32, service: u32) -> String {
    format!("10.{}.{}.{}:{PORT}", 16 * (colour + 1), service / 250, service % 250 + 1)
}

fn config(services: u32, checks: bool, edge: &Edge) -> String {
    // What is written to a string is written.
    let mut text = "[deployments.shop]\n".to_owned();
    if checks {
        text += "health = { kind = \"tcp\", interval = \"1s\" }\n";
    }
    for service in 0..services {
        let (blue, green) = (backend(0, service), backend(1, service));
        let _ = write!(
            text,
            "[[deployments.shop.services]]\nvip = \"203.0.113.10:{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]\n",
            10_000 + service
        );
    }
    let _ = write!(text, "[serve]\nsocket = \"{}\"\n", edge.file("api.sock").display());
    text
}

fn haproxy(services: u32, checks: bool) -> String {
    let mut text = "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1m\n  timeout server 1m\n".to_owned();
    let check = if checks { " check inter 1s" } else { "" };
    for service in 0..services {
        let (blue, green) = (backend(0, service), backend(1, service));
        let _ = write!(
            text,
            "listen s{service}\n  bind 127.0.0.1:{}\n  server blue {blue}{check}\n  server green {green}{check} backup\n",
            10_000 + service
        );
    }
    text
}

/// The time that a process has used, of all its threads.
fn cpu_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may contain anything, and ends with the last parenthesis. User and system time are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // The kernel's USER_HZ is 100 on every architecture that this runs on.
    Ok(Duration::from_millis(10 * ticks))
}

/// A line of the summary of a process's memory, in MiB.
fn memory(process: u32, what: &str) -> Result<f64> {
    let summary = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = summary.lines().find_map(|line| line.strip_prefix(what));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()).context("no such line")?.parse()?;
    Ok(kib / 1024.0)
}
