//! A backend of the demo, as a separate process, so that it can outlive the demo.

use anyhow::{Result, bail};
use bg_tests::{Backend, HTTP_PORT, Process};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its answer: colour and name.
    says: String,
    /// The addresses at which it serves.
    addresses: Vec<IpAddr>,
}

/// Runs the backend.
pub(crate) fn run(args: &Args) -> Result<()> {
    bg_tests::serve(&args.says, &args.addresses)
}

/// Starts the backend as a process and waits until it serves.
pub(super) fn start(backend: &Backend) -> Result<Process> {
    let mut command = backend.namespace.command(std::env::current_exe()?);
    command.arg("backend").arg(backend.says()).args(backend.addresses.map(|address| address.to_string()));
    // A group and streams of its own: with `--keep` it stays when the demo's terminal is closed.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process::spawn(&mut command)?;
    let end = Instant::now() + Duration::from_secs(5);
    let connect = || TcpStream::connect(SocketAddr::new(backend.addresses[0], HTTP_PORT));
    while backend.namespace.enter(connect)?.is_err() {
        if process.wait(Duration::ZERO)?.is_some() || Instant::now() > end {
            bail!("{} does not serve", backend.name);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}
