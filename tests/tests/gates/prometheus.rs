//! Gates that ask Debian's Prometheus, which scrapes a real nginx.

use crate::{Gated, PATIENCE, gate, http::Site};
use anyhow::{Context, Result};
use bg_tests::{Process, config::DEPLOYMENT};
use std::{
    fs::{self, File},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

const ADDRESS: &str = "127.0.0.1:19090";

struct Prometheus {
    _process: Process,
}

impl Prometheus {
    fn start(lab: &Gated) -> Result<Self> {
        let dir = lab.file("prometheus");
        fs::create_dir_all(&dir)?;
        let config = dir.join("prometheus.yml");
        let site = Site::ADDRESS;
        fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\nscrape_configs:\n\
                 - job_name: site\n  metrics_path: /metrics/site\n  static_configs:\n  - targets: ['{site}']\n"
            ),
        )?;
        let mut command = lab.ready.lab.edge.command("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={ADDRESS}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("log"))?);
        let process = Process::spawn(&mut command).context("prometheus: `cargo xtask setup` installs it")?;
        Ok(Self { _process: process })
    }
}

fn query(when: &str, query: &str, bounds: &str) -> String {
    let url = format!("kind = \"prometheus\"\nurl = \"http://{ADDRESS}/\"\nquery = '{query}'");
    gate(DEPLOYMENT, when, &format!("{url}\n{bounds}\ntimeout = \"2s\"\ninterval = \"100ms\""))
}

#[test]
fn the_value_of_a_query_decides() -> Result<()> {
    let lab = Gated::new()?;
    let _site = Site::start(&lab)?;
    let metrics = lab.file("site/metrics/site");
    let say = |errors: u32| {
        let text = format!("errors{{colour=\"blue\"}} 0\nerrors{{colour=\"green\"}} {errors}\n");
        fs::write(metrics.with_extension("new"), text)
            .and_then(|()| fs::rename(metrics.with_extension("new"), &metrics))
    };
    say(0)?;
    let _prometheus = Prometheus::start(&lab)?;
    lab.apply(&[query("before", "sum(errors)", "max = 0")])?;
    // It has scraped, as soon as the gate passes.
    let began = Instant::now();
    while lab.run(&["switch", DEPLOYMENT, "green"])?.code != Some(0) {
        anyhow::ensure!(began.elapsed() < PATIENCE, "{}", fs::read_to_string(lab.file("prometheus/log"))?);
        thread::sleep(Duration::from_millis(100));
    }
    for (text, bounds, says) in [
        ("errors", "min = 1", "the value of {__name__=\"errors\", colour=\"blue\""),
        ("vector(0.7)", "max = 0.5", "the value is 0.7, more than 0.5"),
        ("1", "min = 2", "the value is 1, less than 2"),
        ("nothing_of_this_name", "max = 1", "the query gives no value"),
        ("sum(errors) / 0", "max = 1", "the value is NaN"),
        ("errors[1m]", "max = 1", "the query gives a \"matrix\""),
        ("sum(", "max = 1", "the query was refused: invalid parameter"),
    ] {
        lab.apply(&[query("before", text, bounds)])?;
        lab.refused(&[], &[says, "prometheus"]);
    }
    lab.apply(&[query("before", "1", "max = 1").replace(ADDRESS, Site::ADDRESS)])?;
    lab.refused(&[], &["it was answered with 404 Not Found, and not with JSON"]);

    // Errors of the new colour take the switch back.
    lab.apply(&[query("before", "nothing or vector(0)", "max = 0\nmin = 0"), query("after", "errors", "max = 3")])?;
    let began = Instant::now();
    let failed = thread::scope(|scope| {
        let switch = scope.spawn(|| lab.run(&["switch", DEPLOYMENT, "blue", "--confirm-within", "1m"]));
        while lab.state(DEPLOYMENT)?.0 != "blue" {
            anyhow::ensure!(began.elapsed() < PATIENCE, "it was not switched");
        }
        say(9)?;
        switch.join().ok().context("panicked")?
    })?;
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    assert!(failed.err.contains("colour=\"green\"") && failed.err.contains("is 9, more than 3"), "{}", failed.err);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(lab.state(DEPLOYMENT)?.0, "green");
    let (action, reason) = lab.last_record(DEPLOYMENT)?;
    assert!(action == "rollback" && reason.contains("gate prometheus errors failed"), "{action}: {reason}");
    lab.ready.neighbour_is_undisturbed()
}
