//! A cut-over of a database under pgbench: no transaction fails, and none is committed on blue after the first one on green.
//!
//! pgbench opens a connection for each transaction (`--connect`), as a pool in transaction mode does. So the old colour comes to rest when the
//! transactions that are open in each client have ended, while the connections for the next ones wait.

use crate::PATIENCE;
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Fabric, Lab, POSTGRES, Postgres, Process, Session,
    address::VIP_V4,
    config::{DEPLOYMENT, neighbour},
};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

const CLIENTS: u32 = 8;
/// Of each client.
const TRANSACTIONS: u32 = 120;
const SCRIPT: &str = "BEGIN;\nINSERT INTO commits (client) VALUES (:client_id);\n\\sleep 20 ms\n\
                      UPDATE commits SET done = true WHERE client = :client_id AND NOT done;\nCOMMIT;\n";

/// Runs statements on a backend, from the edge.
fn psql(address: IpAddr, statements: &str) -> String {
    format!(
        "psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres --host={address} \
         --port={POSTGRES} --command='{statements}'"
    )
}

/// Commits on a backend, and when the first and the last one were.
fn commits(lab: &Lab, address: IpAddr) -> Result<(u64, String, String)> {
    let mut session = Session::open_in(&lab.edge, address)?;
    let of = "pg_xact_commit_timestamp(xmin)";
    let answer = session.ask(&format!(
        "SELECT count(*) || ' ' || coalesce(extract(epoch from min({of})), 0) || ' ' || coalesce(extract(epoch from max({of})), 0) FROM commits WHERE done"
    ))?;
    let words: Vec<_> = answer.split(' ').map(str::to_owned).collect();
    let [count, first, last] = <[String; 3]>::try_from(words).ok().with_context(|| format!("got {answer:?}"))?;
    Ok((count.parse()?, first, last))
}

fn wait_for_commits(lab: &Lab, address: IpAddr, count: u64) -> Result<()> {
    let start = Instant::now();
    while commits(lab, address)?.0 < count {
        ensure!(start.elapsed() < PATIENCE, "no transactions on {address}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn attach(lab: &Lab, [blue, green]: [IpAddr; 2]) -> Result<Bgctl> {
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach", "--mode", "native"], lab.interfaces.as_slice()].concat())?;
    let [vip, blue, green] = [VIP_V4, blue, green].map(|address| SocketAddr::new(address, POSTGRES));
    bgctl.apply(&format!(
        "{}[[deployments.{DEPLOYMENT}.services]]\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
         blue = [\"{blue}\"]\ngreen = [\"{green}\"]\n",
        neighbour(lab, "nat")
    ))?;
    Ok(bgctl)
}

#[test]
fn no_transaction_fails_and_none_is_committed_on_blue_after_the_first_on_green() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let of = |colour| lab.backends.iter().find(|backend| backend.colour == colour).context("no such backend");
    let backends = [of(Colour::Blue)?, of(Colour::Green)?];
    let _databases = backends.iter().map(|backend| Postgres::start(&lab, backend)).collect::<Result<Vec<_>>>()?;
    let addresses @ [blue, green] = backends.map(|backend| backend.addresses[0]);
    for address in addresses {
        let mut session = Session::open_in(&lab.edge, address)?;
        session.run("CREATE TABLE commits (client int, done bool DEFAULT false)")?;
    }
    // A transaction that meets green before it is ready fails.
    let read_only = "ALTER DATABASE postgres SET default_transaction_read_only = on";
    let read_write = "BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT";
    Session::open_in(&lab.edge, green)?.run(read_only)?;
    let bgctl = attach(&lab, addresses)?;

    let directory = lab.sandbox.dir().join("pgbench");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("script"), SCRIPT)?;
    let mut pgbench = lab.client.command("pgbench");
    pgbench.args(["--no-vacuum", "--connect", "--username=postgres", "--file=script", "--log"]);
    // A thread of pgbench does nothing else while one of its clients connects.
    pgbench.args([
        format!("--client={CLIENTS}"),
        format!("--jobs={CLIENTS}"),
        format!("--transactions={TRANSACTIONS}"),
    ]);
    pgbench.args([format!("--host={VIP_V4}"), format!("--port={POSTGRES}"), "postgres".to_owned()]);
    let out = fs::File::create(directory.join("out"))?;
    pgbench.current_dir(&directory).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let mut pgbench = Process::spawn(&mut pgbench)?;
    wait_for_commits(&lab, blue, 40)?;

    let (before, after) = (psql(blue, read_only), psql(green, read_write));
    let switched = bgctl.json(&["switch", DEPLOYMENT, "--freeze", "20s", "--before", &before, "--after", &after])?;
    assert_eq!(switched["to"]["live"], "green", "{switched}");

    let status = pgbench.wait(Duration::from_secs(120))?.context("pgbench does not end")?;
    let said = fs::read_to_string(directory.join("out"))?;
    assert!(status.success(), "{said}");
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    let (on_blue, _, last_on_blue) = commits(&lab, blue)?;
    let (on_green, first_on_green, _) = commits(&lab, green)?;
    assert_eq!(on_blue + on_green, u64::from(CLIENTS * TRANSACTIONS));
    assert!(on_blue >= 40 && on_green >= 40, "blue {on_blue}, green {on_green}");
    assert!(last_on_blue.parse::<f64>()? < first_on_green.parse::<f64>()?, "{last_on_blue} {first_on_green}");
    println!("{switched}\nthe longest pause of a client between two transactions: {:?}", longest_pause(&directory)?);
    Ok(())
}

/// The longest time between the ends of two transactions of a client. pgbench's log has a line for each transaction: client, number, latency,
/// script, and when it has ended, in seconds and microseconds.
fn longest_pause(directory: &std::path::Path) -> Result<Duration> {
    let mut ends: BTreeMap<u32, Vec<Duration>> = BTreeMap::new();
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("pgbench_log") {
            for line in fs::read_to_string(entry.path())?.lines() {
                let words = line.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
                let end = Duration::from_secs(words[4]) + Duration::from_micros(words[5]);
                ends.entry(words[0] as u32).or_default().push(end);
            }
        }
    }
    let pauses = ends.into_values().flat_map(|mut ends| {
        ends.sort_unstable();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max()
    });
    pauses.max().context("no transaction in the log")
}
