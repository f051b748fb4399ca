//! An nginx that notes every request with its body, and answers with its own name.

use anyhow::{Context, Result, bail};
use bg_tests::{Backend, Process, Sandbox};
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// A request as nginx has got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) number: u64,
    /// The client's address by the PROXY protocol; empty without it.
    pub(crate) client: String,
    pub(crate) body: String,
}

/// A running nginx. Dropping the guard ends it.
pub(crate) struct Recorder {
    process: Process,
    log: PathBuf,
}

impl Recorder {
    /// Serves at this port of both of a backend's addresses.
    pub(crate) fn start(sandbox: &Sandbox, backend: &Backend, port: u16, proxy_protocol: bool) -> Result<Self> {
        let dir = sandbox.dir().join(format!("recorder-{}-{port}", backend.name));
        fs::create_dir_all(&dir)?;
        let log = dir.join("requests.log");
        // One that was killed leaves its socket.
        let _ = fs::remove_file(dir.join("sink.sock"));
        let sockets = backend.addresses.map(|address| SocketAddr::new(address, port));
        let header = if proxy_protocol { " proxy_protocol" } else { "" };
        let listens: String = sockets.iter().map(|socket| format!("    listen {socket}{header};\n")).collect();
        let client = if proxy_protocol { "$proxy_protocol_addr $proxy_protocol_port" } else { "- -" };
        // Only a proxy of nginx reads the body, so there is a server behind it.
        fs::write(
            dir.join("nginx.conf"),
            format!(
                "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
                 events {{ worker_connections 8192; }}\n\
                 http {{\n  default_type text/plain;\n  keepalive_requests 1000000;\n  client_max_body_size 1m;\n\
                 \x20 client_body_buffer_size 128k;\n\
                 \x20 log_format noted escape=none '$http_x_number {client} $request_body';\n\
                 \x20 server {{\n{listens}    location / {{ access_log {log} noted; proxy_pass http://unix:{dir}/sink.sock; }}\n  }}\n\
                 \x20 server {{ listen unix:{dir}/sink.sock; access_log off; return 200 \"{says}\\n\"; }}\n{temporary}}}\n",
                dir = dir.display(),
                log = log.display(),
                says = backend.says(),
                temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("  {name}_temp_path {}/{name};\n", dir.display()))
                    .concat(),
            ),
        )?;
        let mut command = backend.namespace.command("nginx");
        command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
        let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let end = Instant::now() + Duration::from_secs(5);
        for socket in sockets {
            while backend.namespace.enter(|| TcpStream::connect(socket))?.is_err() {
                if process.wait(Duration::ZERO)?.is_some() || Instant::now() > end {
                    let said = fs::read_to_string(dir.join("error.log")).unwrap_or_default();
                    bail!("nginx does not serve at {socket}: {said}");
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(Self { process, log })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        // SAFETY: `kill` takes no pointers. The child has not been waited for, so its id is still its own.
        match unsafe { libc::kill(self.process.id().cast_signed(), signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("cannot signal nginx"),
        }
    }

    /// What it has noted so far.
    pub(crate) fn noted(&self) -> Result<Vec<Noted>> {
        let text = fs::read_to_string(&self.log)?;
        let noted = text.lines().map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().with_context(|| format!("a short line: {line:?}"));
            let number = word()?.parse().with_context(|| format!("no number: {line:?}"))?;
            let (address, port) = (word()?, word()?);
            let client = if address == "-" { String::new() } else { format!("{address} {port}") };
            Ok(Noted { number, client, body: word()?.to_owned() })
        });
        noted.collect()
    }
}

/// What all of these have noted, by number: each request once.
pub(crate) fn all(recorders: &[&Recorder]) -> Result<BTreeMap<u64, Noted>> {
    let mut all = BTreeMap::new();
    for recorder in recorders {
        for noted in recorder.noted()? {
            if let Some(twice) = all.insert(noted.number, noted) {
                bail!("request {} came twice", twice.number);
            }
        }
    }
    Ok(all)
}
