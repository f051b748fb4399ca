//! The contenders of the comparison. Each is set up on the edge as its manual says, for the same services.

use super::super::{
    machine::is_installed,
    throughput::{SERVICES, attach},
};
use anyhow::{Context, Result, bail, ensure};
use bg_tests::{
    Bgctl, Lab, Process,
    address::{BACKENDS, VIP_V4},
};
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The path of the module with nginx's stream proxy in Debian.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Native,
    Tc,
    Stateful,
    Stateless,
    Forward,
    HaProxy,
    Nginx,
    Ipvs,
}

/// A running contender. Dropping it ends its processes. The rest is removed with the lab.
pub(super) struct Running {
    pub(super) bgctl: Option<Bgctl>,
    pub(super) process: Option<Process>,
}

impl Contender {
    pub(super) const ALL: [Self; 8] = [
        Self::Native,
        Self::Tc,
        Self::Stateful,
        Self::Stateless,
        Self::Forward,
        Self::HaProxy,
        Self::Nginx,
        Self::Ipvs,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "ours, native XDP",
            Self::Tc => "ours, tc",
            Self::Stateful => "nftables, stateful",
            Self::Stateless => "nftables, stateless",
            Self::Forward => "ip_forward alone",
            Self::HaProxy => "HAProxy, TCP mode",
            Self::Nginx => "nginx, stream",
            Self::Ipvs => "IPVS",
        }
    }

    /// A note for the reader.
    pub(super) fn remark(self) -> &'static str {
        match self {
            Self::Native => "`bgctl attach --mode native`; needs finished checksums, as off a wire",
            Self::Tc => "`bgctl attach --mode tc`; default settings",
            Self::Stateful => "`dnat` by a map, with connection tracking",
            Self::Stateless => "`notrack`; rewrites addresses and ports in both directions",
            Self::Forward => "no translation: clients know the backend's address",
            Self::HaProxy => "no UDP; the backend sees the proxy's address",
            Self::Nginx => "the backend sees the proxy's address; UDP under overload, on the other processors",
            Self::Ipvs => "masquerading",
        }
    }

    /// Why it cannot run on this machine.
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Stateful | Self::Stateless if !is_installed("nft") => Some("nft is not installed"),
            Self::HaProxy if !is_installed("haproxy") => Some("haproxy is not installed"),
            Self::Nginx if !Path::new(NGINX_STREAM).exists() => Some("nginx's stream module is not installed"),
            Self::Ipvs if !kernel_has_ipvs() => Some("this kernel has no IPVS"),
            Self::Ipvs if !is_installed("ipvsadm") => Some("the kernel has IPVS, but ipvsadm is not installed"),
            _ => None,
        }
    }

    pub(super) fn is_proxy(self) -> bool {
        matches!(self, Self::HaProxy | Self::Nginx)
    }

    pub(super) fn takes_udp(self) -> bool {
        self != Self::HaProxy
    }

    /// Whether it works with unfinished checksums, as in packets of local senders.
    pub(super) fn takes_unfinished_checksums(self) -> bool {
        self != Self::Native
    }

    /// Whether the kernel tracks the connections that it forwards.
    pub(super) fn is_tracked(self) -> bool {
        self == Self::Stateful
    }

    /// Whether its use of the kernel's connection tracking is fixed. IPVS can be configured either way.
    pub(super) fn tracking_is_known(self) -> bool {
        self != Self::Ipvs
    }

    /// The address to which clients send, for a service with this VIP and backend.
    pub(super) fn target(self, vip: SocketAddr, backend: SocketAddr) -> SocketAddr {
        if self == Self::Forward { backend } else { vip }
    }

    /// Sets it up on the lab's edge.
    pub(super) fn start(self, lab: &Lab, bgctl: &Path) -> Result<Running> {
        let (mut ours, mut process) = (None, None);
        match self {
            Self::Native => ours = Some(attach(lab, bgctl, "native")?),
            Self::Tc => ours = Some(attach(lab, bgctl, "tc")?),
            Self::Stateful => rules(lab, &stateful())?,
            Self::Stateless => rules(lab, &stateless())?,
            Self::Forward => (),
            Self::HaProxy => process = Some(haproxy(lab)?),
            Self::Nginx => process = Some(nginx(lab)?),
            Self::Ipvs => ipvs(lab)?,
        }
        Ok(Running { bgctl: ours, process })
    }
}

/// The services: protocol, VIP and backend.
fn services() -> impl Iterator<Item = (&'static str, SocketAddr, SocketAddr)> {
    let backend = BACKENDS[0].2[0];
    SERVICES.into_iter().map(move |(_, protocol, vip_port, port)| {
        (protocol, SocketAddr::new(VIP_V4, vip_port), SocketAddr::new(backend, port))
    })
}

fn rules(lab: &Lab, rules: &str) -> Result<()> {
    let path = lab.sandbox.dir().join("bench.nft");
    fs::write(&path, rules)?;
    lab.edge.run(&format!("nft -f {}", path.display())).map(drop)
}

fn stateful() -> String {
    let elements = |wanted: &str| {
        let of_protocol = services().filter(|(protocol, ..)| *protocol == wanted);
        let element = |(_, vip, backend): (_, SocketAddr, SocketAddr)| {
            format!("{} . {} : {} . {}", vip.ip(), vip.port(), backend.ip(), backend.port())
        };
        of_protocol.map(element).collect::<Vec<_>>().join(", ")
    };
    let rule = |protocol| format!("    dnat ip to ip daddr . {protocol} dport map {{ {} }}\n", elements(protocol));
    format!(
        "table ip bench {{\n  chain prerouting {{\n    type nat hook prerouting priority dstnat;\n{}{}  }}\n}}\n",
        rule("tcp"),
        rule("udp")
    )
}

fn stateless() -> String {
    let rules = services().map(|(protocol, vip, backend)| {
        format!(
            "    ip daddr {0} {protocol} dport {1} notrack ip daddr set {2} {protocol} dport set {3}\n    \
             ip saddr {2} {protocol} sport {3} notrack ip saddr set {0} {protocol} sport set {1}\n",
            vip.ip(),
            vip.port(),
            backend.ip(),
            backend.port()
        )
    });
    format!(
        "table ip bench {{\n  chain prerouting {{\n    type filter hook prerouting priority raw;\n{}  }}\n}}\n",
        rules.collect::<String>()
    )
}

/// A proxy owns the VIP, and opens a connection to a backend for each connection of a client.
fn own_vip(lab: &Lab) -> Result<()> {
    lab.edge.ip(&format!("address add {VIP_V4}/32 dev lo"))?;
    lab.edge.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    // Its listening ports are not to be taken by connections of its own.
    let ports = services().map(|(_, vip, _)| vip.port().to_string()).collect::<Vec<_>>().join(",");
    lab.edge.sysctl("ipv4/ip_local_reserved_ports", &ports)?;
    lab.edge.sysctl("ipv4/tcp_tw_reuse", "1")
}

fn haproxy(lab: &Lab) -> Result<Process> {
    own_vip(lab)?;
    let mut config = "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
                      timeout server 60s\n"
        .to_owned();
    for (protocol, vip, backend) in services() {
        if protocol == "tcp" {
            config += &format!("listen {}\n  bind {vip}\n  server blue1 {backend}\n", vip.port());
        }
    }
    let path = lab.sandbox.dir().join("haproxy.cfg");
    fs::write(&path, config)?;
    let mut command = lab.edge.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    serve(lab, command)
}

fn nginx(lab: &Lab) -> Result<Process> {
    own_vip(lab)?;
    let dir = lab.sandbox.dir().join("stream");
    fs::create_dir_all(&dir)?;
    let server = |(protocol, vip, backend): (&str, SocketAddr, SocketAddr)| {
        let udp = if protocol == "udp" { " udp" } else { "" };
        format!("  server {{ listen {vip}{udp} reuseport; proxy_pass {backend}; proxy_timeout 60s; }}\n")
    };
    let config = format!(
        "load_module {NGINX_STREAM};\ndaemon off;\nworker_processes auto;\nworker_rlimit_nofile 65536;\npid {dir}/pid;\n\
         error_log {dir}/error.log crit;\nevents {{ worker_connections 16384; }}\nstream {{\n{}}}\n",
        services().map(server).collect::<String>(),
        dir = dir.display()
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = lab.edge.command("nginx");
    command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(&path);
    serve(lab, command)
}

/// Starts a proxy and waits until it serves.
fn serve(lab: &Lab, mut command: Command) -> Result<Process> {
    let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let listens = |(protocol, vip, _): (&str, SocketAddr, SocketAddr)| {
        protocol == "udp" || lab.edge.enter(|| std::net::TcpStream::connect(vip)).is_ok_and(|stream| stream.is_ok())
    };
    let end = Instant::now() + Duration::from_secs(5);
    while !services().all(listens) {
        if let Some(status) = process.wait(Duration::ZERO)? {
            bail!("{:?} ended: {status}", command.get_args().collect::<Vec<_>>());
        }
        ensure!(Instant::now() < end, "the proxy does not serve");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

/// Whether the kernel has IPVS, built in or as a module.
fn kernel_has_ipvs() -> bool {
    let is_there = || Path::new("/proc/net/ip_vs").exists();
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["--quiet", "ip_vs"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    is_there() || modprobe.status().is_ok_and(|status| status.success()) && is_there()
}

fn ipvs(lab: &Lab) -> Result<()> {
    lab.edge.ip(&format!("address add {VIP_V4}/32 dev lo"))?;
    for (protocol, vip, backend) in services() {
        let protocol = if protocol == "udp" { "-u" } else { "-t" };
        lab.edge.run(&format!("ipvsadm -A {protocol} {vip} -s rr")).context("IPVS")?;
        lab.edge.run(&format!("ipvsadm -a {protocol} {vip} -r {backend} -m")).context("IPVS")?;
    }
    Ok(())
}
