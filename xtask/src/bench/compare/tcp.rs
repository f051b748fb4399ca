//! TCP loads, and the processor time that they take.

use anyhow::{Context, Result, bail, ensure};
use bg_tests::{Namespace, Process, load::Paced, output};
use std::{
    fs,
    net::SocketAddr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// The body of one answer.
pub(super) fn answer(client: &Namespace, server: SocketAddr) -> Result<String> {
    client.run(&format!("curl --silent --show-error --fail --max-time 5 http://{server}/"))
}

/// Connections per second. Each is opened, sends one request, and is closed.
pub(super) fn connections(client: &Namespace, server: SocketAddr, seconds: u32) -> Result<f64> {
    let mut command = client.command("wrk");
    command.args(["--threads", "1", "--connections", "64", "--timeout", "5s", "--header", "Connection: close"]);
    command.args(["--duration", &format!("{seconds}s")]).arg(format!("http://{server}/"));
    rate(&output(command.stdin(Stdio::null()))?)
}

/// Requests per second, as wrk reports them. None may have failed.
fn rate(text: &str) -> Result<f64> {
    if text.contains("Socket errors:") || text.contains("Non-2xx") {
        bail!("expected no failures, wrk said: {text}");
    }
    let line = text.lines().find_map(|line| line.trim().split_once(" requests in "));
    let (requests, time) = line.with_context(|| format!("expected a line `N requests in`, wrk said: {text}"))?;
    let time = time.split_once("s,").context("expected a time in seconds")?.0;
    Ok(requests.parse::<f64>()? / time.parse::<f64>()?)
}

/// A server of iperf3, which runs as long as its guard exists.
pub(super) fn stream_server(backends: &Namespace, port: u16) -> Result<Process> {
    let mut command = backends.command("iperf3");
    command.args(["--server", "--port", &port.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = Process::spawn(command.stderr(Stdio::null()))?;
    let end = Instant::now() + Duration::from_secs(5);
    // Asking it directly would be a test to it, which it would fail loudly.
    let listens = || backends.run(&format!("ss -Hltn sport = :{port}")).is_ok_and(|text| text.contains("LISTEN"));
    while !listens() {
        ensure!(process.wait(Duration::ZERO)?.is_none() && Instant::now() < end, "iperf3 does not serve");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

/// The Gbit/s that one connection receives.
pub(super) fn stream(client: &Namespace, server: SocketAddr, seconds: u32) -> Result<f64> {
    let text = client.run(&format!(
        "iperf3 --client {} --port {} --time {seconds} --json --connect-timeout 5000",
        server.ip(),
        server.port()
    ))?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let rate = rate.with_context(|| format!("iperf3 said: {}", report["error"]))?;
    ensure!(rate > 0.0, "iperf3 received nothing");
    Ok(rate / 1e9)
}

/// Answers under a moderate load.
pub(super) struct Answers {
    /// Microseconds.
    pub(super) p50: f64,
    /// Microseconds.
    pub(super) p99: f64,
    /// Microseconds of all processors of the machine per request.
    pub(super) processor: f64,
}

/// Requests per second of the moderate load.
pub(super) const RATE: u32 = 4000;

/// Sends requests over kept connections at [`RATE`].
pub(super) fn answers(client: &Namespace, server: SocketAddr, seconds: u32) -> Result<Answers> {
    let load = Paced { clients: 4, connections: 16, rate: RATE };
    let (start, idle) = (Instant::now(), idle()?);
    let mut latencies = load.run(client, server, Duration::from_secs(seconds.into()))?;
    let (elapsed, after) = (start.elapsed(), self::idle()?);
    ensure!(!latencies.is_empty(), "no answers");
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    let all = elapsed * u32::try_from(after.processors)?;
    let worked = all.saturating_sub(after.time.saturating_sub(idle.time));
    let processor = worked.as_nanos() as f64 / 1000.0 / latencies.len() as f64;
    Ok(Answers { p50: at(0.5), p99: at(0.99), processor })
}

struct Idle {
    processors: usize,
    time: Duration,
}

/// How long the machine's processors have been idle or taken by the hypervisor.
fn idle() -> Result<Idle> {
    let text = fs::read_to_string("/proc/stat")?;
    let total = text.lines().next().context("an empty /proc/stat")?;
    let columns: Vec<u64> = total.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal: hundredths of a second (proc(5)).
    let ticks = [3, 4, 7].into_iter().filter_map(|column| columns.get(column)).sum::<u64>();
    let is_processor = |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| !rest.starts_with(' '));
    let processors = text.lines().filter(is_processor).count();
    Ok(Idle { processors, time: Duration::from_millis(10 * ticks) })
}

/// The processor time of a process and its children.
pub(super) fn worked(process: u32) -> Result<Duration> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name, in parentheses, may hold anything; behind it are state and parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        if id == process || parent == Some(process) {
            let text = fs::read_to_string(entry.path().join("schedstat"))?;
            sum += text.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(sum))
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn a_rate_is_of_requests_that_were_answered() {
        let good = "  252984 requests in 2.50s, 18.34MB read\nRequests/sec: 101193.60\n";
        assert_eq!(rate(good).unwrap(), 252_984.0 / 2.5);
        assert!(rate(&format!("{good}  Socket errors: connect 0, read 1, write 0, timeout 0\n")).is_err());
        assert!(rate(&format!("{good}  Non-2xx or 3xx responses: 5\n")).is_err());
        assert!(rate("unable to connect").is_err());
    }
}
