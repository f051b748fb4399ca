//! The programs that labs, tests and the demo use, and their Debian packages.

use crate::process::{as_root, can_be_root, run, say};
use anyhow::{Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A program, its package, and its use.
struct Tool {
    program: &'static str,
    package: &'static str,
    used_for: &'static str,
    demo: bool,
    packaging: bool,
    /// A unit that installing the package would start.
    service: Option<&'static str>,
}

/// The users of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tools {
    /// The demo.
    Demo,
    /// The Debian package.
    Package,
    /// The demo, the package and all tests.
    All,
}

const TOOLS: &[Tool] = &[
    Tool { demo: true, ..tool("ip", "iproute2", "namespaces and interfaces of labs") },
    Tool { demo: true, ..tool("ethtool", "ethtool", "finished checksums on the wires of labs") },
    Tool { demo: true, ..tool("ping", "iputils-ping", "warming up labs") },
    Tool { demo: true, ..tool("curl", "curl", "playing with the demo") },
    tool("wrk", "wrk", "load"),
    tool("iperf3", "iperf3", "a TCP stream across switches"),
    tool("bpftool", "bpftool", "loading the object without bgctl"),
    tool("valgrind", "valgrind", "counting instructions"),
    Tool { service: Some("nginx.service"), ..tool("nginx", "nginx-light", "HTTP backends") },
    tool("nft", "nftables", "what switches are compared with"),
    Tool { service: Some("haproxy.service"), ..tool("haproxy", "haproxy", "what switches are compared with") },
    tool("socat", "socat", "HAProxy's runtime API"),
    tool("openssl", "openssl", "certificates"),
    tool("mandoc", "mandoc", "checking manual pages"),
    // Not a program, but found like one: an absolute path is in every directory.
    tool("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream", "what switches are compared with"),
    tool("tshark", "tshark", "judging packets on wires"),
    tool("tmux", "tmux", "`bgctl top` in a terminal"),
    tool("chromium", "chromium", "the web page in a browser"),
    tool("debootstrap", "debootstrap", "a Debian root to test the package in"),
    Tool { packaging: true, ..tool("dpkg-shlibdeps", "dpkg-dev", "the libraries that the package depends on") },
    Tool { service: Some("postgresql.service"), ..tool("initdb", "postgresql", "a transaction across switches") },
    Tool {
        service: Some("prometheus.service"),
        ..tool("prometheus", "prometheus", "queries of gates, and what scrapes")
    },
    tool("openssl", "openssl", "certificates of the controller and its clients"),
];

const fn tool(program: &'static str, package: &'static str, used_for: &'static str) -> Tool {
    Tool { program, package, used_for, demo: false, packaging: false, service: None }
}

impl Tool {
    fn is_there(&self) -> bool {
        search_path().any(|dir| dir.join(self.program).is_file())
    }
}

/// The search path, with the directories in which Debian keeps programs for root and the programs of PostgreSQL.
fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let postgres = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let more = postgres.map(|version| version.path().join("bin")).chain(["/usr/sbin".into(), "/sbin".into()]);
    std::env::split_paths(&path).collect::<Vec<_>>().into_iter().chain(more)
}

/// Installs what is missing. Services in the packages are neither started nor enabled.
pub(crate) fn install_tools(tools: Tools) -> Result<()> {
    let wanted = TOOLS.iter().filter(|tool| match tools {
        Tools::Demo => tool.demo,
        Tools::Package => tool.packaging,
        Tools::All => true,
    });
    let missing: Vec<_> = wanted.filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        say(match tools {
            Tools::Demo => "all programs that the demo uses are there",
            Tools::Package => "all programs that make the package are there",
            Tools::All => "all programs that tests and the demo use are there",
        });
        return Ok(());
    }
    for tool in &missing {
        say(format_args!("missing: {} (Debian's {}), for {}", tool.program, tool.package, tool.used_for));
    }
    let services: Vec<_> = missing.iter().filter_map(|tool| tool.service).collect();
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    without_starting(&services, || apt_install(&packages))
}

/// Installs Debian packages.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let line = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !search_path().any(|dir| dir.join("apt-get").is_file()) {
        bail!("no apt-get here: install what Debian calls {}, then run this again", packages.join(" "));
    }
    if !can_be_root() {
        bail!("expected root or sudo, to run `{line}`; run that as root, then this again");
    }
    say(&line);
    run(as_root("apt-get").args(["update", "--quiet=2"]))?;
    let mut command = as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet=2"]);
    run(command.arg("--no-install-recommends").args(packages))
}

/// Masks units of systemd while packages are installed, and disables them afterwards.
fn without_starting(services: &[&str], install: impl FnOnce() -> Result<()>) -> Result<()> {
    if services.is_empty() {
        return install();
    }
    if !Path::new("/run/systemd/system").exists() {
        say(format_args!("no systemd here: if installing starts {}, it is yours to stop", services.join(", ")));
        return install();
    }
    let systemctl = |verb: &[&str]| run(as_root("systemctl").args(verb).args(services));
    say(format_args!("{} will be neither started nor enabled: labs run their own", services.join(", ")));
    systemctl(&["mask", "--runtime", "--quiet"])?;
    let installed = install();
    systemctl(&["unmask", "--runtime", "--quiet"])?;
    installed?;
    systemctl(&["disable", "--now", "--quiet"])
}

/// Whether a Debian package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Abbrev}", package]);
    crate::process::output(&mut query).is_ok_and(|status| status.starts_with("ii"))
}
