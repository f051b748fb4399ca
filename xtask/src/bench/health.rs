//! `bench health`: requests that fail while one of two backends dies under load, with the health checks of `bgctl serve` and with those of HAProxy.
//!
//! Both make the same checks of the same nginxes, over the same network, and get the same load: requests at a fixed rate with a connection each. A backend dies in three ways.

use super::{
    edge::bgctl,
    report::{Cell, Report, Table},
    stats::Summary,
};
use crate::process::say;
use anyhow::{Context, Result, ensure};
use bg_tests::{
    Backend, Controller, Fabric, HTTP_PORT, Lab, Namespace, Process,
    address::{FRONT_V4, VIP_V4},
    output,
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of each contender and each death.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Requests per second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Not the 10,000 checks per second.
    #[arg(long)]
    no_many: bool,
    /// One round; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

/// How often a backend is checked, and how long it may take.
const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_millis(500);
const FALL: u32 = 2;
const RISE: u32 = 2;
/// How long a client waits, for the connection and for the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the load runs before and after the death.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(5);
const HAPROXY: u16 = 7000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Ours,
    /// As the packet path does, it gives a connection to one backend only.
    Haproxy,
    /// It gives a connection that a backend refuses to the other one, as only a proxy can.
    Redispatch,
}

impl Contender {
    const ALL: [Self; 3] = [Self::Ours, Self::Haproxy, Self::Redispatch];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "bgctl serve, mode nat",
            Self::Haproxy => "HAProxy, TCP mode, one try",
            Self::Redispatch => "HAProxy, TCP mode, redispatch",
        }
    }

    const fn target(self) -> SocketAddr {
        match self {
            Self::Ours => SocketAddr::new(VIP_V4, HTTP_PORT),
            Self::Haproxy | Self::Redispatch => SocketAddr::new(FRONT_V4, HAPROXY),
        }
    }
}

/// How a backend dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Killed,
    Gone,
    Broken,
}

impl Death {
    const ALL: [Self; 3] = [Self::Killed, Self::Gone, Self::Broken];

    const fn name(self) -> &'static str {
        match self {
            Self::Killed => "process killed",
            Self::Gone => "host gone: its link is down",
            Self::Broken => "answers 500",
        }
    }
}

#[derive(Default)]
struct Found {
    failed: Vec<f64>,
    /// Seconds from the death to the last failure's beginning.
    last: Vec<f64>,
    sent: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let rounds = if args.quick { 1 } else { args.rounds };
    let mut found: [[Found; 3]; 3] = Default::default();
    for round in 0..rounds as usize {
        for (death, found) in Death::ALL.into_iter().zip(&mut found) {
            for number in 0..Contender::ALL.len() {
                // In turns, and not always the same one first.
                let number = (number + round) % Contender::ALL.len();
                let contender = Contender::ALL[number];
                let [failed, last, sent] = measure(args, contender, death)
                    .with_context(|| format!("{}, {}", contender.name(), death.name()))?;
                say(format_args!(
                    "round {} of {rounds}, {}, {}: {failed} of {sent} failed, the last after {last:.2} s",
                    round + 1,
                    death.name(),
                    contender.name()
                ));
                found[number].failed.push(failed);
                found[number].last.push(last);
                found[number].sent.push(sent);
            }
        }
    }
    let mut tables = vec![deaths(found)];
    if !args.no_many && !args.quick {
        tables.push(many()?);
    }
    Ok(Report {
        part: "health".into(),
        about: format!(
            "Requests that fail while one of two backends (nginx) dies under load: {} requests a second, each over a connection of its own, with {} s of patience. All contenders ask for `/` by HTTP \
             each {} ms, with a time-out of {} ms, fall {FALL} and rise {RISE}. HAProxy runs twice: with one try for a connection, as the packet path has it, and with `option redispatch`, by which a connection that a backend refuses goes to the other one. Each \
             figure is the median of the rounds, with quartiles.",
            args.rate,
            PATIENCE.as_secs(),
            INTERVAL.as_millis(),
            TIMEOUT.as_millis()
        ),
        tables,
        plots: Vec::new(),
    })
}

fn deaths(found: [[Found; 3]; 3]) -> Table {
    let mut rows = Vec::new();
    for (death, found) in Death::ALL.into_iter().zip(found) {
        for (contender, found) in Contender::ALL.into_iter().zip(found) {
            let range = |of: &[f64]| {
                let (least, most) =
                    of.iter().fold((f64::MAX, 0.0_f64), |(low, high), of| (low.min(*of), high.max(*of)));
                format!("{least}..{most}")
            };
            rows.push(vec![
                death.name().into(),
                contender.name().into(),
                Summary::of(found.sent).into(),
                range(&found.failed).into(),
                Summary::of(found.failed).into(),
                Summary::of(found.last).into(),
            ]);
        }
    }
    Table {
        title: "Requests that fail while a backend dies".into(),
        about: String::new(),
        columns: ["one of two backends", "health checks of", "requests", "failed, range", "failed", "last failure, s"]
            .map(Into::into)
            .to_vec(),
        rows,
    }
}

/// Returns how many requests have failed, when the last failure has begun, and how many were sent.
fn measure(args: &Args, contender: Contender, death: Death) -> Result<[f64; 3]> {
    let lab = Lab::wire(Fabric::Switch)?;
    for namespace in [&lab.client, &lab.edge] {
        namespace.sysctl("ipv4/ip_local_port_range", "18000 65000")?;
        namespace.sysctl("ipv4/tcp_tw_reuse", "1")?;
    }
    let blue: Vec<_> = lab.backends.iter().filter(|backend| backend.name.starts_with("blue")).collect();
    let files =
        blue.iter().map(|backend| lab.sandbox.dir().join(format!("broken-{}", backend.name))).collect::<Vec<_>>();
    let _nginxes =
        blue.iter().zip(&files).map(|(backend, file)| nginx(&lab, backend, file)).collect::<Result<Vec<_>>>()?;
    let _contender = match contender {
        Contender::Ours => Running::Ours(serve(&lab, &blue)?),
        Contender::Haproxy | Contender::Redispatch => Running::Haproxy(haproxy(&lab, &blue, contender)?),
    };
    let (started, dead) = (Instant::now(), AtomicU64::new(u64::MAX));
    let total = BEFORE + AFTER;
    let clients = 64;
    let next = AtomicU64::new(0);
    let work = || -> Result<(u64, Vec<Duration>)> {
        lab.client.adopt_thread()?;
        let (mut sent, mut failures) = (0, Vec::new());
        loop {
            let due = Duration::from_secs(1) * u32::try_from(next.fetch_add(1, Ordering::Relaxed))? / args.rate;
            if due > total {
                return Ok((sent, failures));
            }
            thread::sleep(due.saturating_sub(started.elapsed()));
            sent += 1;
            let begun = started.elapsed();
            if ask(contender.target()).is_err() {
                failures.push(begun);
            }
        }
    };
    let dies = || -> Result<()> {
        thread::sleep(BEFORE);
        dead.store(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        match death {
            Death::Killed => signal(&blue[1].namespace),
            Death::Gone => blue[1].namespace.ip("link set eth0 down").map(drop),
            Death::Broken => fs::write(&files[1], "").context("cannot break it"),
        }
    };
    let (sent, failures) = thread::scope(|scope| -> Result<_> {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        dies()?;
        let mut all = (0, Vec::new());
        for client in clients {
            let (sent, failures) = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            all.0 += sent;
            all.1.extend(failures);
        }
        Ok(all)
    })?;
    let dead = Duration::from_micros(dead.load(Ordering::Relaxed));
    let early = failures.iter().filter(|begun| **begun + PATIENCE * 2 < dead).count();
    ensure!(early == 0, "{early} requests failed before the backend died");
    let last = failures.iter().max().map_or(0.0, |last| last.saturating_sub(dead).as_secs_f64());
    Ok([failures.len() as f64, last, sent as f64])
}

/// What is measured. Dropping it ends it.
enum Running {
    Ours(#[expect(dead_code, reason = "a guard")] Controller),
    Haproxy(#[expect(dead_code, reason = "a guard")] Process),
}

/// One request, with a connection of its own.
fn ask(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "another status");
    Ok(())
}

/// Kills all processes of a namespace.
fn signal(namespace: &Namespace) -> Result<()> {
    let processes = bg_tests::run(&format!("ip netns pids {}", namespace.name()))?;
    let processes: Vec<_> = processes.split_whitespace().collect();
    ensure!(!processes.is_empty(), "no process in {}", namespace.name());
    bg_tests::run(&format!("kill -KILL {}", processes.join(" "))).map(drop)
}

/// An nginx that answers 500 once this file exists.
fn nginx(lab: &Lab, backend: &Backend, broken: &Path) -> Result<Process> {
    let dir = lab.sandbox.dir().join(format!("nginx-{}", backend.name));
    fs::create_dir_all(&dir)?;
    let at = SocketAddr::new(backend.addresses[0], HTTP_PORT);
    let file = dir.join("nginx.conf");
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {}/{name};\n", dir.display()));
    fs::write(
        &file,
        format!(
            "daemon off;\nworker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log crit;\nevents {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n{}  server {{\n    listen {at};\n    location / {{\n      if (-f {}) {{ return 500; }}\n      return 200 \"{}\\n\";\n    }}\n  }}\n}}\n",
            temporary.concat(),
            broken.display(),
            backend.name,
            dir = dir.display()
        ),
    )?;
    let mut command = backend.namespace.command("nginx");
    command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(&file);
    let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    until(&backend.namespace, at)?;
    Ok(process)
}

/// Waits until something listens.
fn until(namespace: &Namespace, at: SocketAddr) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while namespace.enter(|| TcpStream::connect(at))?.is_err() {
        ensure!(Instant::now() < end, "nothing listens on {at}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn serve(lab: &Lab, blue: &[&Backend]) -> Result<Controller> {
    let bgctl = lab.bgctl_at(bgctl());
    bgctl.run(&[&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat())?;
    let at = |backend: &&Backend| format!("\"{}\"", SocketAddr::new(backend.addresses[0], HTTP_PORT));
    let backends = blue.iter().map(at).collect::<Vec<_>>().join(", ");
    // A deployment needs a green one, where nothing runs.
    let idle = lab.backends.iter().find(|backend| backend.name.starts_with("green")).context("no green backend")?;
    bgctl.apply(&format!(
        "[deployments.shop]\nhealth = {{ kind = \"http\", interval = \"{}ms\", timeout = \"{}ms\", fall = {FALL}, rise = {RISE} }}\n\
         [[deployments.shop.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [{backends}]\ngreen = [\"{}:{HTTP_PORT}\"]\n",
        INTERVAL.as_millis(),
        TIMEOUT.as_millis(),
        Contender::Ours.target(),
        idle.addresses[0]
    ))?;
    let controller = Controller::start(&bgctl)?;
    let end = Instant::now() + Duration::from_secs(10);
    while bgctl.json(&["status"])?.to_string().matches("\"health\":\"up\"").count() < blue.len() {
        ensure!(Instant::now() < end, "not all backends are up: {}", controller.log()?);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(controller)
}

fn haproxy(lab: &Lab, blue: &[&Backend], contender: Contender) -> Result<Process> {
    let file = lab.sandbox.dir().join("haproxy.cfg");
    let at = contender.target();
    let tries = if contender == Contender::Redispatch { "option redispatch" } else { "retries 0" };
    let (interval, timeout) = (INTERVAL.as_millis(), TIMEOUT.as_millis());
    let mut config = format!(
        "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1m\n  timeout server 1m\n  timeout check {timeout}ms\n  {tries}\n\
         listen shop\n  bind {at}\n  balance roundrobin\n  option httpchk GET /\n  default-server inter {interval}ms fastinter {interval}ms downinter {interval}ms fall {FALL} rise {RISE} check\n"
    );
    for backend in blue {
        config += &format!("  server {} {}\n", backend.name, SocketAddr::new(backend.addresses[0], HTTP_PORT));
    }
    fs::write(&file, config)?;
    let mut command = lab.edge.command("haproxy");
    command.arg("-db").arg("-q").arg("-f").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::spawn(&mut command)?;
    until(&lab.edge, at)?;
    // Its first checks.
    thread::sleep(INTERVAL * 2);
    Ok(process)
}

/// The test with 10,000 checks a second, of which the controller's part is told.
fn many() -> Result<Table> {
    say("10,000 checks a second");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::workspace::root()).env("BG_TEST_FULL", "1").env("BGCTL", bgctl());
    cargo.args(["test", "--quiet", "--package", "bg-tests", "--test", "health", "load::", "--", "--nocapture"]);
    let text = output(&mut cargo)?;
    let line = text.lines().find(|line| line.contains("checks a second")).context("no figures")?;
    let word_before = |what: &str| {
        let (before, _) = line.split_once(what)?;
        before.split_whitespace().last()?.parse::<f64>().ok()
    };
    let number = |what: &str| word_before(what).map_or(Cell::Empty, Cell::Number);
    let late = text.lines().find(|line| line.contains("late")).unwrap_or("nothing");
    Ok(Table {
        title: "Many checks".into(),
        about: "HTTP checks of 10,000 backends each second for 30 s, as the test `health load` makes them.".into(),
        columns: ["checks a second", "CPUs of the controller", "what the log says of late checks"]
            .map(Into::into)
            .to_vec(),
        rows: vec![vec![number(" checks a second"), number(" CPUs"), late.into()]],
    })
}
