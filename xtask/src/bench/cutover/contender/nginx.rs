//! nginx's stream proxy.

use super::{Arena, Kind, Running, Serving, command, spawn};
use crate::bench::cutover::{arena, server};
use anyhow::Result;
use bg_tests::Process;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where Debian has the stream proxy. Elsewhere it is compiled in.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) struct Nginx {
    dir: PathBuf,
    line: String,
    _process: Process,
}

impl Nginx {
    pub(super) fn start(arena: &Arena, connections: u32, state: Serving) -> Result<Self> {
        arena.own_vip()?;
        let dir = arena.lab.sandbox.dir().join("nginx");
        fs::create_dir_all(&dir)?;
        let load = if Path::new(MODULE).exists() { format!("load_module {MODULE};\n") } else { String::new() };
        // Each connection takes two in its worker, and the workers do not share them evenly.
        let of_worker = 2 * connections;
        let config = format!(
            "{load}daemon off;\nworker_processes auto;\npid {dir}/pid;\n\
             error_log {dir}/error.log;\nevents {{ worker_connections {of_worker}; }}\n\
             stream {{\n  include {dir}/live.conf;\n  server {{ listen {vip} backlog={backlog}; proxy_pass live; }}\n}}\n",
            dir = dir.display(),
            vip = arena::vip(),
            backlog = server::BACKLOG,
        );
        fs::write(dir.join("nginx.conf"), config)?;
        fs::write(dir.join("live.conf"), upstream(state))?;
        let line = format!("nginx -e {0}/error.log -p {0} -c {0}/nginx.conf", dir.display());
        let process = spawn(arena, &line, &dir.join("output.log"))?;
        Ok(Self { dir, line, _process: process })
    }
}

impl Running for Nginx {
    fn change(&mut self, _: Kind, to: Serving) -> Result<Command> {
        fs::write(self.dir.join("live.conf"), upstream(to))?;
        command(&format!("{} -s reload", self.line))
    }
}

fn upstream(state: Serving) -> String {
    let servers = state.addresses().into_iter().map(|address| format!("  server {address}:{};\n", server::PORT));
    format!("upstream live {{\n{}}}\n", servers.collect::<String>())
}
