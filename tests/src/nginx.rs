//! nginx, with its own configuration and processes, as an operator would run it.

use crate::{command::Process, netns::Namespace, sandbox::Sandbox, server::HTTP_PORT};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// A running nginx. Dropping the guard ends it.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
}

impl Nginx {
    /// Serves `says` as the body of every answer on port [`HTTP_PORT`] of the addresses, and returns once it does.
    pub fn start(sandbox: &Sandbox, namespace: &Namespace, says: &str, addresses: &[IpAddr]) -> Result<Self> {
        let dir = sandbox.dir().join(format!("nginx-{}", says.replace(' ', "-")));
        fs::create_dir_all(&dir)?;
        let sockets = addresses.iter().map(|address| SocketAddr::new(*address, HTTP_PORT));
        let listens: String = sockets.clone().map(|socket| format!("    listen {socket};\n")).collect();
        let config = dir.join("nginx.conf");
        fs::write(
            &config,
            format!(
                "daemon off;\nworker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
                 events {{ worker_connections 16384; }}\n\
                 http {{\n  access_log off;\n  default_type text/plain;\n  keepalive_requests 100000000;\n  keepalive_timeout 1h;\n  server {{\n\
                 {listens}    location / {{ return 200 \"{says}\\n\"; }}\n  }}\n\
                 {temporary}}}\n",
                dir = dir.display(),
                temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("  {name}_temp_path {}/{name};\n", dir.display()))
                    .concat(),
            ),
        )?;
        let mut command = namespace.command("nginx");
        command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(&config);
        let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        for socket in sockets {
            let end = Instant::now() + Duration::from_secs(5);
            while namespace.enter(|| TcpStream::connect(socket))?.is_err() {
                if process.wait(Duration::ZERO)?.is_some() || Instant::now() > end {
                    let log = fs::read_to_string(dir.join("error.log")).unwrap_or_default();
                    bail!("nginx does not serve on {socket} in {}: {log}", namespace.name());
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(Self { _process: process })
    }

    /// Whether nginx is installed.
    pub fn is_installed() -> Result<()> {
        let mut command = std::process::Command::new("nginx");
        command.arg("-v").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().map(drop).context("nginx is not installed: `cargo xtask setup` installs it")
    }
}
