//! HAProxy in TCP mode, with a master and workers as Debian's unit runs it.

use super::{Arena, Kind, Running, Serving, command, spawn};
use crate::bench::cutover::{arena, server};
use anyhow::Result;
use bg_common::Colour;
use bg_tests::Process;
use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// The way to change it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum By {
    Api,
    Reload,
}

pub(super) struct Haproxy {
    by: By,
    dir: PathBuf,
    connections: u32,
    /// The backend that is out.
    out: Option<String>,
    process: Process,
}

impl Haproxy {
    pub(super) fn start(arena: &Arena, by: By, connections: u32, state: Serving) -> Result<Self> {
        arena.own_vip()?;
        let dir = arena.lab.sandbox.dir().to_owned();
        fs::write(dir.join("live.map"), format!("live {}\n", state.live.name()))?;
        fs::write(dir.join("haproxy.cfg"), config(&dir, by, connections, state))?;
        let line = format!("haproxy -W -db -f {0}/haproxy.cfg -p {0}/haproxy.pid", dir.display());
        let process = spawn(arena, &line, &dir.join("haproxy.log"))?;
        Ok(Self { by, dir, connections, out: None, process })
    }
}

impl Running for Haproxy {
    fn change(&mut self, kind: Kind, to: Serving) -> Result<Command> {
        let dir = self.dir.display();
        if self.by == By::Reload {
            fs::write(self.dir.join("haproxy.cfg"), config(&self.dir, self.by, self.connections, to))?;
            let mut command = Command::new("sh");
            command.arg("-c");
            command.arg(format!("haproxy -c -q -f {dir}/haproxy.cfg && kill -USR2 {}", self.process.id()));
            return Ok(command);
        }
        let out = to.out.map(|number| format!("{}/s{number}", to.live.name()));
        let line = match (kind, &out, self.out.take()) {
            (Kind::Switches, ..) => format!("set map {dir}/live.map live {}\n", to.live.name()),
            (Kind::Backends, Some(out), _) => format!("set server {out} state drain\n"),
            (Kind::Backends, None, back) => format!("set server {} state ready\n", back.unwrap_or_default()),
        };
        self.out = out;
        let input = self.dir.join("input");
        fs::write(&input, line)?;
        let mut command = command(&format!("socat - UNIX-CONNECT:{dir}/haproxy.sock"))?;
        command.stdin(File::open(input)?);
        Ok(command)
    }
}

fn config(dir: &Path, by: By, connections: u32, state: Serving) -> String {
    // Room for those that end while others begin.
    let maxconn = connections + connections / 8;
    let live = match by {
        By::Api => format!("use_backend %[str(live),map({}/live.map,blue)]", dir.display()),
        By::Reload => format!("default_backend {}", state.live.name()),
    };
    let mut config = format!(
        "global\n  stats socket {}/haproxy.sock level admin\n  maxconn {maxconn}\ndefaults\n  mode tcp\n  maxconn {maxconn}\n  \
         timeout connect 5s\n  timeout client 1m\n  timeout server 1m\nfrontend front\n  bind {}\n  {live}\n",
        dir.display(),
        arena::vip()
    );
    for colour in Colour::ALL {
        let _ = write!(config, "backend {}\n  balance roundrobin\n", colour.name());
        for number in state.numbers(colour) {
            let _ = writeln!(config, "  server s{number} {}:{}", arena::backend(colour, number), server::PORT);
        }
    }
    config
}
