//! The contenders: bgctl and its alternatives, all on one edge, each with its own VIP.

use super::super::edge::{self, DEPLOYMENT, timed};
use super::probe;
use anyhow::{Context, Result, bail, ensure};
use bg_common::Colour;
use bg_tests::{Fabric, HTTP_PORT, Lab, Process, Server, address};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The port of every VIP.
const PORT: u16 = 80;
/// The time that a proxy may take to start serving.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lab, with everything set up in it.
pub(super) struct Arena {
    /// The contenders, in the order of the table.
    pub(super) contenders: Vec<Contender>,
    _processes: Vec<Process>,
    _servers: Vec<Server>,
    /// This is the last field, so that it is removed after what runs in it.
    pub(super) lab: Lab,
}

/// A contender.
pub(super) struct Contender {
    pub(super) name: &'static str,
    /// The way to switch it.
    pub(super) command: &'static str,
    pub(super) vip: SocketAddr,
    pub(super) live: Colour,
    how: How,
}

enum How {
    /// A command for each colour, blue first. It runs in the edge's namespace.
    Commands([Vec<String>; 2]),
    /// One command, and for each colour a file that is its input.
    Inputs { command: Vec<String>, files: [PathBuf; 2] },
    /// A file that is replaced before the command is run, and its content for each colour.
    FileThenCommand { file: PathBuf, content: [String; 2], command: Vec<String> },
}

fn vip(last: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(203, 0, 113, last), PORT))
}

impl Arena {
    pub(super) fn build() -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        // Connections come from addresses by the thousand, so that no five-tuple comes twice.
        lab.client.ip(&format!("route add local {} dev lo", probe::CLIENTS))?;
        lab.edge.ip(&format!("route add {} via {}", probe::CLIENTS, address::CLIENT_V4))?;
        lab.edge.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        let servers = lab.servers()?;
        let mut processes = Vec::new();
        let contenders =
            vec![ours(&lab)?, nftables(&lab)?, haproxy(&lab, &mut processes)?, nginx(&lab, &mut processes)?];
        let arena = Self { contenders, _processes: processes, _servers: servers, lab };
        for contender in &arena.contenders {
            arena.prove(contender)?;
        }
        Ok(arena)
    }

    /// Checks that a connection arrives at the live colour's backend.
    fn prove(&self, contender: &Contender) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match probe::ask(&self.lab.client, contender.vip) {
                Ok(colour) if colour == contender.live => return Ok(()),
                Ok(colour) => bail!("{}: a connection arrived at {colour:?}, expected blue", contender.name),
                Err(error) if Instant::now() > end => return Err(error.context(contender.name)),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Contender {
    /// The command that makes a colour live. It must be started from a thread in the edge's namespace. The files that it
    /// needs are written.
    pub(super) fn prepare(&self, colour: Colour) -> Result<Command> {
        let mut input = None;
        let words = match &self.how {
            How::Commands(commands) => &commands[colour as usize],
            How::Inputs { command, files } => {
                input = Some(fs::File::open(&files[colour as usize])?);
                command
            }
            How::FileThenCommand { file, content, command } => {
                fs::write(file, &content[colour as usize])?;
                command
            }
        };
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(input) = input {
            command.stdin(input);
        }
        Ok(command)
    }
}

/// The first backend of a colour.
fn backend(lab: &Lab, colour: Colour) -> Result<IpAddr> {
    let of_colour = lab.backends.iter().find(|backend| backend.colour == colour);
    Ok(of_colour.context("no backend")?.addresses[0])
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn by_colour<T>(make: impl Fn(Colour) -> Result<T>) -> Result<[T; 2]> {
    Ok([make(Colour::Blue)?, make(Colour::Green)?])
}

fn ours(lab: &Lab) -> Result<Contender> {
    let vip = vip(10);
    let bgctl = lab.bgctl_at(edge::bgctl());
    bgctl.run(&[&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat())?;
    let [blue, green] = by_colour(|colour| Ok(SocketAddr::new(backend(lab, colour)?, HTTP_PORT)))?;
    bgctl.apply(&format!(
        "[deployments.{DEPLOYMENT}]\n[[deployments.{DEPLOYMENT}.services]]\nvip = \"{vip}\"\nprotocol = \"tcp\"\n\
         mode = \"nat\"\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]\n"
    ))?;
    let commands = by_colour(|colour| {
        let (program, pins, state) =
            (edge::bgctl(), lab.sandbox.pin_root().display().to_string(), lab.sandbox.state_dir());
        Ok(words(&format!(
            "{} --pin-root {pins} --state-dir {} switch {DEPLOYMENT} {}",
            program.display(),
            state.display(),
            colour.name()
        )))
    })?;
    Ok(Contender {
        name: "ours, native XDP",
        command: "bgctl switch shop COLOUR",
        vip,
        live: Colour::Blue,
        how: How::Commands(commands),
    })
}

fn nftables(lab: &Lab) -> Result<Contender> {
    let vip = vip(11);
    let dir = lab.sandbox.dir();
    let rules = dir.join("rules.nft");
    let blue = backend(lab, Colour::Blue)?;
    fs::write(
        &rules,
        format!(
            "table ip bench {{\n  map live {{\n    type inet_service : ipv4_addr . inet_service\n    \
             elements = {{ {PORT} : {blue} . {HTTP_PORT} }}\n  }}\n  chain prerouting {{\n    \
             type nat hook prerouting priority dstnat\n    ip daddr {} dnat ip to tcp dport map @live\n  }}\n}}\n",
            vip.ip()
        ),
    )?;
    lab.edge.run(&format!("nft -f {}", rules.display()))?;
    let commands = by_colour(|colour| {
        let file = dir.join(format!("{}.nft", colour.name()));
        let backend = backend(lab, colour)?;
        let replace = format!(
            "delete element ip bench live {{ {PORT} }}\nadd element ip bench live {{ {PORT} : {backend} . {HTTP_PORT} }}\n"
        );
        fs::write(&file, replace)?;
        Ok(words(&format!("nft -f {}", file.display())))
    })?;
    Ok(Contender {
        name: "nftables, stateful DNAT",
        command: "nft -f FILE, which replaces a map's element in one transaction",
        vip,
        live: Colour::Blue,
        how: How::Commands(commands),
    })
}

fn haproxy(lab: &Lab, processes: &mut Vec<Process>) -> Result<Contender> {
    let vip = vip(12);
    lab.edge.ip(&format!("address add {}/32 dev lo", vip.ip()))?;
    let dir = lab.sandbox.dir();
    let (config, map, socket) = (dir.join("haproxy.cfg"), dir.join("live.map"), dir.join("haproxy.sock"));
    fs::write(&map, "live blue\n")?;
    let mut text = format!(
        "global\n  stats socket {} level admin\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
         timeout client 30s\n  timeout server 30s\nfrontend front\n  bind {vip}\n  \
         use_backend %[str(live),map({},blue)]\n",
        socket.display(),
        map.display()
    );
    for colour in Colour::ALL {
        text += &format!(
            "backend {}\n  server {0}1 {}\n",
            colour.name(),
            SocketAddr::new(backend(lab, colour)?, HTTP_PORT)
        );
    }
    fs::write(&config, text)?;
    processes.push(start(lab, &format!("haproxy -db -f {}", config.display()), &dir.join("haproxy.log"))?);
    let files = by_colour(|colour| {
        let file = dir.join(format!("{}.haproxy", colour.name()));
        fs::write(&file, format!("set map {} live {}\n", map.display(), colour.name()))?;
        Ok(file)
    })?;
    let command = words(&format!("socat - UNIX-CONNECT:{}", socket.display()));
    Ok(Contender {
        name: "HAProxy, TCP mode",
        command: "socat, which writes `set map` to the runtime API's socket",
        vip,
        live: Colour::Blue,
        how: How::Inputs { command, files },
    })
}

fn nginx(lab: &Lab, processes: &mut Vec<Process>) -> Result<Contender> {
    let vip = vip(13);
    lab.edge.ip(&format!("address add {}/32 dev lo", vip.ip()))?;
    let dir = lab.sandbox.dir().join("nginx");
    fs::create_dir_all(&dir)?;
    let (config, live) = (dir.join("nginx.conf"), dir.join("live.conf"));
    let modules = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    // Where the module is compiled in, there is nothing to load.
    let load = if modules.exists() { format!("load_module {};\n", modules.display()) } else { String::new() };
    fs::write(
        &config,
        format!(
            "{load}daemon off;\nworker_processes auto;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             stream {{\n  include {live};\n  server {{ listen {vip}; proxy_pass live; }}\n}}\n",
            dir = dir.display(),
            live = live.display()
        ),
    )?;
    let content = by_colour(|colour| {
        Ok(format!("upstream live {{ server {}; }}\n", SocketAddr::new(backend(lab, colour)?, HTTP_PORT)))
    })?;
    fs::write(&live, &content[0])?;
    let line = format!("nginx -e {0}/error.log -p {0} -c {1}", dir.display(), config.display());
    processes.push(start(lab, &line, &dir.join("output.log"))?);
    Ok(Contender {
        name: "nginx, stream",
        command: "nginx -s reload, with the upstream's file replaced before",
        vip,
        live: Colour::Blue,
        how: How::FileThenCommand { file: live, content, command: words(&format!("{line} -s reload")) },
    })
}

/// Starts a proxy on the edge.
fn start(lab: &Lab, line: &str, log: &Path) -> Result<Process> {
    let mut parts = line.split_whitespace();
    let mut command = lab.edge.command(parts.next().context("an empty command")?);
    let output = fs::File::create(log)?;
    command.args(parts).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut process = Process::spawn(&mut command)?;
    // What refuses its configuration does so at once.
    if let Some(status) = process.wait(Duration::from_millis(300))? {
        bail!("`{line}`: {status}: {}", fs::read_to_string(log).unwrap_or_default().trim());
    }
    Ok(process)
}

/// Runs a prepared command. A failure is an error.
pub(super) fn issue(mut command: Command) -> Result<Duration> {
    let took = timed(&mut command)?;
    ensure!(took < PATIENCE, "the command took {took:?}");
    Ok(took)
}
