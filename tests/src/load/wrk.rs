//! wrk: keep-alive connections at full speed, with its own counts of failures.

use crate::{command::Process, netns::Namespace};
use anyhow::{Context, Result, bail};
use std::{io::Read, net::SocketAddr, process::Stdio, time::Duration};

/// A running wrk.
#[derive(Debug)]
pub struct Wrk {
    process: Process,
}

/// The final counts of wrk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrkReport {
    /// The number of answered requests.
    pub requests: u64,
    /// The number of failed connections, reads and writes, time-outs, and answers without success.
    pub failures: u64,
}

impl Wrk {
    /// Starts wrk with this many connections.
    pub fn start(namespace: &Namespace, server: SocketAddr, connections: u32) -> Result<Self> {
        let mut command = namespace.command("wrk");
        command.args(["--threads", "1", "--connections", &connections.to_string()]);
        command.args(["--duration", "1h", "--timeout", "5s"]);
        command.arg(format!("http://{server}/")).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Self { process: Process::spawn(&mut command)? })
    }

    /// Stops it and returns its counts. Fails if it has stopped by itself.
    pub fn finish(mut self) -> Result<WrkReport> {
        if let Some(status) = self.process.wait(Duration::ZERO)? {
            bail!("wrk has stopped: {status}");
        }
        // SAFETY: `kill` takes no pointers. The child has not been waited for, so its id is still its own.
        unsafe { libc::kill(self.process.id().cast_signed(), libc::SIGINT) };
        if self.process.wait(Duration::from_secs(30))?.is_none() {
            bail!("wrk does not stop");
        }
        let mut text = String::new();
        self.process.child().stdout.take().context("wrk has no output")?.read_to_string(&mut text)?;
        parse(&text).with_context(|| format!("wrk said: {text}"))
    }
}

fn parse(text: &str) -> Result<WrkReport> {
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests = requests.context("expected a line `N requests in`")?.0.parse()?;
    let numbers = |line: &str| line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
    let bad = text.lines().filter(|line| line.contains("Socket errors:") || line.contains("Non-2xx"));
    Ok(WrkReport { requests, failures: bad.map(numbers).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_each_kind_are_counted() {
        let good = "  252984 requests in 5.10s, 18.34MB read\nRequests/sec:  49615.12\n";
        assert_eq!(parse(good).unwrap(), WrkReport { requests: 252_984, failures: 0 });
        let bad = format!(
            "{good}  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n"
        );
        assert_eq!(parse(&bad).unwrap().failures, 54_321);
        assert!(parse("unable to connect").is_err());
    }
}
