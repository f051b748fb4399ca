//! What Prometheus scrapes from `bgctl serve`, and the alerts and the dashboard that come with it.

use anyhow::{Context, Result, bail};
use bg_tests::{
    Controller, Fabric, HTTP_PORT, HttpClient, Lab, Process, Ready,
    config::{DEPLOYMENT, NEIGHBOUR, shop},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The names of the public interface.
const NAMES: [&str; 19] = [
    "bgctl_live_info",
    "bgctl_green_share",
    "bgctl_phase",
    "bgctl_packets_total",
    "bgctl_bytes_total",
    "bgctl_flows_opened_total",
    "bgctl_flows",
    "bgctl_drops_total",
    "bgctl_events_total",
    "bgctl_switches_total",
    "bgctl_backend_up",
    "bgctl_backend_check_duration_seconds",
    "bgctl_backend_weight",
    "bgctl_checks_late_total",
    "bgctl_checks_without_verdict_total",
    "bgctl_tee_connections_total",
    "bgctl_confirm_deadline_seconds",
    "bgctl_flow_table_used_ratio",
    "bgctl_build_info",
];

struct Served {
    _controller: Controller,
    ready: Ready,
    socket: PathBuf,
}

fn served() -> Result<Served> {
    let lab = Lab::wire(Fabric::Switch)?;
    let socket = lab.sandbox.dir().join("api.sock");
    // UDP services, too, are asked at the port of HTTP.
    let health = format!(
        "[deployments.shop.health]\nkind = \"tcp\"\nport = {HTTP_PORT}\ninterval = \"200ms\"\ntimeout = \"100ms\""
    );
    let serve = format!("[serve]\nsocket = \"{}\"\nlisten = \"127.0.0.1:7470\"", socket.display());
    let config = format!("{}\n{health}\n{serve}\n", shop(&lab, "nat", ""));
    let ready = Ready::with(lab, "native", &config)?;
    Ok(Served { _controller: Controller::start(&ready.bgctl)?, ready, socket })
}

impl Served {
    /// Numbers that are at most a second old.
    fn scrape(&self) -> Result<String> {
        thread::sleep(Duration::from_millis(1100));
        let answer = HttpClient::unix(&self.socket)?.get("/metrics")?;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("text/plain; version=0.0.4; charset=utf-8"))
        );
        Ok(answer.text())
    }
}

/// The value of the sample with these labels, in their order.
fn value(text: &str, sample: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name)
}

#[test]
fn numbers_are_those_of_status_and_promtool_finds_no_fault() -> Result<()> {
    let served = served()?;
    let bgctl = &served.ready.bgctl;
    bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "1h"])?;
    // Another one is refused: nobody is at that generation.
    let path = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let stale = HttpClient::unix(&served.socket)?.request("POST", &path, &[("If-Match", "\"9\"")], b"")?;
    assert_eq!(stale.status, 412);
    let text = served.scrape()?;
    for name in NAMES {
        assert!(
            text.contains(&format!("# TYPE {name} ")) && text.contains(&format!("# HELP {name} ")),
            "{name}: {text}"
        );
    }
    let status = bgctl.json(&["status"])?;
    for deployment in status["deployments"].as_array().context("no deployments")? {
        let name = deployment["name"].as_str().context("no name")?;
        let (live, generation) = (deployment["live"].as_str().context("no colour")?, &deployment["generation"]);
        let info = format!("bgctl_live_info{{deployment=\"{name}\",colour=\"{live}\",generation=\"{generation}\"}}");
        assert_eq!(value(&text, &info), Some(1.0), "{info}");
        let share = format!("bgctl_green_share{{deployment=\"{name}\"}}");
        assert_eq!(value(&text, &share), deployment["green_share"].as_f64(), "{share}");
        let phase = |phase: &str| value(&text, &format!("bgctl_phase{{deployment=\"{name}\",phase=\"{phase}\"}}"));
        assert_eq!(phase(deployment["phase"].as_str().context("no phase")?), Some(1.0));
        let phases = ["steady", "draining", "split", "ramping", "confirming", "scheduled", "frozen"];
        assert_eq!(phases.iter().filter_map(|name| phase(name)).sum::<f64>(), 1.0);
        for colour in ["blue", "green"] {
            let flows = format!("bgctl_flows{{deployment=\"{name}\",colour=\"{colour}\"}}");
            assert_eq!(value(&text, &flows), deployment["flows"][colour].as_f64(), "{flows}");
            for service in deployment["services"].as_array().context("no services")? {
                let labels = format!("{{deployment=\"{name}\",service={},colour=\"{colour}\"}}", service["name"]);
                for (metric, key) in [("packets", "packets"), ("bytes", "bytes"), ("flows_opened", "flows_opened")] {
                    let sample = format!("bgctl_{metric}_total{labels}");
                    assert_eq!(value(&text, &sample), service[colour][key].as_f64(), "{sample}");
                }
            }
        }
    }
    for (reason, count) in status["drops"].as_object().context("no drops")? {
        assert_eq!(value(&text, &format!("bgctl_drops_total{{reason=\"{reason}\"}}")), count.as_f64());
    }
    let switches = |action: &str, result: &str| {
        value(
            &text,
            &format!("bgctl_switches_total{{deployment=\"{DEPLOYMENT}\",action=\"{action}\",result=\"{result}\"}}"),
        )
    };
    assert_eq!(
        [switches("switch", "done"), switches("switch", "refused"), switches("expired", "done")],
        [Some(1.0), Some(1.0), Some(0.0)]
    );
    let deadline = value(&text, &format!("bgctl_confirm_deadline_seconds{{deployment=\"{DEPLOYMENT}\"}}"));
    assert!(deadline.is_some_and(|left| (3500.0..3600.0).contains(&left)), "{deadline:?}");
    assert_eq!(value(&text, &format!("bgctl_confirm_deadline_seconds{{deployment=\"{NEIGHBOUR}\"}}")), None);
    assert!(
        value(&text, "bgctl_flow_table_used_ratio{family=\"ipv4\"}").is_some_and(|used| used > 0.0 && used < 1.0),
        "{text}"
    );
    let up =
        text.lines().filter(|line| line.starts_with("bgctl_backend_up{deployment=\"shop\"") && line.ends_with(" 1"));
    assert!(up.count() >= 8, "both colours, both families: {text}");
    let weights = text.lines().filter(|line| line.starts_with("bgctl_backend_weight{deployment=\"shop\""));
    assert!(weights.count() >= 8, "{text}");
    assert!(text.lines().any(|line| line.starts_with("bgctl_backend_check_duration_seconds{")), "{text}");

    let mut lint =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    lint.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    let lint = lint.wait_with_output()?;
    assert!(lint.status.success() && lint.stderr.is_empty(), "{}", String::from_utf8_lossy(&lint.stderr));
    Ok(())
}

/// Asks a running Prometheus.
fn query(served: &Served, query: &str) -> Result<Vec<Value>> {
    let mut command = served.ready.lab.edge.command("curl");
    command.args(["--silent", "--max-time", "5", "--get", "--data-urlencode", &format!("query={query}")]);
    let output = command.arg("http://127.0.0.1:9090/api/v1/query").output()?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
}

#[test]
fn a_real_prometheus_scrapes_it_and_raises_the_alerts() -> Result<()> {
    let served = served()?;
    let dir = served.ready.lab.sandbox.dir();
    let config = dir.join("prometheus.yml");
    fs::write(
        &config,
        format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [\"{}\"]\n\
             scrape_configs:\n- job_name: bgctl\n  static_configs:\n  - targets: [\"127.0.0.1:7470\"]\n",
            contrib("alerts.yml").display()
        ),
    )?;
    let mut command = served.ready.lab.edge.command("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg("--web.listen-address=127.0.0.1:9090");
    command.stdout(Stdio::null()).stderr(fs::File::create(dir.join("prometheus.log"))?);
    let _prometheus = Process::spawn(&mut command)?;
    let until = |wanted: &str| -> Result<Vec<Value>> {
        let end = Instant::now() + Duration::from_secs(25);
        loop {
            match query(&served, wanted)? {
                found if !found.is_empty() => return Ok(found),
                _ if Instant::now() > end => {
                    bail!("Prometheus has nothing for {wanted}: {}", fs::read_to_string(dir.join("prometheus.log"))?)
                }
                _ => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    until("up{job=\"bgctl\"} == 1")?;
    until(&format!("bgctl_live_info{{deployment=\"{DEPLOYMENT}\",colour=\"blue\"}}"))?;
    served.ready.bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "20s"])?;
    until(&format!("bgctl_live_info{{deployment=\"{DEPLOYMENT}\",colour=\"green\"}}"))?;
    // Nobody confirms, and it ends soon.
    let alert = until("ALERTS{alertname=\"BgctlSwitchUnconfirmed\"}")?;
    assert_eq!(alert[0]["metric"]["deployment"], DEPLOYMENT);
    // Each expression of the dashboard is understood.
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(contrib("grafana-dashboard.json"))?)?;
    let mut expressions = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("no expression")?;
            assert!(expression.contains("instance=~\"$instance\""), "two edges are mixed up: {expression}");
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            assert!(legend.contains("{{instance}}"), "two edges look the same: {legend}");
            let told = expression.replace("$deployment", ".*").replace("$instance", ".*");
            expressions.insert(told.replace("$__rate_interval", "1m"));
        }
    }
    assert!(expressions.len() >= 8, "{expressions:?}");
    let quiet = ["bgctl_tee_connections_total"];
    for expression in expressions.iter().filter(|expression| !quiet.iter().any(|quiet| expression.contains(quiet))) {
        until(expression)?;
    }
    Ok(())
}

#[test]
fn the_alerts_are_valid_and_fire_when_they_should() -> Result<()> {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts-test.yml"]] {
        let mut command = Command::new("promtool");
        let output = command.args(&arguments[..2]).arg(arguments[2]).current_dir(contrib("")).output()?;
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    // They speak of metrics that there are.
    let rules = fs::read_to_string(contrib("alerts.yml"))?;
    let is_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    for name in rules.split(|byte| !is_name(byte)).filter(|word| word.starts_with("bgctl_")) {
        assert!(NAMES.contains(&name), "{name}");
    }
    Ok(())
}
