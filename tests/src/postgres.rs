//! PostgreSQL: a database on a backend, and psql sessions of the client.

use crate::{
    command::{Process, output},
    netns::Namespace,
    topology::{Backend, Lab},
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// Port of the databases.
pub const POSTGRES: u16 = 5432;

const PATIENCE: Duration = Duration::from_secs(5);
/// PostgreSQL does not run as root.
const AS_POSTGRES: [&str; 4] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];

/// A database server whose `cluster_name` is its colour.
#[derive(Debug)]
pub struct Postgres(#[expect(dead_code, reason = "a guard")] Process);

impl Postgres {
    /// Creates and starts it. Returns when it takes connections.
    pub fn start(lab: &Lab, backend: &Backend) -> Result<Self> {
        let (programs, data) = (programs()?, lab.sandbox.dir().join(format!("postgres-{}", backend.name)));
        fs::create_dir_all(&data)?;
        output(Command::new("chown").arg("postgres:").arg(&data))?;
        let mut initdb = Command::new(AS_POSTGRES[0]);
        initdb.args(&AS_POSTGRES[1..]).arg(programs.join("initdb")).arg("--pgdata").arg(&data);
        output(initdb.args(["--auth=trust", "--username=postgres", "--no-sync", "--no-locale", "--encoding=UTF8"]))?;
        fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;

        let address = backend.addresses[0];
        let mut postgres = backend.namespace.command(AS_POSTGRES[0]);
        postgres.args(&AS_POSTGRES[1..]).arg(programs.join("postgres")).arg("-D").arg(&data);
        for setting in [
            format!("listen_addresses={address}"),
            format!("port={POSTGRES}"),
            format!("cluster_name={}", backend.colour.name()),
            "unix_socket_directories=".to_owned(),
            "fsync=off".to_owned(),
            "track_commit_timestamp=on".to_owned(),
        ] {
            postgres.arg("-c").arg(setting);
        }
        let log = fs::File::create(data.with_extension("log"))?;
        let server = Process::spawn(postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))?;
        let end = Instant::now() + PATIENCE;
        while backend.namespace.enter(|| TcpStream::connect(SocketAddr::new(address, POSTGRES)))?.is_err() {
            if Instant::now() > end {
                bail!("PostgreSQL does not start: {}", fs::read_to_string(data.with_extension("log"))?);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self(server))
    }
}

/// Where PostgreSQL's programs are: Debian keeps them apart by version.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed: `cargo xtask setup`")?;
    let found = versions.flatten().map(|version| version.path().join("bin")).find(|bin| bin.join("initdb").exists());
    found.context("no initdb below /usr/lib/postgresql: `cargo xtask setup` installs it")
}

/// A psql of the client.
#[derive(Debug)]
pub struct Session {
    input: ChildStdin,
    lines: Receiver<String>,
    _process: Process,
}

impl Session {
    /// Opens a session.
    pub fn open(lab: &Lab, server: IpAddr) -> Result<Self> {
        Self::open_in(&lab.client, server)
    }

    /// Opens a session of another machine.
    pub fn open_in(namespace: &Namespace, server: IpAddr) -> Result<Self> {
        let mut psql = namespace.command("psql");
        psql.args([
            "--quiet",
            "--no-align",
            "--tuples-only",
            "--no-psqlrc",
            "--username=postgres",
            "--dbname=postgres",
        ]);
        psql.args(["--set=ON_ERROR_STOP=1", &format!("--host={server}"), &format!("--port={POSTGRES}")]);
        let mut process = Process::spawn(psql.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let input = process.child().stdin.take().context("psql has no input")?;
        let output = process.child().stdout.take().context("psql has no output")?;
        let (sender, lines) = channel();
        // Ends with psql, which ends with the session.
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { input, lines, _process: process })
    }

    /// Runs a statement; what it prints is the answer's line.
    pub fn ask(&mut self, statement: &str) -> Result<String> {
        writeln!(self.input, "{statement};").with_context(|| format!("psql is gone before {statement}"))?;
        self.lines.recv_timeout(PATIENCE).with_context(|| format!("no answer to {statement}"))
    }

    /// Runs a statement that prints nothing.
    pub fn run(&mut self, statement: &str) -> Result<()> {
        let done = self.ask(&format!("{statement}; SELECT 'done'"))?;
        if done != "done" {
            bail!("expected nothing of {statement}, got {done}");
        }
        Ok(())
    }
}
