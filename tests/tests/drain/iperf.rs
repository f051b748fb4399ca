//! iperf3: a TCP stream that goes on until the test ends it.

use anyhow::{Context, Result, bail, ensure};
use bg_tests::{Backend, Lab, Process, tcp_counter};
use std::{
    net::IpAddr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// Serves on a backend.
pub(crate) fn serve(backend: &Backend, port: u16) -> Result<Process> {
    let mut command = backend.namespace.command("iperf3");
    command.args(["--server", "--port", &port.to_string(), "--bind", &backend.addresses[0].to_string()]);
    Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// A stream from the client without an end, at a rate that leaves processors for the rest.
pub(crate) struct Iperf<'a> {
    process: Process,
    lab: &'a Lab,
    port: u16,
}

impl<'a> Iperf<'a> {
    pub(crate) fn start(lab: &'a Lab, server: IpAddr, port: u16) -> Result<Self> {
        let mut command = lab.client.command("iperf3");
        command.args(["--client", &server.to_string(), "--port", &port.to_string()]);
        command.args(["--time", "0", "--bitrate", "100M"]);
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let mut stream = Self { process, lab, port };
        stream.goes_on()?;
        Ok(stream)
    }

    /// Waits until the backend has acknowledged another part of the stream. iperf3 ends if it loses a connection.
    pub(crate) fn goes_on(&mut self) -> Result<()> {
        const PART: u64 = 1_000_000;
        let before = self.acknowledged()?;
        let end = Instant::now() + Duration::from_secs(60);
        while self.acknowledged()? < before + PART {
            if let Some(status) = self.process.wait(Duration::ZERO)? {
                bail!("the stream ended early: {status}");
            }
            ensure!(Instant::now() < end, "the stream stands still");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Octets that the other end of the client's connections has acknowledged.
    fn acknowledged(&self) -> Result<u64> {
        let sockets = self.lab.client.run(&format!("ss -H -t -n -i state established dport = :{}", self.port))?;
        let counts = sockets.split_whitespace().filter_map(|word| word.strip_prefix("bytes_acked:"));
        counts.map(|count| count.parse::<u64>().context("bytes_acked of ss")).sum()
    }
}

/// A short test, which must reach this backend.
pub(crate) fn reaches(lab: &Lab, server: IpAddr, port: u16, backend: &Backend) -> Result<()> {
    let before = tcp_counter(&backend.namespace, "PassiveOpens")?;
    lab.client.run(&format!("iperf3 --client {server} --port {port} --bytes 200K"))?;
    let opened = tcp_counter(&backend.namespace, "PassiveOpens")? - before;
    assert_eq!(opened, 2, "connections of iperf3 that {} has accepted", backend.name);
    Ok(())
}
