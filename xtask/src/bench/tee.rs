//! `bench tee`: how long a request takes through a service in mode `tee`, beside HAProxy as a TCP proxy to the same backend on the same edge, and without any proxy.
//!
//! All ways lead to one nginx, in turns. The other colour has an nginx too, which is stopped and killed at the end of each round.

use super::{
    edge::bgctl,
    report::{Cell, Report, Table},
    stats::Summary,
};
use crate::process::say;
use anyhow::{Context, Result, ensure};
use bg_tests::{
    Bgctl, Controller, Fabric, HTTP_PORT, Lab, Namespace, Nginx, Process,
    address::{FRONT_V4, VIP_V4},
    load::Paced,
};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds. Each measures every way.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Seconds of a load.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Requests per second over open connections.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Requests per second over new connections, one for each request.
    #[arg(long, default_value_t = 500)]
    new: u32,
    /// Only ways whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Two short rounds, whose figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

const HAPROXY: u16 = 7000;

/// How a request gets to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Haproxy,
    Tee,
    /// The idle colour's server is stopped: it accepts connections, and answers nothing.
    Stopped,
    /// It is killed: it refuses connections.
    Killed,
}

impl Way {
    const ALL: [Self; 5] = [Self::Direct, Self::Haproxy, Self::Tee, Self::Stopped, Self::Killed];
    /// Those that are measured in turns. The others follow, since they change the idle colour.
    const EQUAL: usize = 3;

    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Haproxy => "HAProxy, TCP mode",
            Self::Tee => "tee",
            Self::Stopped => "tee, idle stopped",
            Self::Killed => "tee, idle killed",
        }
    }
}

/// Microseconds of one load.
#[derive(Clone, Copy)]
struct Times {
    p50: f64,
    p99: f64,
}

/// All rounds of a way: over open connections, and over new ones.
type Found = [Vec<Times>; 2];

pub(crate) fn run(args: &Args) -> Result<Report> {
    let mut stage = Stage::create()?;
    let (rounds, time) = match args.quick {
        true => (2, Duration::from_millis(500)),
        false => (args.rounds, Duration::from_secs(args.seconds)),
    };
    let wants = |way: Way| args.only.as_ref().is_none_or(|only| way.name().contains(only));
    let mut found: [Found; Way::ALL.len()] = Default::default();
    for round in 0..rounds as usize {
        let equal = (0..Way::EQUAL).map(|number| Way::ALL[(number + round) % Way::EQUAL]);
        for way in equal.chain([Way::Stopped, Way::Killed]).filter(|way| wants(*way)) {
            stage.prepare(way)?;
            for (kind, found) in found[way as usize].iter_mut().enumerate() {
                let times = stage.measure(args, way, kind == 0, time).with_context(|| way.name())?;
                say(format_args!(
                    "round {} of {rounds}, {}, {}: p50 {:.0} µs, p99 {:.0} µs",
                    round + 1,
                    KINDS[kind],
                    way.name(),
                    times.p50,
                    times.p99
                ));
                found.push(times);
            }
        }
    }
    Ok(report(args, &found))
}

const KINDS: [&str; 2] = ["open connections", "new connections"];

fn report(args: &Args, found: &[Found; Way::ALL.len()]) -> Report {
    let mut rows = Vec::new();
    for (kind, name) in KINDS.into_iter().enumerate() {
        let beside = &found[Way::Haproxy as usize][kind];
        for way in Way::ALL {
            let times = &found[way as usize][kind];
            if times.is_empty() {
                continue;
            }
            let of = |what: fn(&Times) -> f64| Cell::from(Summary::of(times.iter().map(what).collect()));
            // Of the same round, so that what else the machine did counts less.
            let ratios: Vec<_> = times.iter().zip(beside).map(|(own, other)| own.p99 / other.p99).collect();
            let ratio = if ratios.is_empty() { Cell::Empty } else { Summary::of(ratios).into() };
            rows.push(vec![name.into(), way.name().into(), of(|times| times.p50), of(|times| times.p99), ratio]);
        }
    }
    Report {
        part: "tee".into(),
        about: format!(
            "How long a GET takes, from a client in one network namespace to an nginx in another, through an edge in a third: {} requests a second over 32 open connections, or {} a \
             second with a connection each, whose opening counts. Blue is live. A time counts from when the request was due. Each figure is the median of the rounds, with quartiles; \
             the last column compares the p99 with HAProxy's of the same round.",
            args.rate, args.new
        ),
        tables: vec![Table {
            title: "Requests through a teed service".into(),
            about: String::new(),
            columns: ["requests over", "way", "p50, µs", "p99, µs", "p99 by HAProxy's"].map(Into::into).to_vec(),
            rows,
        }],
        plots: Vec::new(),
    }
}

/// The network, with everything running.
struct Stage {
    idle: Option<Nginx>,
    _live: Nginx,
    _haproxy: Process,
    _controller: Controller,
    _bgctl: Bgctl,
    lab: Lab,
}

impl Stage {
    fn create() -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        for namespace in [&lab.client, &lab.edge] {
            // For thousands of connections.
            namespace.sysctl("ipv4/ip_local_port_range", "18000 65000")?;
            namespace.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        let live = nginx(&lab, "blue1")?;
        let idle = Some(nginx(&lab, "green1")?);
        let bgctl = lab.bgctl_at(bgctl());
        bgctl.run(&[&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat())?;
        bgctl.apply(&format!(
            "[[deployments.shop.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"tee\"\nblue = [\"{}\"]\ngreen = [\"{}\"]\n",
            target(&lab, Way::Tee),
            at(&lab, "blue1"),
            at(&lab, "green1")
        ))?;
        let controller = Controller::start(&bgctl)?;
        let haproxy = haproxy(&lab)?;
        for way in &Way::ALL[..Way::EQUAL] {
            let end = Instant::now() + Duration::from_secs(10);
            while lab.client.run(&format!("curl -s -S -f -m 2 http://{}/", target(&lab, *way))).is_err() {
                ensure!(Instant::now() < end, "{} does not answer: {}", way.name(), controller.log()?);
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(Self { idle, _live: live, _haproxy: haproxy, _controller: controller, _bgctl: bgctl, lab })
    }

    /// Brings the idle colour into the state that the way asks for.
    fn prepare(&mut self, way: Way) -> Result<()> {
        let green = self.namespace("green1")?;
        match way {
            Way::Stopped => signal(green, "STOP"),
            Way::Killed => {
                signal(green, "KILL")?;
                self.idle = None;
                Ok(())
            }
            _ if self.idle.is_none() => {
                self.idle = Some(nginx(&self.lab, "green1")?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn namespace(&self, backend: &str) -> Result<&Namespace> {
        let found = self.lab.backends.iter().find(|found| found.name == backend);
        Ok(&found.context("no such backend")?.namespace)
    }

    fn measure(&self, args: &Args, way: Way, stays: bool, time: Duration) -> Result<Times> {
        let load = match stays {
            true => Paced { clients: 4, connections: 8, rate: args.rate },
            false => Paced { clients: 4, connections: 0, rate: args.new },
        };
        let mut times = load.run(&self.lab.client, target(&self.lab, way), time)?;
        ensure!(!times.is_empty(), "no answers");
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
        Ok(Times { p50: at(0.5), p99: at(0.99) })
    }
}

fn at(lab: &Lab, backend: &str) -> SocketAddr {
    let found = lab.backends.iter().find(|found| found.name == backend);
    SocketAddr::new(found.map_or(VIP_V4, |backend| backend.addresses[0]), HTTP_PORT)
}

/// Where requests are sent.
fn target(lab: &Lab, way: Way) -> SocketAddr {
    match way {
        Way::Direct => at(lab, "blue1"),
        Way::Haproxy => SocketAddr::new(FRONT_V4, HAPROXY),
        Way::Tee | Way::Stopped | Way::Killed => SocketAddr::new(VIP_V4, HTTP_PORT),
    }
}

fn nginx(lab: &Lab, backend: &str) -> Result<Nginx> {
    let backend = lab.backends.iter().find(|found| found.name == backend).context("no such backend")?;
    Nginx::start(&lab.sandbox, &backend.namespace, &backend.says(), &backend.addresses)
}

/// Signals all processes of a namespace: its nginx and the worker.
fn signal(namespace: &Namespace, signal: &str) -> Result<()> {
    let processes = bg_tests::run(&format!("ip netns pids {}", namespace.name()))?;
    let processes: Vec<_> = processes.split_whitespace().collect();
    ensure!(!processes.is_empty(), "no process in {}", namespace.name());
    bg_tests::run(&format!("kill -{signal} {}", processes.join(" "))).map(drop)
}

fn haproxy(lab: &Lab) -> Result<Process> {
    let file = lab.sandbox.dir().join("haproxy.cfg");
    let config = format!(
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 3s\n  timeout client 1h\n  timeout server 1h\nlisten shop\n  bind {}\n  server blue {}\n",
        target(lab, Way::Haproxy),
        at(lab, "blue1")
    );
    fs::write(&file, config)?;
    let mut command = lab.edge.command("haproxy");
    command.arg("-db").arg("-q").arg("-f").arg(file).stdin(Stdio::null()).stdout(Stdio::null());
    let process = Process::spawn(&mut command)?;
    let end = Instant::now() + Duration::from_secs(5);
    while lab.edge.enter(|| TcpStream::connect(target(lab, Way::Haproxy)))?.is_err() {
        ensure!(Instant::now() < end, "HAProxy does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}
