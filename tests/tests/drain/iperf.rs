//! iperf3: a TCP stream with an end that can be checked.

use anyhow::{Context, Result, bail};
use bg_tests::{Backend, Lab, Process, tcp_counter};
use serde_json::Value;
use std::{io::Read, net::IpAddr, process::Stdio, thread, time::Duration};

/// Longer than the switches take, and not by much.
const SECONDS: u64 = 20;

/// Serves on a backend.
pub(crate) fn serve(backend: &Backend, port: u16) -> Result<Process> {
    let mut command = backend.namespace.command("iperf3");
    command.args(["--server", "--port", &port.to_string(), "--bind", &backend.addresses[0].to_string()]);
    Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// A stream from the client, at a rate that leaves processors for the rest.
pub(crate) struct Iperf(Process);

impl Iperf {
    pub(crate) fn start(lab: &Lab, server: IpAddr, port: u16) -> Result<Self> {
        let mut command = lab.client.command("iperf3");
        command.args(["--client", &server.to_string(), "--port", &port.to_string(), "--json"]);
        command.args(["--time", &SECONDS.to_string(), "--bitrate", "100M"]);
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        thread::sleep(Duration::from_millis(300));
        Ok(Self(process))
    }

    pub(crate) fn still_runs(&mut self) -> Result<()> {
        match self.0.wait(Duration::ZERO)? {
            None => Ok(()),
            Some(status) => bail!("the stream ended early: {status}"),
        }
    }

    /// Waits for the stream's end and checks that it never stood still.
    pub(crate) fn finish(mut self) -> Result<()> {
        let mut text = String::new();
        let status = self.0.wait(Duration::from_secs(SECONDS + 5))?.context("iperf3 does not end")?;
        self.0.child().stdout.take().context("iperf3 has no output")?.read_to_string(&mut text)?;
        let report: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 said {text}"))?;
        assert!(status.success() && report["error"].is_null(), "{status}: {}", report["error"]);
        let intervals = report["intervals"].as_array().context("iperf3 reports no intervals")?;
        assert!(intervals.len() as u64 >= SECONDS);
        for interval in intervals.iter().take(SECONDS as usize) {
            assert!(interval["sum"]["bytes"].as_u64() > Some(1_000_000), "the stream stood still: {interval}");
        }
        let bytes = |end: &str| report["end"][end]["bytes"].as_u64().unwrap_or_default();
        assert!(bytes("sum_received") * 100 >= bytes("sum_sent") * 98, "{}", report["end"]);
        Ok(())
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
